"""What a device has done in a run so far: kept with the fleet's state, so that a resumed run counts on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from neuroflux_fl.wire import BlockReport, Capabilities, TrainReport


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockTotals:
    """What a device has done with one block, over the run."""

    first_unit: int
    last_unit: int
    batch_size: int
    """The latest, and so is ``loss``."""
    predicted_peak_bytes: int = 0
    """The largest so far."""
    measured_peak_bytes: int = 0
    """The largest so far; 0 where it could not be measured."""
    samples: int = 0
    seconds: float = 0.0
    loss: float = 0.0
    """Mean local loss of the last pass, at the block's end."""

    def trained(self, report: BlockReport) -> BlockTotals:
        """With one more training of the block."""
        return replace(
            self,
            batch_size=report.batch_size,
            predicted_peak_bytes=max(self.predicted_peak_bytes, report.predicted_peak_bytes),
            measured_peak_bytes=max(self.measured_peak_bytes, report.measured_peak_bytes),
            samples=self.samples + report.samples,
            seconds=self.seconds + report.seconds,
            loss=report.final_loss,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceTotals:
    """Sums over the run, unless said otherwise."""

    node_id: int
    device_class: str = ""
    budget_bytes: int | None = None
    train_examples: int = 0
    metrics_address: str = ""
    """``HOST:PORT`` at which it says that it serves metrics; empty where it does not."""
    rounds: int = 0
    """Training tasks answered."""
    evaluations: int = 0
    """Scorings answered, those within training tasks not counted."""
    last_round: int = 0
    """Round of the last training task answered."""
    bytes_up: int = 0
    bytes_down: int = 0
    samples: int = 0
    """Samples processed, passes counted: one that goes through several blocks counts once."""
    train_seconds: float = 0.0
    device_seconds: float = 0.0
    """All that the device spent: profile, train, cache, evaluate."""
    profile_seconds: float = 0.0
    """Of ``device_seconds``, and so are the next two."""
    cache_seconds: float = 0.0
    evaluate_seconds: float = 0.0
    predicted_peak_bytes: int = 0
    """The largest so far."""
    measured_peak_bytes: int = 0
    """The largest so far; 0 where it could not be measured."""
    blocks: tuple[BlockTotals, ...] = ()
    """Every block that it has trained, in the order of their units."""
    losses: tuple[tuple[int, float], ...] = ()
    """Unit, and the latest mean local loss at its head, in the order of the units."""
    untrained_units: tuple[int, ...] = ()
    """Units of the last task that its budget does not hold."""
    out_of_memory_retries: int = 0
    cache_bytes: int = 0
    """Activations written to its disk."""
    cache_writes: int = 0
    """Sets of them."""
    cache_held_bytes: int = 0
    """Activations on its disk after the last task."""
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
            metrics_address=capabilities.metrics_address,
        )

    def sent(self, size: int) -> DeviceTotals:
        """With ``size`` more bytes sent to the device."""
        return replace(self, bytes_down=self.bytes_down + size)

    def evaluated(self, seconds: float, size: int) -> DeviceTotals:
        """With one scoring of exits, answered in ``size`` bytes."""
        return replace(
            self,
            evaluations=self.evaluations + 1,
            device_seconds=self.device_seconds + seconds,
            evaluate_seconds=self.evaluate_seconds + seconds,
            bytes_up=self.bytes_up + size,
        )

    def trained(self, report: TrainReport, size: int) -> DeviceTotals:
        """With one round's report, which came in ``size`` bytes."""
        seconds = report.seconds
        blocks = {(block.first_unit, block.last_unit): block for block in self.blocks}
        for block in report.blocks:
            key = block.first_unit, block.last_unit
            before = blocks.get(key, BlockTotals(first_unit=key[0], last_unit=key[1], batch_size=block.batch_size))
            blocks[key] = before.trained(block)
        losses = dict(self.losses) | {unit: loss for block in report.blocks for unit, loss in block.losses}
        return replace(
            self,
            rounds=self.rounds + 1,
            last_round=max(self.last_round, report.round),
            bytes_up=self.bytes_up + size,
            samples=self.samples + samples_of(report),
            train_seconds=self.train_seconds + sum(block.seconds for block in report.blocks),
            device_seconds=self.device_seconds + seconds_of(report),
            profile_seconds=self.profile_seconds + seconds.profile,
            cache_seconds=self.cache_seconds + seconds.cache,
            evaluate_seconds=self.evaluate_seconds + seconds.evaluate,
            predicted_peak_bytes=max(self.predicted_peak_bytes, *(b.predicted_peak_bytes for b in report.blocks), 0),
            measured_peak_bytes=max(self.measured_peak_bytes, *(b.measured_peak_bytes for b in report.blocks), 0),
            blocks=tuple(blocks[key] for key in sorted(blocks)),
            losses=tuple(sorted(losses.items())),
            untrained_units=report.plan.untrained_units,
            out_of_memory_retries=self.out_of_memory_retries + sum(block.oom_retries for block in report.blocks),
            cache_bytes=self.cache_bytes + report.cache_bytes,
            cache_writes=self.cache_writes + report.cache_writes,
            cache_held_bytes=report.cache_held_bytes,
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
        return cls(
            **{
                **fields,
                "blocks": tuple(BlockTotals(**block) for block in fields["blocks"]),
                "losses": tuple((unit, loss) for unit, loss in fields["losses"]),
                "untrained_units": tuple(fields["untrained_units"]),
            }
        )


def samples_of(report: TrainReport) -> int:
    """Samples that a training task processed, passes counted; one that went through several blocks counts once."""
    return max((block.samples for block in report.blocks), default=0)


def seconds_of(report: TrainReport) -> float:
    """All that a device spent on a training task."""
    seconds = report.seconds
    return seconds.profile + seconds.train + seconds.cache + seconds.evaluate
