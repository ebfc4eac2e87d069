"""A simulated fleet's devices have the metrics that real ones have, but for those of their machines."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from neuroflux_fl import metrics as m
from neuroflux_fl.metrics import CATALOGUE, Metric
from server.device_totals import BlockTotals, DeviceTotals
from server.fleet_state import FleetState
from server.run_folder import RunFolder
from server.simulated_devices import MOST_DEVICES, simulated_device_samples

DEVICE = DeviceTotals(
    node_id=7,
    device_class="simulated-1",
    budget_bytes=64,
    rounds=3,
    evaluations=2,
    last_round=5,
    samples=100,
    device_seconds=10.0,
    profile_seconds=0.5,
    cache_seconds=2.0,
    evaluate_seconds=1.5,
    blocks=(
        BlockTotals(
            first_unit=0, last_unit=1, batch_size=8, predicted_peak_bytes=60, measured_peak_bytes=55, samples=100,
            seconds=4.0,
        ),
        BlockTotals(first_unit=2, last_unit=2, batch_size=16, predicted_peak_bytes=50, samples=90),
    ),
    losses=((1, 0.5), (2, 0.25)),
    out_of_memory_retries=1,
    cache_bytes=33,
    cache_writes=6,
    cache_held_bytes=22,
    cache_hits=4,
    cache_refusals=2,
    deadlines_reached=3,
)  # fmt: skip
OF_A_MACHINE = {
    m.DEVICE_TRAINING_BYTES, m.DEVICE_RESIDENT_BYTES, m.DEVICE_AVAILABLE_BYTES, m.DEVICE_GPU_BYTES,
    m.DEVICE_GPU_SIZE_BYTES, m.DEVICE_GPU_UTILISATION, m.DEVICE_TEMPERATURE, m.DEVICE_POWER, m.DEVICE_DISK_FREE,
    m.DEVICE_DISK_SIZE,
}  # fmt: skip


def run_of(*devices: DeviceTotals, phase: str = "training") -> RunFolder:
    return RunFolder(
        path=Path(), setting={"run": "trial"}, state=FleetState(devices=devices, seconds=30.0), status={"phase": phase}
    )


def values(run: RunFolder) -> dict[tuple[Metric, tuple[str, ...]], float]:
    labels = ("trial", "device-7", "simulated-1")
    found = {(sample.metric, sample.labels): sample.value for sample in simulated_device_samples(run)}
    assert {of[:3] for _, of in found} == {labels}
    return {(metric, of[3:]): value for (metric, of), value in found.items()}


def test_all_that_a_device_without_a_machine_can_tell_is_there() -> None:
    found = values(run_of(DEVICE))

    assert {metric for metric, _ in found} == {
        metric for metric in CATALOGUE if metric.set_by == "device"
    } - OF_A_MACHINE


def test_values() -> None:
    found = values(run_of(DEVICE))

    expected = {
        (m.DEVICE_BUDGET_BYTES, ()): 64,
        (m.DEVICE_ROUND, ()): 5,
        (m.DEVICE_BUSY, ()): 1,
        (m.DEVICE_TASKS, ()): 5,
        (m.DEVICE_SAMPLES, ()): 190,
        (m.DEVICE_BLOCK_BATCH_SIZE, ("0-1",)): 8,
        (m.DEVICE_BLOCK_BATCH_SIZE, ("2-2",)): 16,
        (m.DEVICE_BLOCK_PEAK_BYTES, ("0-1", "predicted")): 60,
        (m.DEVICE_BLOCK_PEAK_BYTES, ("0-1", "measured")): 55,
        (m.DEVICE_BLOCK_SPEED, ("0-1",)): 25.0,
        (m.DEVICE_UNIT_LOSS, ("2",)): 0.25,
        (m.DEVICE_CACHE_WRITTEN_BYTES, ()): 33,
        (m.DEVICE_CACHE_BYTES, ()): 22,
        (m.DEVICE_CACHE_WRITES, ()): 6,
        (m.DEVICE_CACHE_HITS, ()): 4,
        (m.DEVICE_CACHE_REFUSALS, ()): 2,
        (m.DEVICE_OOM_RETRIES, ()): 1,
        (m.DEVICE_DEADLINES, ()): 3,
        (m.DEVICE_ACTIVITY_SECONDS, ("profile",)): 0.5,
        (m.DEVICE_ACTIVITY_SECONDS, ("train",)): 6.0,
        (m.DEVICE_ACTIVITY_SECONDS, ("cache",)): 2.0,
        (m.DEVICE_ACTIVITY_SECONDS, ("evaluate",)): 1.5,
        (m.DEVICE_ACTIVITY_SECONDS, ("wait",)): 20.0,
    }
    assert {key: found[key] for key in expected} == expected
    # Not measured is not 0.
    assert (m.DEVICE_BLOCK_PEAK_BYTES, ("2-2", "measured")) not in found
    assert (m.DEVICE_BLOCK_SPEED, ("2-2",)) not in found


def test_fleet_that_is_done_is_not_busy() -> None:
    assert values(run_of(DEVICE, phase="finished"))[m.DEVICE_BUSY, ()] == 0


def test_large_fleet_does_not_make_series_for_every_device() -> None:
    devices = [replace(DEVICE, node_id=node) for node in range(MOST_DEVICES + 20)]

    named = {sample.labels[1] for sample in simulated_device_samples(run_of(*devices))}

    assert named == {f"device-{node}" for node in range(MOST_DEVICES)}


def test_before_the_first_round_there_is_nothing() -> None:
    assert list(simulated_device_samples(RunFolder(path=Path(), setting={"run": "trial"}))) == []
