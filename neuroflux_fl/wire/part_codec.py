"""The parts of wire messages to protobuf and back."""

from __future__ import annotations

from typing import Any, TypeVar

from google.protobuf.message import Message

from neuroflux_fl.wire import neuroflux_pb2 as pb
from neuroflux_fl.wire.parts import BlockReport, ExitScore, UnitUpdate

_Proto = TypeVar("_Proto", bound=Message)


def to_proto(value: Any, proto: type[_Proto], **parts: Any) -> _Proto:
    """Copy the fields of a dataclass into the protobuf message with the same field names; ``parts`` are given."""
    fields = {name: parts.get(name, getattr(value, name)) for name in value.__dataclass_fields__}
    return proto(**fields)


def update_from_proto(message: pb.UnitUpdate) -> UnitUpdate:
    """Decode and check; raises WireError."""
    return UnitUpdate(
        unit=message.unit,
        examples=message.examples,
        steps=message.steps,
        effective_steps=message.effective_steps,
        has_head=message.has_head,
    )


def exit_from_proto(message: pb.ExitScore) -> ExitScore:
    """Decode and check; raises WireError."""
    return ExitScore(unit=message.unit, correct=message.correct, total=message.total)


def block_to_proto(block: BlockReport) -> pb.BlockReport:
    """Encode."""
    losses = [pb.UnitLoss(unit=unit, loss=loss) for unit, loss in block.losses]
    return to_proto(block, pb.BlockReport, losses=losses)


def block_from_proto(message: pb.BlockReport) -> BlockReport:
    """Decode and check; raises WireError."""
    return BlockReport(
        first_unit=message.first_unit,
        last_unit=message.last_unit,
        batch_size=message.batch_size,
        predicted_peak_bytes=message.predicted_peak_bytes,
        measured_peak_bytes=message.measured_peak_bytes,
        samples=message.samples,
        seconds=message.seconds,
        oom_retries=message.oom_retries,
        final_loss=message.final_loss,
        losses=tuple((loss.unit, loss.loss) for loss in message.losses),
    )
