"""Every metric, declared once: name, kind, unit in the name, labels, help. Who serves them brings the registry."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from neuroflux_fl.errors import DependencyError

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One declared metric."""

    name: str
    kind: str
    """gauge, counter or histogram."""
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


ROUND = Metric(name="neuroflux_round", kind="gauge", help="Rounds completed.")
STAGE = Metric(name="neuroflux_stage", kind="gauge", help="Stage in training, from 0.")
EXIT_ACCURACY = Metric(
    name="neuroflux_exit_accuracy_ratio",
    kind="gauge",
    labels=("unit", "split"),
    help="Accuracy of the exit at a unit, 0 to 1; split is validation or test.",
)
UNIT_CONTRIBUTORS = Metric(
    name="neuroflux_unit_contributors",
    kind="gauge",
    labels=("unit",),
    help="Devices whose update of the unit was aggregated in the last round.",
)
UPDATES_REJECTED = Metric(
    name="neuroflux_updates_rejected_total", kind="counter", labels=("reason",), help="Updates not aggregated."
)
DEVICES_FAILED = Metric(
    name="neuroflux_devices_failed_total", kind="counter", help="Answers of devices that were errors."
)
DEVICES_MISSING = Metric(
    name="neuroflux_devices_missing_total", kind="counter", help="Answers that did not come before the deadline."
)
TASKS_RESENT = Metric(
    name="neuroflux_tasks_resent_total", kind="counter", help="Tasks sent again to devices that had been lost."
)
LATE_ANSWERS = Metric(
    name="neuroflux_late_answers_total",
    kind="counter",
    labels=("fate",),
    help="Answers that came after their round; fate is used (at a discount) or dropped.",
)
TRAFFIC_BYTES = Metric(
    name="neuroflux_traffic_bytes_total",
    kind="counter",
    labels=("direction",),
    help="Bytes between server and devices in training rounds; direction is up (to the server) or down.",
)
ROUND_SECONDS = Metric(
    name="neuroflux_round_seconds",
    kind="histogram",
    help="Duration of a round.",
    buckets=(1, 2, 5, 10, 20, 60, 120, 300, 600, 1800, 3600),
)
DEVICE_BUDGET_BYTES = Metric(
    name="neuroflux_device_budget_bytes", kind="gauge", labels=("device",), help="Memory budget of a device."
)
DEVICE_PEAK_BYTES = Metric(
    name="neuroflux_device_peak_bytes",
    kind="gauge",
    labels=("device", "source"),
    help="Largest peak of training memory so far; source is predicted or measured.",
)
DEVICE_THROUGHPUT = Metric(
    name="neuroflux_device_samples_per_second", kind="gauge", labels=("device",), help="Mean training speed so far."
)
DEVICE_OOM_RETRIES = Metric(
    name="neuroflux_device_out_of_memory_retries",
    kind="gauge",
    labels=("device",),
    help="Batches halved after an out-of-memory error so far.",
)
DEVICE_CACHE_BYTES = Metric(
    name="neuroflux_device_cache_written_bytes",
    kind="gauge",
    labels=("device",),
    help="Activations that a device has written to its disk so far.",
)
DEVICE_CACHE_REFUSALS = Metric(
    name="neuroflux_device_cache_refusals",
    kind="gauge",
    labels=("device",),
    help="Activations that a device's quota or disk had no room for so far; they were computed anew.",
)
DEVICE_DEADLINES = Metric(
    name="neuroflux_device_deadlines_reached",
    kind="gauge",
    labels=("device",),
    help="Training tasks that the deadline cut short so far.",
)

CATALOGUE = (
    ROUND, STAGE, EXIT_ACCURACY, UNIT_CONTRIBUTORS, UPDATES_REJECTED, DEVICES_FAILED, DEVICES_MISSING, TASKS_RESENT,
    LATE_ANSWERS, TRAFFIC_BYTES, ROUND_SECONDS, DEVICE_BUDGET_BYTES, DEVICE_PEAK_BYTES, DEVICE_THROUGHPUT,
    DEVICE_OOM_RETRIES, DEVICE_CACHE_BYTES, DEVICE_CACHE_REFUSALS, DEVICE_DEADLINES,
)  # fmt: skip


class Metrics:
    """The declared metrics, made in a registry of the caller's."""

    def __init__(self, registry: CollectorRegistry, catalogue: Iterable[Metric] = CATALOGUE) -> None:
        """Raises DependencyError where prometheus-client is not installed."""
        try:
            import prometheus_client as client
        except ImportError as error:
            raise DependencyError(
                "Package prometheus-client is not installed: metrics need it. pip install prometheus-client"
            ) from error
        self._gauges: dict[str, Gauge] = {}
        self._counters: dict[str, Counter] = {}
        self._histograms: dict[str, Histogram] = {}
        for metric in catalogue:
            if metric.kind == "gauge":
                self._gauges[metric.name] = client.Gauge(metric.name, metric.help, metric.labels, registry=registry)
            elif metric.kind == "counter":
                self._counters[metric.name] = client.Counter(metric.name, metric.help, metric.labels, registry=registry)
            else:
                self._histograms[metric.name] = client.Histogram(
                    metric.name, metric.help, metric.labels, buckets=metric.buckets, registry=registry
                )

    def set(self, metric: Metric, value: float, **labels: str) -> None:
        """Set a gauge."""
        gauge = self._gauges[metric.name]
        (gauge.labels(**labels) if labels else gauge).set(value)

    def add(self, metric: Metric, value: float, **labels: str) -> None:
        """Add to a counter."""
        counter = self._counters[metric.name]
        (counter.labels(**labels) if labels else counter).inc(value)

    def observe(self, metric: Metric, value: float) -> None:
        """Add an observation to a histogram."""
        self._histograms[metric.name].observe(value)
