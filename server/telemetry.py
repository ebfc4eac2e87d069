"""Turns what the server learns in a round into the catalogue's metrics."""

from __future__ import annotations

from collections.abc import Sequence

from neuroflux_fl import metrics as m
from server.device_totals import DeviceTotals
from server.fleet_state import RoundRecord

MOST_DEVICES = 100
"""Devices with labels of their own; more would make too many series."""


def report_round(metrics: m.Metrics, record: RoundRecord, devices: Sequence[DeviceTotals]) -> None:
    """Set every server metric after a round."""
    metrics.set(m.ROUND, record.round)
    metrics.set(m.STAGE, record.stage)
    for split, accuracies in (("validation", record.exits), ("test", record.test)):
        for unit, accuracy in accuracies.items():
            metrics.set(m.EXIT_ACCURACY, accuracy, unit=str(unit), split=split)
    for unit, count in record.contributors.items():
        metrics.set(m.UNIT_CONTRIBUTORS, count, unit=str(unit))
    for reason, count in record.rejected.items():
        metrics.add(m.UPDATES_REJECTED, count, reason=reason)
    metrics.add(m.DEVICES_FAILED, record.failed)
    metrics.add(m.DEVICES_MISSING, record.missing)
    metrics.add(m.TASKS_RESENT, record.resent)
    metrics.add(m.LATE_ANSWERS, record.late_used, fate="used")
    metrics.add(m.LATE_ANSWERS, record.late_dropped, fate="dropped")
    metrics.add(m.TRAFFIC_BYTES, record.bytes_up, direction="up")
    metrics.add(m.TRAFFIC_BYTES, record.bytes_down, direction="down")
    metrics.observe(m.ROUND_SECONDS, record.seconds)
    for device in sorted(devices, key=lambda item: item.node_id)[:MOST_DEVICES]:
        name = str(device.node_id)
        metrics.set(m.DEVICE_BUDGET_BYTES, device.budget_bytes or 0, device=name)
        metrics.set(m.DEVICE_PEAK_BYTES, device.predicted_peak_bytes, device=name, source="predicted")
        metrics.set(m.DEVICE_PEAK_BYTES, device.measured_peak_bytes, device=name, source="measured")
        if device.train_seconds:
            metrics.set(m.DEVICE_THROUGHPUT, device.samples_per_second, device=name)
        metrics.set(m.DEVICE_OOM_RETRIES, device.out_of_memory_retries, device=name)
        metrics.set(m.DEVICE_CACHE_BYTES, device.cache_bytes, device=name)
        metrics.set(m.DEVICE_CACHE_REFUSALS, device.cache_refusals, device=name)
        metrics.set(m.DEVICE_DEADLINES, device.deadlines_reached, device=name)
