"""The repeated parts of wire messages: plain values that check themselves when made."""

from __future__ import annotations

from dataclasses import dataclass

from neuroflux_fl.errors import WireError
from neuroflux_fl.wire.checks import (
    check_count,
    check_distinct_units,
    check_number,
    check_range,
    check_size,
    check_unit,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitMemory:
    """Training memory of one unit with its head: ``fixed_bytes + bytes_per_sample * batch``."""

    unit: int
    fixed_bytes: int
    bytes_per_sample: int

    def __post_init__(self) -> None:
        """Check every field; raises WireError."""
        check_unit("unit_memory.unit", self.unit)
        check_size("unit_memory.fixed_bytes", self.fixed_bytes)
        check_size("unit_memory.bytes_per_sample", self.bytes_per_sample)


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitUpdate:
    """What one packed array of a TrainReport stands for."""

    unit: int
    examples: int
    """Distinct training examples; the weight in aggregation."""
    steps: int
    effective_steps: float
    """Local steps as FedNova counts them, momentum included."""
    has_head: bool

    def __post_init__(self) -> None:
        """Check every field; raises WireError."""
        check_unit("update.unit", self.unit)
        check_size("update.examples", self.examples)
        check_size("update.steps", self.steps)
        check_number("update.effective_steps", self.effective_steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitScore:
    """Correct predictions of one exit on a device's validation split."""

    unit: int
    correct: int
    total: int

    def __post_init__(self) -> None:
        """Check every field; raises WireError."""
        check_unit("exit.unit", self.unit)
        check_size("exit.correct", self.correct)
        check_size("exit.total", self.total)
        if self.correct > self.total:
            raise WireError(f"exit.correct is {self.correct}, above exit.total, which is {self.total}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockReport:
    """How the training of one block went."""

    first_unit: int
    last_unit: int
    batch_size: int
    predicted_peak_bytes: int
    measured_peak_bytes: int
    """0 stands for not measured."""
    samples: int
    """Samples seen, repeated passes included."""
    seconds: float
    oom_retries: int
    final_loss: float
    """Of the block's last window."""
    losses: tuple[tuple[int, float], ...] = ()
    """Unit, and the mean loss at its head over the last pass, for each window's end."""

    def __post_init__(self) -> None:
        """Check every field; raises WireError."""
        check_range("block", self.first_unit, self.last_unit)
        check_count("block.batch_size", self.batch_size, least=1)
        check_size("block.predicted_peak_bytes", self.predicted_peak_bytes)
        check_size("block.measured_peak_bytes", self.measured_peak_bytes)
        check_size("block.samples", self.samples)
        check_number("block.seconds", self.seconds)
        check_count("block.oom_retries", self.oom_retries)
        check_number("block.final_loss", self.final_loss)
        check_distinct_units("block.losses", (unit for unit, _ in self.losses))
        for unit, loss in self.losses:
            if not self.first_unit <= unit <= self.last_unit:
                raise WireError(f"block.losses has unit {unit}, outside {self.first_unit} to {self.last_unit}.")
            check_number("block.losses", loss)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seconds:
    """Where a device's wall-clock time of one task went."""

    profile: float = 0.0
    train: float = 0.0
    cache: float = 0.0
    evaluate: float = 0.0

    def __post_init__(self) -> None:
        """Check every field; raises WireError."""
        check_number("seconds.profile", self.profile)
        check_number("seconds.train", self.train)
        check_number("seconds.cache", self.cache)
        check_number("seconds.evaluate", self.evaluate)
