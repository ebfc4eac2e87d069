"""The catalogue keeps Prometheus's rules for names."""

from __future__ import annotations

import re
import sys

import pytest
from prometheus_client import CollectorRegistry

from neuroflux_fl.errors import DependencyError
from neuroflux_fl.metrics import CATALOGUE, Metric, Metrics

NAME = re.compile(r"neuroflux(_[a-z]+)+")
LABEL = re.compile(r"[a-z]+(_[a-z]+)*")


def test_names_are_unique() -> None:
    assert len({metric.name for metric in CATALOGUE}) == len(CATALOGUE)


@pytest.mark.parametrize("metric", CATALOGUE, ids=lambda metric: metric.name)
def test_names_keep_the_conventions(metric: Metric) -> None:
    assert NAME.fullmatch(metric.name)
    assert all(LABEL.fullmatch(label) and label not in ("le", "quantile") for label in metric.labels)
    assert metric.kind in ("gauge", "counter", "histogram")
    # Only counters end in _total; base units, written out.
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    assert not re.search(r"_(ms|milliseconds|kb|mb|mib|percent|count|sum|bucket|info)(_total)?$", metric.name)
    assert metric.help.endswith(".")
    assert bool(metric.buckets) == (metric.kind == "histogram")
    assert list(metric.buckets) == sorted(set(metric.buckets))


def test_two_sets_of_metrics_live_in_their_own_registries() -> None:
    first, second = CollectorRegistry(), CollectorRegistry()
    metric = CATALOGUE[0]

    Metrics(first).set(metric, 3.0)
    Metrics(second).set(metric, 4.0)

    assert (first.get_sample_value(metric.name), second.get_sample_value(metric.name)) == (3.0, 4.0)


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)

    with pytest.raises(DependencyError, match="pip install prometheus-client"):
        Metrics(CollectorRegistry())
