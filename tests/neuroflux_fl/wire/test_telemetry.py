"""A device's report survives the way to the gateway, and a forged one is refused at every bound."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest

from neuroflux_fl.device_report import ActivitySeconds, BlockReading, DeviceReport, MachineReading, TrainingReading
from neuroflux_fl.errors import WireError
from neuroflux_fl.wire import telemetry_pb2 as pb
from neuroflux_fl.wire.checks import MAX_COUNT, MAX_SIZE, MAX_UNIT
from neuroflux_fl.wire.telemetry import (
    MAX_BLOCKS,
    MAX_REPORT_BYTES,
    report_from_proto,
    report_to_proto,
    training_from_bytes,
    training_to_proto,
)

TRAINING = TrainingReading(
    run="trial", round=3, busy=True, training_bytes=100,
    blocks=(
        BlockReading(
            first_unit=0, last_unit=3, batch_size=8, predicted_peak_bytes=2**40, measured_peak_bytes=55,
            samples_per_second=0.1 + 0.2,
        ),
        BlockReading(first_unit=4, last_unit=4, batch_size=16, predicted_peak_bytes=70),
    ),
    losses=((3, 1 / 3), (4, 0.25)), samples=2**40, tasks=2, cache_bytes=3, cache_hits=4, cache_writes=5,
    cache_written_bytes=6, cache_refusals=7, out_of_memory_retries=8, deadlines_reached=9,
    seconds=ActivitySeconds(profile=1.5, train=2.5, cache=3.5, evaluate=4.5, wait=5.5),
)  # fmt: skip
MACHINE = MachineReading(
    resident_bytes=11, available_bytes=12, disk_free_bytes=13, disk_size_bytes=14, gpu_bytes=15, gpu_size_bytes=16,
    gpu_utilisation=0.5, gpu_celsius=-61.0, gpu_watts=7.0, board_celsius=52.0, board_watts=4.0,
)  # fmt: skip
REPORT = DeviceReport(
    device_class="board", budget_bytes=64, connected=True, agent_restarts=2, machine=MACHINE, training=TRAINING
)
SIZES = [
    "resident_bytes", "available_bytes", "disk_free_bytes", "disk_size_bytes", "gpu_bytes", "gpu_size_bytes",
]  # fmt: skip
SUMS = [
    "samples", "tasks", "cache_bytes", "cache_hits", "cache_writes", "cache_written_bytes", "cache_refusals",
    "out_of_memory_retries", "deadlines_reached",
]  # fmt: skip
NUMBERS = ["gpu_utilisation", "gpu_watts", "board_watts"]
ACTIVITIES = [field.name for field in fields(ActivitySeconds)]
BAD_NUMBERS = [-1.0, math.nan, math.inf]


def passed_on(report: DeviceReport) -> DeviceReport:
    return report_from_proto(pb.DeviceReport.FromString(report_to_proto(report).SerializeToString()))


def in_training(**changes: Any) -> DeviceReport:
    return replace(REPORT, training=replace(TRAINING, **changes))


def in_machine(**changes: Any) -> DeviceReport:
    return replace(REPORT, machine=replace(MACHINE, **changes))


def in_block(**changes: Any) -> DeviceReport:
    return in_training(blocks=(replace(TRAINING.blocks[0], **changes),))


@pytest.mark.parametrize(
    "report",
    [
        REPORT,
        DeviceReport(),
        replace(REPORT, budget_bytes=None, training=None),
        # What is known to be nothing is not what is not known.
        replace(REPORT, budget_bytes=0, machine=MachineReading(gpu_bytes=0, gpu_utilisation=0.0, gpu_celsius=0.0)),
        in_training(training_bytes=0, blocks=(), losses=()),
        in_block(measured_peak_bytes=0, samples_per_second=0.0),
        in_training(**dict.fromkeys(SUMS, MAX_SIZE)),
        in_block(last_unit=MAX_UNIT, batch_size=MAX_COUNT, predicted_peak_bytes=MAX_SIZE),
        in_machine(gpu_utilisation=1.0, gpu_celsius=1000.0, board_celsius=-100.0),
        replace(REPORT, device_class="x" * 128, agent_restarts=MAX_COUNT),
    ],
)
def test_report_comes_back(report: DeviceReport) -> None:
    assert passed_on(report) == report


def test_every_reading_of_the_full_report_differs_from_its_default() -> None:
    # Or the test above could not see that one is lost.
    for value in (REPORT, MACHINE, TRAINING, TRAINING.seconds, TRAINING.blocks[0]):
        for field in fields(value):
            assert getattr(value, field.name) != field.default or field.name == "connected"
    assert passed_on(replace(REPORT, connected=False)).connected is False


def test_training_reading_comes_back_from_bytes() -> None:
    assert training_from_bytes(training_to_proto(TRAINING).SerializeToString()) == TRAINING
    assert training_from_bytes(b"") == TrainingReading()


@pytest.mark.parametrize(
    "data", [b"\xff", b"\x0a\xff", b"garbage", training_to_proto(TRAINING).SerializeToString()[:-1]]
)
def test_bytes_that_are_no_reading_are_refused(data: bytes) -> None:
    with pytest.raises(WireError, match="cannot be decoded"):
        training_from_bytes(data)


WRONG: list[tuple[str, DeviceReport]] = [
    ("device_class", replace(REPORT, device_class="x" * 129)),
    ("device_class", replace(REPORT, device_class="two\nlines")),
    ("run", in_training(run="\x00")),
    ("block", in_block(first_unit=4, last_unit=3)),
    ("block.last_unit", in_block(last_unit=MAX_UNIT + 1)),
    ("block.batch_size", in_block(batch_size=0)),
    ("blocks", in_training(blocks=TRAINING.blocks[:1] * 2)),
    ("losses", in_training(losses=((MAX_UNIT + 1, 0.5),))),
    ("losses", in_training(losses=((3, 0.5), (3, 0.25)))),
    ("block.predicted_peak_bytes", in_block(predicted_peak_bytes=MAX_SIZE + 1)),
    ("block.measured_peak_bytes", in_block(measured_peak_bytes=MAX_SIZE + 1)),
    ("training_bytes", in_training(training_bytes=MAX_SIZE + 1)),
    ("budget_bytes", replace(REPORT, budget_bytes=MAX_SIZE + 1)),
    ("gpu_utilisation", in_machine(gpu_utilisation=1.01)),
    ("gpu_celsius", in_machine(gpu_celsius=1001.0)),
    ("board_celsius", in_machine(board_celsius=-101.0)),
    ("board_celsius", in_machine(board_celsius=math.nan)),
    *((name, in_machine(**{name: MAX_SIZE + 1})) for name in SIZES),
    *((name, in_training(**{name: MAX_SIZE + 1})) for name in SUMS),
    *(
        (name, in_machine(**{name: bad}))
        for name in ("gpu_utilisation", "gpu_watts", "board_watts")
        for bad in BAD_NUMBERS
    ),
    *(("block.samples_per_second", in_block(samples_per_second=bad)) for bad in BAD_NUMBERS),
    *(("loss", in_training(losses=((1, bad),))) for bad in BAD_NUMBERS),
    *(
        (f"{name}_seconds", in_training(seconds=replace(TRAINING.seconds, **{name: bad})))
        for name in ACTIVITIES
        for bad in BAD_NUMBERS
    ),
]


@pytest.mark.parametrize(("field", "report"), WRONG, ids=[f"{field}-{index}" for index, (field, _) in enumerate(WRONG)])
def test_reading_out_of_bounds_is_refused_on_both_sides(field: str, report: DeviceReport) -> None:
    with pytest.raises(WireError, match=rf"^{field}"):
        report_to_proto(report)
    with pytest.raises(WireError, match=rf"^{field}"):
        report_from_proto(forged(report))


def forged(report: DeviceReport) -> pb.DeviceReport:
    """The report as somebody writes it who checks nothing."""

    def copy(source: Any, target: Any, *names: str) -> None:
        for name in names:
            if getattr(source, name) is not None:
                setattr(target, name, getattr(source, name))

    message = pb.DeviceReport()
    copy(report, message, "device_class", "budget_bytes", "connected", "agent_restarts")
    copy(report.machine, message.machine, *(field.name for field in fields(MachineReading)))
    if report.training is not None:
        copy(report.training, message.training, "run", "round", "busy", "training_bytes", *SUMS)
        for block in report.training.blocks:
            copy(block, message.training.blocks.add(), *(field.name for field in fields(BlockReading)))
        for unit, loss in report.training.losses:
            message.training.losses.add(unit=unit, loss=loss)
        for name in ACTIVITIES:
            setattr(message.training, f"{name}_seconds", getattr(report.training.seconds, name))
    return message


def test_forger_writes_what_we_write() -> None:
    assert forged(REPORT) == report_to_proto(REPORT)


@pytest.mark.parametrize(
    "add",
    [
        lambda training, unit: training.blocks.add(first_unit=unit, last_unit=unit, batch_size=1),
        lambda training, unit: training.losses.add(unit=unit, loss=0.5),
    ],
)
def test_report_of_too_many_blocks_or_losses_is_refused(add: Callable[[pb.Training, int], object]) -> None:
    message = pb.DeviceReport()
    for unit in range(MAX_BLOCKS):
        add(message.training, unit)
    assert report_from_proto(message).training is not None
    add(message.training, MAX_BLOCKS)

    with pytest.raises(WireError, match=f"{MAX_BLOCKS} are allowed"):
        report_from_proto(message)
    with pytest.raises(WireError, match=f"{MAX_BLOCKS} are allowed"):
        training_from_bytes(message.training.SerializeToString())


def test_largest_honest_report_is_far_below_the_limit() -> None:
    blocks = tuple(replace(TRAINING.blocks[0], first_unit=unit, last_unit=unit) for unit in range(40))
    losses = tuple((unit, 1 / 3) for unit in range(40))

    data = report_to_proto(in_training(blocks=blocks, losses=losses)).SerializeToString()

    assert len(data) < MAX_REPORT_BYTES / 16
