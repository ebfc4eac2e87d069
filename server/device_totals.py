"""What a device has done in a run so far: kept with the fleet's state, so that a resumed run counts on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from neuroflux_fl.wire import Capabilities, TrainReport


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceTotals:
    """Sums over the run, unless said otherwise."""

    node_id: int
    device_class: str = ""
    budget_bytes: int | None = None
    train_examples: int = 0
    rounds: int = 0
    """Training tasks answered."""
    bytes_up: int = 0
    bytes_down: int = 0
    samples: int = 0
    """Samples processed, passes counted: one that goes through several blocks counts once."""
    train_seconds: float = 0.0
    device_seconds: float = 0.0
    """All that the device spent: profile, train, cache, evaluate."""
    predicted_peak_bytes: int = 0
    """The largest so far."""
    measured_peak_bytes: int = 0
    """The largest so far; 0 where it could not be measured."""
    blocks: tuple[tuple[int, int, int], ...] = ()
    """Every block that it has trained: first unit, last unit, latest batch size."""
    untrained_units: tuple[int, ...] = ()
    """Units of the last task that its budget does not hold."""
    out_of_memory_retries: int = 0
    cache_bytes: int = 0
    """Activations written to its disk."""
    cache_hits: int = 0
    cache_refusals: int = 0
    """Activations that its quota or its disk had no room for, and that were computed anew for every batch."""
    deadlines_reached: int = 0
    """Tasks that the deadline cut short."""
    update_error: float = 0.0
    """The largest coding error of an update so far, as a share of what training moved."""

    def described(self, capabilities: Capabilities) -> DeviceTotals:
        """With what the device says of itself."""
        return replace(
            self,
            device_class=capabilities.device_class,
            budget_bytes=capabilities.memory_budget_bytes,
            train_examples=capabilities.train_examples,
        )

    def sent(self, size: int) -> DeviceTotals:
        """With ``size`` more bytes sent to the device."""
        return replace(self, bytes_down=self.bytes_down + size)

    def evaluated(self, seconds: float, size: int) -> DeviceTotals:
        """With one scoring of exits, answered in ``size`` bytes."""
        return replace(self, device_seconds=self.device_seconds + seconds, bytes_up=self.bytes_up + size)

    def trained(self, report: TrainReport, size: int) -> DeviceTotals:
        """With one round's report, which came in ``size`` bytes."""
        seconds = report.seconds
        blocks = {(first, last): batch for first, last, batch in self.blocks}
        blocks |= {(block.first_unit, block.last_unit): block.batch_size for block in report.blocks}
        return replace(
            self,
            rounds=self.rounds + 1,
            bytes_up=self.bytes_up + size,
            samples=self.samples + max((block.samples for block in report.blocks), default=0),
            train_seconds=self.train_seconds + sum(block.seconds for block in report.blocks),
            device_seconds=self.device_seconds + seconds.profile + seconds.train + seconds.cache + seconds.evaluate,
            predicted_peak_bytes=max(self.predicted_peak_bytes, *(b.predicted_peak_bytes for b in report.blocks), 0),
            measured_peak_bytes=max(self.measured_peak_bytes, *(b.measured_peak_bytes for b in report.blocks), 0),
            blocks=tuple((first, last, batch) for (first, last), batch in sorted(blocks.items())),
            untrained_units=report.plan.untrained_units,
            out_of_memory_retries=self.out_of_memory_retries + sum(block.oom_retries for block in report.blocks),
            cache_bytes=self.cache_bytes + report.cache_bytes,
            cache_hits=self.cache_hits + report.cache_hits,
            cache_refusals=self.cache_refusals + report.cache_refusals,
            deadlines_reached=self.deadlines_reached + report.deadline_reached,
            update_error=max(self.update_error, report.update_error),
        )

    @property
    def samples_per_second(self) -> float:
        """Mean training speed; 0 before the first block."""
        return self.samples / self.train_seconds if self.train_seconds else 0.0

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> DeviceTotals:
        """Read what ``dataclasses.asdict`` and JSON have made of one; raises TypeError on missing or unknown fields."""
        blocks = tuple((first, last, batch) for first, last, batch in fields["blocks"])
        return cls(**{**fields, "blocks": blocks, "untrained_units": tuple(fields["untrained_units"])})
