"""A device's report as samples of the catalogue: the one place that knows which reading is which metric."""

from __future__ import annotations

from collections.abc import Iterator

from neuroflux_fl import metrics as m
from neuroflux_fl.device_report import DeviceReport, MachineReading, TrainingReading
from neuroflux_fl.metrics import Metric, Sample

Labels = tuple[str, ...]


def device_samples(report: DeviceReport, *, run: str, device: str, device_class: str) -> Iterator[Sample]:
    """Samples of every reading that the report has.

    Args:
        report: the readings.
        run: label; not the report's own, which a gateway does not trust.
        device: label, likewise.
        device_class: label, likewise.
    """
    labels = (run, device, device_class)
    yield Sample(m.DEVICE_CONNECTED, labels, float(report.connected))
    yield Sample(m.DEVICE_AGENT_RESTARTS, labels, report.agent_restarts)
    if report.budget_bytes is not None:
        yield Sample(m.DEVICE_BUDGET_BYTES, labels, report.budget_bytes)
    yield from _machine_samples(report.machine, labels)
    if report.training is not None:
        yield from _training_samples(report.training, labels)


def _machine_samples(machine: MachineReading, labels: Labels) -> Iterator[Sample]:
    readings: tuple[tuple[Metric, Labels, float | None], ...] = (
        (m.DEVICE_RESIDENT_BYTES, labels, machine.resident_bytes),
        (m.DEVICE_AVAILABLE_BYTES, labels, machine.available_bytes),
        (m.DEVICE_DISK_FREE, labels, machine.disk_free_bytes),
        (m.DEVICE_DISK_SIZE, labels, machine.disk_size_bytes),
        (m.DEVICE_GPU_BYTES, labels, machine.gpu_bytes),
        (m.DEVICE_GPU_SIZE_BYTES, labels, machine.gpu_size_bytes),
        (m.DEVICE_GPU_UTILISATION, labels, machine.gpu_utilisation),
        (m.DEVICE_TEMPERATURE, (*labels, "gpu"), machine.gpu_celsius),
        (m.DEVICE_POWER, (*labels, "gpu"), machine.gpu_watts),
        (m.DEVICE_TEMPERATURE, (*labels, "board"), machine.board_celsius),
        (m.DEVICE_POWER, (*labels, "board"), machine.board_watts),
    )
    for metric, with_labels, value in readings:
        if value is not None:
            yield Sample(metric, with_labels, value)


def _training_samples(training: TrainingReading, labels: Labels) -> Iterator[Sample]:
    yield Sample(m.DEVICE_ROUND, labels, training.round)
    yield Sample(m.DEVICE_BUSY, labels, float(training.busy))
    if training.training_bytes is not None:
        yield Sample(m.DEVICE_TRAINING_BYTES, labels, training.training_bytes)
    for block in training.blocks:
        with_block = (*labels, f"{block.first_unit}-{block.last_unit}")
        yield Sample(m.DEVICE_BLOCK_BATCH_SIZE, with_block, block.batch_size)
        yield Sample(m.DEVICE_BLOCK_PEAK_BYTES, (*with_block, "predicted"), block.predicted_peak_bytes)
        if block.measured_peak_bytes is not None:
            yield Sample(m.DEVICE_BLOCK_PEAK_BYTES, (*with_block, "measured"), block.measured_peak_bytes)
        if block.samples_per_second is not None:
            yield Sample(m.DEVICE_BLOCK_SPEED, with_block, block.samples_per_second)
    for unit, loss in training.losses:
        yield Sample(m.DEVICE_UNIT_LOSS, (*labels, str(unit)), loss)
    for metric, value in (
        (m.DEVICE_SAMPLES, training.samples),
        (m.DEVICE_TASKS, training.tasks),
        (m.DEVICE_CACHE_BYTES, training.cache_bytes),
        (m.DEVICE_CACHE_HITS, training.cache_hits),
        (m.DEVICE_CACHE_WRITES, training.cache_writes),
        (m.DEVICE_CACHE_WRITTEN_BYTES, training.cache_written_bytes),
        (m.DEVICE_CACHE_REFUSALS, training.cache_refusals),
        (m.DEVICE_OOM_RETRIES, training.out_of_memory_retries),
        (m.DEVICE_DEADLINES, training.deadlines_reached),
    ):
        yield Sample(metric, labels, value)
    seconds = training.seconds
    for activity in ("profile", "train", "cache", "evaluate", "wait"):
        yield Sample(m.DEVICE_ACTIVITY_SECONDS, (*labels, activity), getattr(seconds, activity))
