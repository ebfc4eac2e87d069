"""Samples become the text that Prometheus reads: checked with its client's own parser, by hand, and by promtool."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from neuroflux_fl.errors import DependencyError
from neuroflux_fl.exposition import Collected, exposition, families, make_registry
from neuroflux_fl.metrics import CATALOGUE, Metric, Observations, Sample

GAUGE = Metric(name="neuroflux_depth", kind="gauge", help="How deep.", set_by="server", labels=("where",))
COUNTER = Metric(name="neuroflux_dives_total", kind="counter", help="How many.", set_by="server", labels=("where",))
HISTOGRAM = Metric(
    name="neuroflux_dive_seconds", kind="histogram", help="How long.", set_by="server", labels=("where",),
    buckets=(0.5, 1.0, 2.0),
)  # fmt: skip


def text_of(*items: Collected) -> str:
    return exposition(make_registry(lambda: items)).decode()


def parsed(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_text_is_as_written_by_hand() -> None:
    text = text_of(
        Sample(GAUGE, ("sea",), 3.5),
        Sample(COUNTER, ("sea",), 2),
        Observations(HISTOGRAM, ("sea",), (0.25, 0.5, 1.5, 9.0)),
    )

    # A value on a bound belongs to the bound's bucket.
    assert text.splitlines() == [
        "# HELP neuroflux_depth How deep.",
        "# TYPE neuroflux_depth gauge",
        'neuroflux_depth{where="sea"} 3.5',
        "# HELP neuroflux_dives_total How many.",
        "# TYPE neuroflux_dives_total counter",
        'neuroflux_dives_total{where="sea"} 2.0',
        "# HELP neuroflux_dive_seconds How long.",
        "# TYPE neuroflux_dive_seconds histogram",
        'neuroflux_dive_seconds_bucket{le="0.5",where="sea"} 2.0',
        'neuroflux_dive_seconds_bucket{le="1.0",where="sea"} 2.0',
        'neuroflux_dive_seconds_bucket{le="2.0",where="sea"} 3.0',
        'neuroflux_dive_seconds_bucket{le="+Inf",where="sea"} 4.0',
        'neuroflux_dive_seconds_count{where="sea"} 4.0',
        'neuroflux_dive_seconds_sum{where="sea"} 11.25',
    ]


def test_histogram_that_has_observed_nothing_is_there() -> None:
    samples = parsed(text_of(Observations(HISTOGRAM, ("sea",), ())))

    assert set(samples.values()) == {0.0}
    assert ("neuroflux_dive_seconds_count", (("where", "sea"),)) in samples


@pytest.mark.parametrize("label", ['a "quoted" name', "back\\slash", "two\nlines", "größe", "", "{a=}"])
def test_labels_of_any_letters_come_back(label: str) -> None:
    assert parsed(text_of(Sample(GAUGE, (label,), 1.0))) == {("neuroflux_depth", (("where", label),)): 1.0}


@pytest.mark.parametrize("value", [0.0, 1e300, -2.5, 2.0**53, math.inf])
def test_numbers_come_back(value: float) -> None:
    assert list(parsed(text_of(Sample(GAUGE, ("sea",), value))).values()) == [value]


def test_samples_of_several_sources_make_one_family() -> None:
    registry = make_registry(
        lambda: [Sample(GAUGE, ("sea",), 1.0), Sample(COUNTER, ("sea",), 1.0)], lambda: [Sample(GAUGE, ("lake",), 2.0)]
    )

    text = exposition(registry).decode()

    assert text.count("# TYPE neuroflux_depth ") == 1
    assert len(parsed(text)) == 3


def test_sources_are_asked_at_every_scrape_and_not_before() -> None:
    depths: list[float] = []

    def source() -> Iterator[Sample]:
        depths.append(len(depths))
        yield Sample(GAUGE, ("sea",), depths[-1])

    registry = make_registry(source)
    assert depths == []

    assert [parsed(exposition(registry).decode()).popitem()[1] for _ in range(3)] == [0.0, 1.0, 2.0]


def test_registries_have_nothing_in_common() -> None:
    first = exposition(make_registry(lambda: [Sample(GAUGE, ("sea",), 1.0)]))
    second = exposition(make_registry(list))

    assert (first.count(b"\n"), second) == (3, b"")


@pytest.mark.parametrize("labels", [(), ("sea", "lake")])
def test_sample_without_a_value_for_each_label_is_refused(labels: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="neuroflux_depth has labels"):
        list(families([Sample(GAUGE, labels, 1.0)]))


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)

    with pytest.raises(DependencyError, match="pip install prometheus-client"):
        make_registry(list)


def test_promtool_has_no_complaint_about_any_metric() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed")
    items: list[Collected] = []
    for metric in CATALOGUE:
        labels = ("x",) * len(metric.labels)
        histogram = metric.kind == "histogram"
        items.append(Observations(metric, labels, (1.0, 30.0)) if histogram else Sample(metric, labels, 1.0))

    done = subprocess.run(
        [promtool, "check", "metrics"], input=text_of(*items), capture_output=True, text=True, check=False, timeout=60
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
