"""A device's report as protobuf: what a forged one may at most contain is decided here."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from google.protobuf.message import DecodeError, Message

from neuroflux_fl.device_report import ActivitySeconds, BlockReading, DeviceReport, MachineReading, TrainingReading
from neuroflux_fl.errors import WireError
from neuroflux_fl.wire import telemetry_pb2 as pb
from neuroflux_fl.wire.checks import (
    check_count,
    check_distinct_units,
    check_number,
    check_range,
    check_size,
    check_text,
)

TELEMETRY_VERSION = 1
SERVICE = "neuroflux.telemetry.v1.TelemetryGateway"
METHOD = "Report"
PROOF_TEXT = b"neuroflux-telemetry-v1"
"""What a device signs, followed by the challenge's nonce."""
MAX_REPORT_BYTES = 64 * 1024
"""Far above an honest report: 40 blocks and 40 units take 3 KiB."""
MAX_BLOCKS = 256
"""Blocks, and units with a loss, in one report."""

_BYTES = ("resident_bytes", "available_bytes", "disk_free_bytes", "disk_size_bytes", "gpu_bytes", "gpu_size_bytes")
_NUMBERS = ("gpu_utilisation", "gpu_watts", "board_watts")
_CELSIUS = ("gpu_celsius", "board_celsius")
_COLDEST, _HOTTEST = -100.0, 1000.0
_SUMS = (
    "samples", "tasks", "cache_bytes", "cache_hits", "cache_writes", "cache_written_bytes", "cache_refusals",
    "out_of_memory_retries", "deadlines_reached",
)  # fmt: skip


def report_to_proto(report: DeviceReport) -> pb.DeviceReport:
    """Encode.

    Raises:
        WireError: a reading is out of bounds.
    """
    _check(report)
    message = pb.DeviceReport(
        device_class=report.device_class,
        budget_bytes=report.budget_bytes,
        connected=report.connected,
        agent_restarts=report.agent_restarts,
        machine=pb.Machine(**{name: getattr(report.machine, name) for name in (*_BYTES, *_NUMBERS, *_CELSIUS)}),
    )
    if report.training is not None:
        message.training.CopyFrom(training_to_proto(report.training))
    return message


def report_from_proto(message: pb.DeviceReport) -> DeviceReport:
    """Decode and check.

    Raises:
        WireError: a reading is out of bounds.
    """
    report = DeviceReport(
        device_class=message.device_class,
        budget_bytes=_optional(message, "budget_bytes"),
        connected=message.connected,
        agent_restarts=message.agent_restarts,
        machine=MachineReading(**{name: _optional(message.machine, name) for name in (*_BYTES, *_NUMBERS, *_CELSIUS)}),
        training=_training_from_proto(message.training) if message.HasField("training") else None,
    )
    _check(report)
    return report


def training_to_proto(training: TrainingReading) -> pb.Training:
    """Encode what the training process knows; the agent answers status calls with it."""
    return pb.Training(
        run=training.run,
        round=training.round,
        busy=training.busy,
        training_bytes=training.training_bytes,
        blocks=[
            pb.BlockReading(**{field.name: getattr(block, field.name) for field in fields(BlockReading)})
            for block in training.blocks
        ],
        losses=[pb.UnitLoss(unit=unit, loss=loss) for unit, loss in training.losses],
        **{name: getattr(training, name) for name in _SUMS},
        **{f"{field.name}_seconds": getattr(training.seconds, field.name) for field in fields(ActivitySeconds)},
    )


def training_from_bytes(data: bytes) -> TrainingReading:
    """Decode ``training_to_proto``'s message and check it.

    Raises:
        WireError: it is no such message, or a reading is out of bounds.
    """
    message = pb.Training()
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise WireError(f"Training reading cannot be decoded: {error}.") from error
    training = _training_from_proto(message)
    _check_training(training)
    return training


def _training_from_proto(message: pb.Training) -> TrainingReading:
    if max(len(message.blocks), len(message.losses)) > MAX_BLOCKS:
        raise WireError(
            f"training has {len(message.blocks)} blocks and {len(message.losses)} losses: {MAX_BLOCKS} are allowed."
        )
    return TrainingReading(
        run=message.run,
        round=message.round,
        busy=message.busy,
        training_bytes=_optional(message, "training_bytes"),
        blocks=tuple(
            BlockReading(
                first_unit=block.first_unit,
                last_unit=block.last_unit,
                batch_size=block.batch_size,
                predicted_peak_bytes=block.predicted_peak_bytes,
                measured_peak_bytes=_optional(block, "measured_peak_bytes"),
                samples_per_second=_optional(block, "samples_per_second"),
            )
            for block in message.blocks
        ),
        losses=tuple((loss.unit, loss.loss) for loss in message.losses),
        seconds=ActivitySeconds(
            **{field.name: getattr(message, f"{field.name}_seconds") for field in fields(ActivitySeconds)}
        ),
        **{name: getattr(message, name) for name in _SUMS},
    )


def _optional(message: Message, name: str) -> Any:
    return getattr(message, name) if message.HasField(name) else None


def _check(report: DeviceReport) -> None:
    check_text("device_class", report.device_class)
    check_count("agent_restarts", report.agent_restarts)
    machine = report.machine
    for name, value in (("budget_bytes", report.budget_bytes), *((name, getattr(machine, name)) for name in _BYTES)):
        if value is not None:
            check_size(name, value)
    for name in _NUMBERS:
        if (number := getattr(machine, name)) is not None:
            check_number(name, number)
    for name in _CELSIUS:
        celsius = getattr(machine, name)
        if celsius is not None and not _COLDEST <= celsius <= _HOTTEST:
            raise WireError(f"{name} is {celsius}: must lie between {_COLDEST:g} and {_HOTTEST:g}.")
    if machine.gpu_utilisation is not None and machine.gpu_utilisation > 1:
        raise WireError(f"gpu_utilisation is {machine.gpu_utilisation}: must be at most 1.")
    if report.training is not None:
        _check_training(report.training)


def _check_training(training: TrainingReading) -> None:
    check_text("run", training.run)
    check_count("round", training.round)
    if training.training_bytes is not None:
        check_size("training_bytes", training.training_bytes)
    ranges = [(block.first_unit, block.last_unit) for block in training.blocks]
    if len(set(ranges)) != len(ranges):
        # Two samples of one metric with the same labels would spoil a whole scrape.
        raise WireError(f"blocks has {len(ranges)} entries, and {len(set(ranges))} different ones: list each once.")
    check_distinct_units("losses", (unit for unit, _ in training.losses))
    for block in training.blocks:
        check_range("block", block.first_unit, block.last_unit)
        check_count("block.batch_size", block.batch_size, least=1)
        check_size("block.predicted_peak_bytes", block.predicted_peak_bytes)
        if block.measured_peak_bytes is not None:
            check_size("block.measured_peak_bytes", block.measured_peak_bytes)
        if block.samples_per_second is not None:
            check_number("block.samples_per_second", block.samples_per_second)
    for _, loss in training.losses:
        check_number("loss", loss)
    for name in _SUMS:
        check_size(name, getattr(training, name))
    for field in fields(ActivitySeconds):
        check_number(f"{field.name}_seconds", getattr(training.seconds, field.name))
