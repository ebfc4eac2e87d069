"""The catalogue keeps Prometheus's rules for names, and labels that are bounded."""

from __future__ import annotations

import re

import pytest

from neuroflux_fl.metrics import CATALOGUE, Metric

NAME = re.compile(r"neuroflux(_[a-z]+)+")
LABEL = re.compile(r"[a-z]+(_[a-z]+)*")
UNITS = re.compile(r"_(bytes|seconds|ratio|celsius|watts|per_second)(_total)?$")
WITHOUT_UNIT = re.compile(
    r"_(phase|round|rounds_planned|stage|nodes_connected|answers_wanted|answers_received|exit_parameters|"
    r"unit_contributors|rounds_without_improvement|device_block_batch_size|device_unit_loss|device_round|device_busy|"
    r"device_connected|device_reporting|devices_reporting|telemetry_streams|info)$"
)
"""Counts, numbers, and gauges of 0 or 1."""
BOUNDED = {
    "run", "phase", "unit", "split", "reason", "outcome", "fate", "direction", "device", "device_class", "block",
    "source", "activity", "sensor", "label", "version", "python", "torch", "flwr",
}  # fmt: skip
"""Labels whose values come from closed lists, from the network's units, or from a capped number of devices."""


def test_names_are_unique() -> None:
    assert len({metric.name for metric in CATALOGUE}) == len(CATALOGUE) > 50


@pytest.mark.parametrize("metric", CATALOGUE, ids=lambda metric: metric.name)
def test_names_keep_the_conventions(metric: Metric) -> None:
    assert NAME.fullmatch(metric.name)
    assert metric.kind in ("gauge", "counter", "histogram")
    # Only counters end in _total; only a gauge that is always 1 ends in _info; base units, written out.
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    assert metric.name.endswith("_info") == (metric.name == "neuroflux_build_info")
    assert not re.search(r"_(ms|milliseconds|kb|mb|mib|percent|count|sum|bucket)(_total)?$", metric.name)
    assert metric.kind == "counter" or bool(UNITS.search(metric.name)) != bool(WITHOUT_UNIT.search(metric.name))


@pytest.mark.parametrize("metric", CATALOGUE, ids=lambda metric: metric.name)
def test_labels_are_bounded(metric: Metric) -> None:
    assert all(LABEL.fullmatch(label) and label not in ("le", "quantile") for label in metric.labels)
    assert len(set(metric.labels)) == len(metric.labels)
    assert set(metric.labels) <= BOUNDED
    if metric.set_by == "device":
        assert metric.labels[:3] == ("run", "device", "device_class")


@pytest.mark.parametrize("metric", CATALOGUE, ids=lambda metric: metric.name)
def test_help_is_a_sentence_and_names_the_values_of_closed_labels(metric: Metric) -> None:
    assert metric.help[0].isupper() or metric.help[0].isdigit()
    assert metric.help.endswith(".")
    assert metric.set_by in ("server", "device", "gateway")
    for label in {"split", "outcome", "fate", "direction", "source", "activity", "sensor"} & set(metric.labels):
        assert f"{label} is " in metric.help


def test_histograms_have_rising_buckets_and_nothing_else_has_any() -> None:
    for metric in CATALOGUE:
        assert bool(metric.buckets) == (metric.kind == "histogram")
        assert list(metric.buckets) == sorted(set(metric.buckets))
        assert all(bound > 0 for bound in metric.buckets)
