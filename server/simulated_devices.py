"""Metrics of a simulated fleet's devices, from what its server has summed up of their reports."""

from __future__ import annotations

from collections.abc import Iterator

from neuroflux_fl.device_report import ActivitySeconds, BlockReading, DeviceReport, TrainingReading
from neuroflux_fl.device_samples import device_samples
from neuroflux_fl.metrics import Sample
from server.device_totals import BlockTotals, DeviceTotals
from server.fleet_samples import phase_of
from server.run_folder import RunFolder

MOST_DEVICES = 200
"""Devices with labels of their own; more would make too many series."""


def simulated_device_samples(run: RunFolder) -> Iterator[Sample]:
    """The devices' part of the catalogue, for the first ``MOST_DEVICES`` devices, named by their node ids.

    A simulated device has no machine of its own: readings of memory, disk, temperature and power are left out.
    """
    if run.state is None:
        return
    name = str(run.setting["run"])
    busy = phase_of(run) in ("training", "evaluating")
    for device in run.state.devices[:MOST_DEVICES]:
        report = _report(device, run=name, busy=busy, run_seconds=run.state.seconds)
        yield from device_samples(report, run=name, device=f"device-{device.node_id}", device_class=device.device_class)


def _report(device: DeviceTotals, *, run: str, busy: bool, run_seconds: float) -> DeviceReport:
    train_seconds = device.device_seconds - device.profile_seconds - device.cache_seconds - device.evaluate_seconds
    training = TrainingReading(
        run=run,
        round=device.last_round,
        busy=busy,
        blocks=tuple(_block(block) for block in device.blocks),
        losses=device.losses,
        samples=sum(block.samples for block in device.blocks),
        tasks=device.rounds + device.evaluations,
        cache_bytes=device.cache_held_bytes,
        cache_hits=device.cache_hits,
        cache_writes=device.cache_writes,
        cache_written_bytes=device.cache_bytes,
        cache_refusals=device.cache_refusals,
        out_of_memory_retries=device.out_of_memory_retries,
        deadlines_reached=device.deadlines_reached,
        seconds=ActivitySeconds(
            profile=device.profile_seconds,
            train=max(0.0, train_seconds),
            cache=device.cache_seconds,
            evaluate=device.evaluate_seconds,
            wait=max(0.0, run_seconds - device.device_seconds),
        ),
    )
    return DeviceReport(device_class=device.device_class, budget_bytes=device.budget_bytes, training=training)


def _block(block: BlockTotals) -> BlockReading:
    return BlockReading(
        first_unit=block.first_unit,
        last_unit=block.last_unit,
        batch_size=block.batch_size,
        predicted_peak_bytes=block.predicted_peak_bytes,
        measured_peak_bytes=block.measured_peak_bytes or None,
        samples_per_second=block.samples / block.seconds if block.seconds else None,
    )
