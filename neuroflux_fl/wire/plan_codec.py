"""Plans to and from protobuf, with the rules that a plan from the network must obey."""

from __future__ import annotations

from neuroflux_fl.errors import WireError
from neuroflux_fl.plan import UPDATES, WHOLE, Block, Plan, Window
from neuroflux_fl.wire import neuroflux_pb2 as pb
from neuroflux_fl.wire.checks import check_count, check_distinct_units, check_number, check_range, check_size


def check_plan(plan: Plan) -> None:
    """Raise WireError unless blocks follow the unit chain and the windows of each block touch one another."""
    if plan.budget_bytes is not None:
        check_size("plan.budget_bytes", plan.budget_bytes)
    check_distinct_units("plan.untrained_units", plan.untrained_units)
    end = -1
    for index, block in enumerate(plan.blocks):
        _check_block(f"plan.blocks[{index}]", block)
        if block.first_unit <= end:
            raise WireError(f"plan.blocks[{index}] starts at unit {block.first_unit}; unit {end} is in a block before.")
        end = block.last_unit
    for unit in plan.untrained_units:
        if plan.block_of(unit) is not None:
            raise WireError(f"plan.untrained_units lists unit {unit}, which is in a block.")


def plan_to_proto(plan: Plan) -> pb.Plan:
    """Expects a checked plan."""
    return pb.Plan(
        budget_bytes=plan.budget_bytes,
        blocks=[_block_to_proto(block) for block in plan.blocks],
        untrained_units=plan.untrained_units,
    )


def plan_from_proto(message: pb.Plan) -> Plan:
    """The plan as sent; the caller checks it."""
    return Plan(
        budget_bytes=message.budget_bytes if message.HasField("budget_bytes") else None,
        blocks=tuple(_block_from_proto(block) for block in message.blocks),
        untrained_units=tuple(message.untrained_units),
    )


def _check_block(field: str, block: Block) -> None:
    if not block.windows:
        raise WireError(f"{field} has no windows: a block trains at least one.")
    expected = block.windows[0].first_unit
    for window in block.windows:
        check_range(f"{field} window", window.first_unit, window.last_unit)
        if window.first_unit != expected:
            raise WireError(f"{field} has a window at unit {window.first_unit} where unit {expected} must follow.")
        expected = window.last_unit + 1
    check_count(f"{field}.batch_size", block.batch_size, least=1)
    check_number(f"{field}.learning_rate", block.learning_rate, positive=True)
    check_size(f"{field}.predicted_peak_bytes", block.predicted_peak_bytes)
    check_number(f"{field}.predicted_seconds_per_sample", block.predicted_seconds_per_sample)


def _block_to_proto(block: Block) -> pb.Block:
    return pb.Block(
        windows=[
            pb.Window(first_unit=window.first_unit, last_unit=window.last_unit, updates=window.updates)
            for window in block.windows
        ],
        batch_size=block.batch_size,
        learning_rate=block.learning_rate,
        predicted_peak_bytes=block.predicted_peak_bytes,
        predicted_seconds_per_sample=block.predicted_seconds_per_sample,
    )


def _block_from_proto(message: pb.Block) -> Block:
    return Block(
        windows=tuple(_window_from_proto(window) for window in message.windows),
        batch_size=message.batch_size,
        learning_rate=message.learning_rate,
        predicted_peak_bytes=message.predicted_peak_bytes,
        predicted_seconds_per_sample=message.predicted_seconds_per_sample,
    )


def _window_from_proto(message: pb.Window) -> Window:
    updates = message.updates or WHOLE
    if updates not in UPDATES:
        raise WireError(f"plan has a window with updates {updates!r}: choose one of {', '.join(UPDATES)}.")
    return Window(first_unit=message.first_unit, last_unit=message.last_unit, updates=updates)
