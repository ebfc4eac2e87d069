"""The top-level messages between server and devices. Making or reading one that breaks a rule raises WireError."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeVar

from google.protobuf.message import DecodeError, Message

from neuroflux_fl.errors import WireError
from neuroflux_fl.plan import Plan
from neuroflux_fl.update_codec import PRECISIONS
from neuroflux_fl.wire import neuroflux_pb2 as pb
from neuroflux_fl.wire.checks import (
    check_address,
    check_count,
    check_distinct_units,
    check_number,
    check_range,
    check_size,
    check_text,
)
from neuroflux_fl.wire.part_codec import (
    block_from_proto,
    block_to_proto,
    exit_from_proto,
    to_proto,
    update_from_proto,
)
from neuroflux_fl.wire.parts import BlockReport, ExitScore, Seconds, UnitMemory, UnitUpdate
from neuroflux_fl.wire.plan_codec import check_plan, plan_from_proto, plan_to_proto

PROTOCOL_VERSION = 1
MAX_MESSAGE_BYTES = 1024**2
"""No honest message comes near: weights do not travel in these messages."""
PREFIX_NEEDED = "send the prefix with the task"
"""In the error of a device that lacks the frozen units before its task."""

_Proto = TypeVar("_Proto", bound=Message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """Device to server: the answer to a capability query."""

    device_class: str
    memory_budget_bytes: int | None
    """None stands for no limit."""
    train_examples: int
    validation_examples: int
    unit_memory: tuple[UnitMemory, ...] = ()
    prefix_version: str = ""
    """Version of the frozen prefix that the device holds; empty when it holds none."""
    holds_backprop: bool = False
    """The budget holds end-to-end backpropagation at a useful batch size."""
    metrics_address: str = ""
    """``HOST:PORT`` at which the device serves its metrics; empty where it does not."""

    def __post_init__(self) -> None:
        """Check every field; raises WireError."""
        check_text("device_class", self.device_class)
        if self.memory_budget_bytes is not None:
            check_size("memory_budget_bytes", self.memory_budget_bytes)
        check_size("train_examples", self.train_examples)
        check_size("validation_examples", self.validation_examples)
        check_distinct_units("unit_memory", (line.unit for line in self.unit_memory))
        check_text("prefix_version", self.prefix_version)
        check_address("metrics_address", self.metrics_address)

    def to_bytes(self) -> bytes:
        """Encode for the network."""
        lines = [to_proto(line, pb.UnitMemory) for line in self.unit_memory]
        return _encode(to_proto(self, pb.Capabilities, unit_memory=lines))

    @classmethod
    def from_bytes(cls, data: bytes) -> Capabilities:
        """Decode and check; raises WireError."""
        message = _decode(pb.Capabilities, data)
        return cls(
            device_class=message.device_class,
            memory_budget_bytes=message.memory_budget_bytes if message.HasField("memory_budget_bytes") else None,
            train_examples=message.train_examples,
            validation_examples=message.validation_examples,
            unit_memory=tuple(
                UnitMemory(unit=line.unit, fixed_bytes=line.fixed_bytes, bytes_per_sample=line.bytes_per_sample)
                for line in message.unit_memory
            ),
            prefix_version=message.prefix_version,
            holds_backprop=message.holds_backprop,
            metrics_address=message.metrics_address,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainTask:
    """Server to device: train the units of a stage."""

    round: int
    first_unit: int
    last_unit: int
    epochs: int
    first_epoch: int = 0
    """Passes over the data that earlier rounds made: views and orders go on from there."""
    deadline_seconds: float = 0.0
    """0 stands for no deadline."""
    prefix_version: str = ""
    sends_prefix: bool = False
    """The prefix's arrays are in this message; otherwise the device must hold ``prefix_version`` already."""
    learning_rate_scale: float = 1.0
    update_precision: str = "float32"
    """What trained units are to be sent back in."""

    def __post_init__(self) -> None:
        """Check every field; raises WireError."""
        check_count("round", self.round)
        check_range("stage", self.first_unit, self.last_unit)
        check_count("epochs", self.epochs, least=1)
        check_count("first_epoch", self.first_epoch)
        check_number("deadline_seconds", self.deadline_seconds)
        check_text("prefix_version", self.prefix_version)
        check_number("learning_rate_scale", self.learning_rate_scale, positive=True)
        if self.update_precision not in PRECISIONS:
            raise WireError(f"update_precision is {self.update_precision!r}: must be one of {', '.join(PRECISIONS)}.")

    def to_bytes(self) -> bytes:
        """Encode for the network."""
        return _encode(to_proto(self, pb.TrainTask))

    @classmethod
    def from_bytes(cls, data: bytes) -> TrainTask:
        """Decode and check; raises WireError."""
        message = _decode(pb.TrainTask, data)
        return cls(
            round=message.round,
            first_unit=message.first_unit,
            last_unit=message.last_unit,
            epochs=message.epochs,
            first_epoch=message.first_epoch,
            deadline_seconds=message.deadline_seconds,
            prefix_version=message.prefix_version,
            sends_prefix=message.sends_prefix,
            learning_rate_scale=message.learning_rate_scale,
            update_precision=message.update_precision,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainReport:
    """Device to server: what was trained, beside one packed array for each entry of ``updates``."""

    round: int
    plan: Plan
    updates: tuple[UnitUpdate, ...]
    exits: tuple[ExitScore, ...] = ()
    """Validation scores of the exits as received, before training."""
    blocks: tuple[BlockReport, ...] = ()
    seconds: Seconds = field(default_factory=Seconds)
    cache_hits: int = 0
    cache_bytes: int = 0
    cache_refusals: int = 0
    """Activations that quota or disk had no room for."""
    cache_writes: int = 0
    """Sets of activations written."""
    cache_held_bytes: int = 0
    """Activations on the disk when the task is done; ``cache_bytes`` are those written by it."""
    prefix_version: str = ""
    deadline_reached: bool = False
    """The deadline cut training short; ``updates`` holds the finished blocks."""
    update_error: float = 0.0
    """Largest of the units' coding errors, as a share of what training moved."""

    def __post_init__(self) -> None:
        """Check every field; raises WireError."""
        check_count("round", self.round)
        check_plan(self.plan)
        check_distinct_units("updates", (update.unit for update in self.updates))
        check_distinct_units("exits", (score.unit for score in self.exits))
        check_size("cache_hits", self.cache_hits)
        check_size("cache_bytes", self.cache_bytes)
        check_count("cache_refusals", self.cache_refusals)
        check_count("cache_writes", self.cache_writes)
        check_size("cache_held_bytes", self.cache_held_bytes)
        check_number("update_error", self.update_error)
        check_text("prefix_version", self.prefix_version)

    def to_bytes(self) -> bytes:
        """Encode for the network."""
        return _encode(
            to_proto(
                self,
                pb.TrainReport,
                plan=plan_to_proto(self.plan),
                updates=[to_proto(update, pb.UnitUpdate) for update in self.updates],
                exits=[to_proto(score, pb.ExitScore) for score in self.exits],
                blocks=[block_to_proto(block) for block in self.blocks],
                seconds=to_proto(self.seconds, pb.Seconds),
            )
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> TrainReport:
        """Decode and check; raises WireError."""
        message = _decode(pb.TrainReport, data)
        return cls(
            round=message.round,
            plan=plan_from_proto(message.plan),
            updates=tuple(update_from_proto(update) for update in message.updates),
            exits=tuple(exit_from_proto(score) for score in message.exits),
            blocks=tuple(block_from_proto(block) for block in message.blocks),
            seconds=Seconds(
                profile=message.seconds.profile,
                train=message.seconds.train,
                cache=message.seconds.cache,
                evaluate=message.seconds.evaluate,
            ),
            cache_hits=message.cache_hits,
            cache_bytes=message.cache_bytes,
            cache_refusals=message.cache_refusals,
            cache_writes=message.cache_writes,
            cache_held_bytes=message.cache_held_bytes,
            update_error=message.update_error,
            prefix_version=message.prefix_version,
            deadline_reached=message.deadline_reached,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateTask:
    """Server to device: score exits on the validation split."""

    round: int
    first_unit: int
    last_unit: int
    prefix_version: str = ""
    sends_prefix: bool = False
    """The prefix's arrays are in this message; otherwise the device must hold ``prefix_version`` already."""

    def __post_init__(self) -> None:
        """Check every field; raises WireError."""
        check_count("round", self.round)
        check_range("exits", self.first_unit, self.last_unit)
        check_text("prefix_version", self.prefix_version)

    def to_bytes(self) -> bytes:
        """Encode for the network."""
        return _encode(to_proto(self, pb.EvaluateTask))

    @classmethod
    def from_bytes(cls, data: bytes) -> EvaluateTask:
        """Decode and check; raises WireError."""
        message = _decode(pb.EvaluateTask, data)
        return cls(
            round=message.round,
            first_unit=message.first_unit,
            last_unit=message.last_unit,
            prefix_version=message.prefix_version,
            sends_prefix=message.sends_prefix,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateReport:
    """Device to server: the answer to an EvaluateTask."""

    exits: tuple[ExitScore, ...]
    seconds: float

    def __post_init__(self) -> None:
        """Check every field; raises WireError."""
        check_distinct_units("exits", (score.unit for score in self.exits))
        check_number("seconds", self.seconds)

    def to_bytes(self) -> bytes:
        """Encode for the network."""
        scores = [to_proto(score, pb.ExitScore) for score in self.exits]
        return _encode(to_proto(self, pb.EvaluateReport, exits=scores))

    @classmethod
    def from_bytes(cls, data: bytes) -> EvaluateReport:
        """Decode and check; raises WireError."""
        message = _decode(pb.EvaluateReport, data)
        return cls(exits=tuple(exit_from_proto(score) for score in message.exits), seconds=message.seconds)


def _encode(message: Any) -> bytes:
    message.protocol_version = PROTOCOL_VERSION
    data: bytes = message.SerializeToString(deterministic=True)
    if len(data) > MAX_MESSAGE_BYTES:
        raise WireError(f"{type(message).__name__} has {len(data)} bytes; the protocol allows {MAX_MESSAGE_BYTES}.")
    return data


def _decode(proto: type[_Proto], data: bytes) -> _Proto:
    name = proto.DESCRIPTOR.name
    if len(data) > MAX_MESSAGE_BYTES:
        raise WireError(f"{name} has {len(data)} bytes; the protocol allows {MAX_MESSAGE_BYTES}.")
    message = proto()
    try:
        message.ParseFromString(data)
    except DecodeError:
        raise WireError(f"{name} of {len(data)} bytes does not parse as a protobuf message.") from None
    version = message.protocol_version  # type: ignore[attr-defined]
    if version != PROTOCOL_VERSION:
        raise WireError(
            f"{name} has protocol version {version}, this side speaks {PROTOCOL_VERSION}: "
            "install the same release on server and devices."
        )
    return message
