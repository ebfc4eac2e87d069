"""A full report sets every metric that the catalogue says is a device's; what a report lacks is left out."""

from __future__ import annotations

from dataclasses import replace

from neuroflux_fl import metrics as m
from neuroflux_fl.device_report import ActivitySeconds, BlockReading, DeviceReport, MachineReading, TrainingReading
from neuroflux_fl.device_samples import device_samples
from neuroflux_fl.exposition import exposition, make_registry
from neuroflux_fl.metrics import CATALOGUE, Metric

TRAINING = TrainingReading(
    run="what the device says", round=3, busy=True, training_bytes=100,
    blocks=(
        BlockReading(
            first_unit=0, last_unit=3, batch_size=8, predicted_peak_bytes=60, measured_peak_bytes=55,
            samples_per_second=12.5,
        ),
        BlockReading(first_unit=4, last_unit=4, batch_size=16, predicted_peak_bytes=70),
    ),
    losses=((3, 0.5), (4, 0.25)), samples=1, tasks=2, cache_bytes=3, cache_hits=4, cache_writes=5,
    cache_written_bytes=6, cache_refusals=7, out_of_memory_retries=8, deadlines_reached=9,
    seconds=ActivitySeconds(profile=1.5, train=2.5, cache=3.5, evaluate=4.5, wait=5.5),
)  # fmt: skip
MACHINE = MachineReading(
    resident_bytes=11, available_bytes=12, disk_free_bytes=13, disk_size_bytes=14, gpu_bytes=15, gpu_size_bytes=16,
    gpu_utilisation=0.5, gpu_celsius=61.0, gpu_watts=7.0, board_celsius=52.0, board_watts=4.0,
)  # fmt: skip
REPORT = DeviceReport(
    device_class="what it says", budget_bytes=64, connected=True, agent_restarts=2, machine=MACHINE, training=TRAINING
)
LABELS = ("trial", "pi", "board")


def values(report: DeviceReport) -> dict[tuple[Metric, tuple[str, ...]], float]:
    samples = list(device_samples(report, run="trial", device="pi", device_class="board"))
    assert {sample.labels[:3] for sample in samples} == {LABELS}
    found = {(sample.metric, sample.labels[3:]): sample.value for sample in samples}
    assert len(found) == len(samples)
    return found


def test_full_report_sets_every_metric_of_a_device() -> None:
    found = values(REPORT)

    assert {metric for metric, _ in found} == {metric for metric in CATALOGUE if metric.set_by == "device"}
    registry = make_registry(lambda: device_samples(REPORT, run="trial", device="pi", device_class="board"))
    assert b'neuroflux_device_busy{device="pi",device_class="board",run="trial"} 1.0' in exposition(registry)


def test_every_reading_goes_to_its_own_metric() -> None:
    assert values(REPORT) == {
        (m.DEVICE_CONNECTED, ()): 1,
        (m.DEVICE_AGENT_RESTARTS, ()): 2,
        (m.DEVICE_BUDGET_BYTES, ()): 64,
        (m.DEVICE_RESIDENT_BYTES, ()): 11,
        (m.DEVICE_AVAILABLE_BYTES, ()): 12,
        (m.DEVICE_DISK_FREE, ()): 13,
        (m.DEVICE_DISK_SIZE, ()): 14,
        (m.DEVICE_GPU_BYTES, ()): 15,
        (m.DEVICE_GPU_SIZE_BYTES, ()): 16,
        (m.DEVICE_GPU_UTILISATION, ()): 0.5,
        (m.DEVICE_TEMPERATURE, ("gpu",)): 61,
        (m.DEVICE_TEMPERATURE, ("board",)): 52,
        (m.DEVICE_POWER, ("gpu",)): 7,
        (m.DEVICE_POWER, ("board",)): 4,
        (m.DEVICE_ROUND, ()): 3,
        (m.DEVICE_BUSY, ()): 1,
        (m.DEVICE_TRAINING_BYTES, ()): 100,
        (m.DEVICE_BLOCK_BATCH_SIZE, ("0-3",)): 8,
        (m.DEVICE_BLOCK_PEAK_BYTES, ("0-3", "predicted")): 60,
        (m.DEVICE_BLOCK_PEAK_BYTES, ("0-3", "measured")): 55,
        (m.DEVICE_BLOCK_SPEED, ("0-3",)): 12.5,
        (m.DEVICE_BLOCK_BATCH_SIZE, ("4-4",)): 16,
        (m.DEVICE_BLOCK_PEAK_BYTES, ("4-4", "predicted")): 70,
        (m.DEVICE_UNIT_LOSS, ("3",)): 0.5,
        (m.DEVICE_UNIT_LOSS, ("4",)): 0.25,
        (m.DEVICE_SAMPLES, ()): 1,
        (m.DEVICE_TASKS, ()): 2,
        (m.DEVICE_CACHE_BYTES, ()): 3,
        (m.DEVICE_CACHE_HITS, ()): 4,
        (m.DEVICE_CACHE_WRITES, ()): 5,
        (m.DEVICE_CACHE_WRITTEN_BYTES, ()): 6,
        (m.DEVICE_CACHE_REFUSALS, ()): 7,
        (m.DEVICE_OOM_RETRIES, ()): 8,
        (m.DEVICE_DEADLINES, ()): 9,
        (m.DEVICE_ACTIVITY_SECONDS, ("profile",)): 1.5,
        (m.DEVICE_ACTIVITY_SECONDS, ("train",)): 2.5,
        (m.DEVICE_ACTIVITY_SECONDS, ("cache",)): 3.5,
        (m.DEVICE_ACTIVITY_SECONDS, ("evaluate",)): 4.5,
        (m.DEVICE_ACTIVITY_SECONDS, ("wait",)): 5.5,
    }


def test_what_the_device_does_not_know_is_left_out_and_a_reading_of_zero_is_not() -> None:
    idle = values(DeviceReport(connected=False))
    cold = values(replace(REPORT, machine=MachineReading(gpu_utilisation=0.0, gpu_celsius=0.0)))

    assert idle == {(m.DEVICE_CONNECTED, ()): 0, (m.DEVICE_AGENT_RESTARTS, ()): 0}
    assert cold[m.DEVICE_GPU_UTILISATION, ()] == cold[m.DEVICE_TEMPERATURE, ("gpu",)] == 0
    assert (m.DEVICE_TEMPERATURE, ("board",)) not in cold
