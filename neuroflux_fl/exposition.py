"""Samples of the catalogue's metrics as the text that Prometheus reads."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from neuroflux_fl.errors import DependencyError
from neuroflux_fl.metrics import Metric, Observations, Sample

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric as Family

Collected = Sample | Observations
Source = Callable[[], Iterable[Collected]]


def make_registry(*sources: Source) -> CollectorRegistry:
    """A registry that asks its sources at every scrape; a metric's samples may come from several of them.

    Raises:
        DependencyError: prometheus-client is not installed.
    """
    try:
        from prometheus_client import CollectorRegistry
        from prometheus_client.registry import Collector
    except ImportError as error:
        raise DependencyError(
            "Package prometheus-client is not installed: metrics need it. pip install prometheus-client"
        ) from error

    class _Collector(Collector):
        def collect(self) -> Iterator[Family]:
            yield from families(sample for source in sources for sample in source())

        def describe(self) -> Iterable[Family]:
            return ()  # nothing is asked before the first scrape

    registry = CollectorRegistry()
    registry.register(_Collector())
    return registry


def families(collected: Iterable[Collected]) -> Iterator[Family]:
    """Samples put together by metric, each metric once.

    Raises:
        ValueError: a sample has not one value for each label of its metric.
    """
    by_metric: dict[Metric, list[Collected]] = {}
    for item in collected:
        by_metric.setdefault(item.metric, []).append(item)
    for metric, items in by_metric.items():
        yield _family(metric, items)


def exposition(registry: CollectorRegistry) -> bytes:
    """The registry's text, format 0.0.4."""
    from prometheus_client import generate_latest

    return generate_latest(registry)


def _family(metric: Metric, items: Iterable[Collected]) -> Family:
    from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    for item in items:
        if len(item.labels) != len(metric.labels):
            raise ValueError(f"{metric.name} has labels {metric.labels}, and a sample values {item.labels}.")
    if metric.kind == "histogram":
        histogram = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
        for item in items:
            if isinstance(item, Observations):
                histogram.add_metric(item.labels, _buckets(metric, item.values), sum_value=sum(item.values))
        return histogram
    family = (
        CounterMetricFamily(metric.name, metric.help, labels=metric.labels)
        if metric.kind == "counter"
        else GaugeMetricFamily(metric.name, metric.help, labels=metric.labels)
    )
    for item in items:
        if isinstance(item, Sample):
            family.add_metric(item.labels, item.value)
    return family


def _buckets(metric: Metric, values: Iterable[float]) -> list[tuple[str, float]]:
    """Upper bounds and cumulative counts."""
    counts = [0] * (len(metric.buckets) + 1)
    for value in values:
        counts[bisect_left(metric.buckets, value)] += 1
    running, buckets = 0, []
    for bound, count in zip((*map(str, metric.buckets), "+Inf"), counts, strict=True):
        running += count
        buckets.append((bound, float(running)))
    return buckets
