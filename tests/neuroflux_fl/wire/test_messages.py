"""Messages survive the way over the network, and broken ones are refused with one clear line."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from neuroflux_fl.errors import WireError
from neuroflux_fl.plan import Block, Plan, Window
from neuroflux_fl.wire import (
    MAX_MESSAGE_BYTES,
    BlockReport,
    Capabilities,
    EvaluateReport,
    EvaluateTask,
    ExitScore,
    Seconds,
    TrainReport,
    TrainTask,
    UnitMemory,
    UnitUpdate,
)
from neuroflux_fl.wire import neuroflux_pb2 as pb
from neuroflux_fl.wire.plan_codec import plan_from_proto

TASK = TrainTask(
    round=3,
    first_unit=2,
    last_unit=4,
    epochs=1,
    first_epoch=3,
    deadline_seconds=12.5,
    prefix_version="sha:ab",
    sends_prefix=True,
    learning_rate_scale=0.5,
)


def make_block(*windows: tuple[int, int]) -> Block:
    return Block(
        windows=tuple(Window(first_unit=first, last_unit=last) for first, last in windows),
        batch_size=8,
        learning_rate=0.1,
        predicted_peak_bytes=2**33,
        predicted_seconds_per_sample=1e-3,
    )


def make_plan(*blocks: Block, untrained: tuple[int, ...] = ()) -> Plan:
    return Plan(budget_bytes=None, blocks=blocks, untrained_units=untrained)


SLICED_BLOCK = dataclasses.replace(
    make_block((5, 5)), windows=(Window(first_unit=5, last_unit=5, updates="sliced-bfloat16"),)
)

REPORT = TrainReport(
    round=3,
    plan=Plan(budget_bytes=2**28, blocks=(make_block((1, 1), (2, 3)), SLICED_BLOCK), untrained_units=(0, 4)),
    updates=(UnitUpdate(unit=1, examples=100, steps=13, effective_steps=40.5, has_head=True),),
    exits=(ExitScore(unit=1, correct=7, total=10), ExitScore(unit=3, correct=10, total=10)),
    blocks=(
        BlockReport(
            first_unit=1,
            last_unit=3,
            batch_size=8,
            predicted_peak_bytes=10,
            measured_peak_bytes=9,
            samples=100,
            seconds=1.5,
            oom_retries=1,
            final_loss=0.25,
            losses=((1, 0.75), (3, 0.25)),
        ),
    ),
    seconds=Seconds(profile=0.5, train=1.0, cache=0.25, evaluate=0.125),
    cache_hits=4,
    cache_bytes=2**35,
    cache_refusals=2,
    cache_writes=5,
    cache_held_bytes=2**34,
    prefix_version="sha:ab",
    deadline_reached=True,
)
CAPABILITIES = Capabilities(
    device_class="jetson-nano",
    memory_budget_bytes=2**28,
    train_examples=500,
    validation_examples=50,
    unit_memory=(
        UnitMemory(unit=0, fixed_bytes=300, bytes_per_sample=1548),
        UnitMemory(unit=1, fixed_bytes=1, bytes_per_sample=2),
    ),
    prefix_version="sha:cd",
    holds_backprop=True,
    metrics_address="192.168.1.7:9465",
)
MESSAGES: tuple[Any, ...] = (
    TASK,
    REPORT,
    CAPABILITIES,
    dataclasses.replace(CAPABILITIES, memory_budget_bytes=None, unit_memory=()),
    EvaluateTask(round=1, first_unit=2, last_unit=7, prefix_version="abc", sends_prefix=True),
    EvaluateReport(exits=REPORT.exits, seconds=0.5),
)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_message_survives_the_network(message: Any) -> None:
    assert type(message).from_bytes(message.to_bytes()) == message


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_other_protocol_version_is_refused(message: Any) -> None:
    proto = getattr(pb, type(message).__name__).FromString(message.to_bytes())
    proto.protocol_version = 2

    with pytest.raises(WireError, match="protocol version 2, this side speaks 1"):
        type(message).from_bytes(proto.SerializeToString())


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_bytes_with_a_broken_end_do_not_parse(message: Any) -> None:
    with pytest.raises(WireError, match="does not parse"):
        type(message).from_bytes(message.to_bytes() + b"\xff")


def test_empty_message_is_refused() -> None:
    with pytest.raises(WireError, match="version 0"):
        EvaluateTask.from_bytes(b"")


def test_oversize_message_is_refused_before_parsing() -> None:
    with pytest.raises(WireError, match=f"allows {MAX_MESSAGE_BYTES}"):
        TrainReport.from_bytes(bytes(MAX_MESSAGE_BYTES + 1))


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"first_unit": 5}, "ends at unit 4, before its first unit 5"),
        ({"epochs": 0}, "epochs is 0: must lie between 1"),
        ({"round": -1}, "round is -1"),
        ({"first_epoch": -1}, "first_epoch is -1"),
        ({"last_unit": 10_000}, "stage.last_unit is 10000"),
        ({"deadline_seconds": -0.5}, "deadline_seconds is -0.5"),
        ({"deadline_seconds": math.nan}, "deadline_seconds is nan"),
        ({"learning_rate_scale": 0.0}, "above 0"),
        ({"learning_rate_scale": math.inf}, "learning_rate_scale is inf"),
        ({"prefix_version": "a\nb"}, "printable"),
        ({"prefix_version": "a" * 129}, "it has 129"),
    ],
)
def test_task_that_breaks_a_rule_cannot_be_made(fields: dict[str, Any], complaint: str) -> None:
    with pytest.raises(WireError, match=complaint) as caught:
        dataclasses.replace(TASK, **fields)

    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("plan", "complaint"),
    [
        (make_plan(make_block((1, 1), (3, 3))), "at unit 3 where unit 2 must follow"),
        (make_plan(make_block((1, 2), (2, 3))), "at unit 2 where unit 3 must follow"),
        (make_plan(make_block((2, 1))), "before its first unit"),
        (make_plan(make_block()), "has no windows"),
        (make_plan(make_block((1, 3)), make_block((3, 4))), "unit 3 is in a block before"),
        (make_plan(make_block((1, 3)), untrained=(2,)), "which is in a block"),
        (make_plan(untrained=(2, 2)), "lists unit 2 twice"),
        (make_plan(dataclasses.replace(make_block((0, 0)), batch_size=0)), "batch_size is 0"),
        (make_plan(dataclasses.replace(make_block((0, 0)), learning_rate=math.nan)), "learning_rate is nan"),
    ],
)
def test_report_with_a_broken_plan_is_refused(plan: Plan, complaint: str) -> None:
    with pytest.raises(WireError, match=complaint):
        dataclasses.replace(REPORT, plan=plan)


def test_rules_hold_for_bytes_that_another_program_wrote() -> None:
    # Prepare: a report that our own dataclasses would refuse to make.
    proto = pb.TrainReport.FromString(REPORT.to_bytes())
    proto.updates[0].effective_steps = math.nan

    with pytest.raises(WireError, match=r"update\.effective_steps is nan"):
        TrainReport.from_bytes(proto.SerializeToString())


def test_report_may_not_update_a_unit_twice() -> None:
    with pytest.raises(WireError, match="updates lists unit 1 twice"):
        dataclasses.replace(REPORT, updates=REPORT.updates * 2)


def test_exit_with_more_correct_than_all_is_refused() -> None:
    with pytest.raises(WireError, match=r"exit\.correct is 11"):
        ExitScore(unit=0, correct=11, total=10)


@pytest.mark.parametrize(
    ("losses", "complaint"),
    [
        (((4, 1.0),), "block.losses has unit 4, outside 1 to 3"),
        (((1, 1.0), (1, 2.0)), "block.losses lists unit 1 twice"),
        (((1, math.nan),), "block.losses is nan"),
    ],
)
def test_losses_are_of_the_blocks_units(losses: tuple[tuple[int, float], ...], complaint: str) -> None:
    with pytest.raises(WireError, match=complaint):
        dataclasses.replace(REPORT.blocks[0], losses=losses)


@pytest.mark.parametrize("address", ["", "pi.local:1", "[fe80::1]:9465", "10.0.0.1:65535"])
def test_where_a_device_serves_its_metrics(address: str) -> None:
    message = dataclasses.replace(CAPABILITIES, metrics_address=address)

    assert Capabilities.from_bytes(message.to_bytes()).metrics_address == address


@pytest.mark.parametrize(
    "address", ["pi", "pi:0", "pi:65536", ":9", "a/b:9", "http://pi:9", "fe80::1:9", "pi:9/x", "p i:9"]
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(WireError, match="must be HOST:PORT, or empty"):
        dataclasses.replace(CAPABILITIES, metrics_address=address)


def test_message_bytes_are_reproducible() -> None:
    assert REPORT.to_bytes() == dataclasses.replace(REPORT).to_bytes()


def test_unknown_updates_in_a_plan_are_refused() -> None:
    message = pb.Plan(blocks=[pb.Block(windows=[pb.Window(first_unit=0, last_unit=0, updates="backwards")])])
    with pytest.raises(WireError, match="updates 'backwards'"):
        plan_from_proto(message)
    older = pb.Window(first_unit=0, last_unit=0)
    message = pb.Plan(blocks=[pb.Block(windows=[older], batch_size=2, learning_rate=0.1)])
    assert plan_from_proto(message).blocks[0].windows[0].updates == "whole"
