"""A device's work as parts of its report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from neuroflux_fl.block_training import BlockResult
from neuroflux_fl.device_report import BlockReading
from neuroflux_fl.device_training import DeviceTrainer
from neuroflux_fl.evaluation import Score
from neuroflux_fl.plan import Plan
from neuroflux_fl.training_monitor import finite_loss
from neuroflux_fl.wire import BlockReport, ExitScore, Seconds, TrainReport, UnitUpdate


def with_block(report: TrainReport, result: BlockResult, examples: int) -> TrainReport:
    """The report after one more block, trained on ``examples`` images."""
    return replace(
        report,
        updates=(*report.updates, *_unit_updates(result, examples)),
        blocks=(*report.blocks, _block_report(result)),
    )


def with_costs(report: TrainReport, trainer: DeviceTrainer, earlier: TrainReport | None) -> TrainReport:
    """The report with what ``trainer`` has used of time and cache, on top of an ``earlier`` attempt's."""
    seconds, cache = trainer.stopwatch.seconds, trainer.cache
    if earlier is None:
        earlier = TrainReport(round=report.round, plan=report.plan, updates=())
    return replace(
        report,
        seconds=Seconds(**{name: getattr(earlier.seconds, name) + value for name, value in seconds.items()}),
        cache_hits=earlier.cache_hits + cache.hits,
        cache_bytes=earlier.cache_bytes + cache.written_bytes,
        cache_writes=earlier.cache_writes + cache.writes,
        cache_held_bytes=cache.used_bytes(),
        cache_refusals=earlier.cache_refusals + len(cache.refusals),
    )


def block_readings(plan: Plan, finished: Sequence[BlockReport]) -> list[BlockReading]:
    """The plan's blocks, with what is known of those that are finished."""
    readings = []
    for number, block in enumerate(plan.blocks):
        report = finished[number] if number < len(finished) else None
        readings.append(
            BlockReading(
                first_unit=block.first_unit,
                last_unit=block.last_unit,
                batch_size=block.batch_size if report is None else report.batch_size,
                predicted_peak_bytes=block.predicted_peak_bytes,
                measured_peak_bytes=None if report is None else report.measured_peak_bytes or None,
            )
        )
    return readings


def exit_scores(scores: Mapping[int, Score]) -> tuple[ExitScore, ...]:
    """Scores by unit, in order."""
    return tuple(ExitScore(unit=unit, correct=s.correct, total=s.total) for unit, s in sorted(scores.items()))


def _unit_updates(result: BlockResult, examples: int) -> list[UnitUpdate]:
    heads = {window.last_unit for window in result.block.windows}
    return [
        UnitUpdate(
            unit=unit,
            examples=examples,
            steps=result.steps,
            effective_steps=result.effective_steps,
            has_head=unit in heads,
        )
        for unit in result.block.units
    ]


def _block_report(result: BlockResult) -> BlockReport:
    return BlockReport(
        first_unit=result.block.first_unit,
        last_unit=result.block.last_unit,
        batch_size=result.final_batch_size,
        predicted_peak_bytes=result.block.predicted_peak_bytes,
        measured_peak_bytes=result.measured_peak_bytes or 0,
        samples=result.samples,
        seconds=result.seconds,
        oom_retries=result.out_of_memory_retries,
        # A diverged loss is not a number that the protocol knows; the server rejects the weights by themselves.
        final_loss=finite_loss(result.final_loss),
        losses=tuple((unit, finite_loss(loss)) for unit, loss in result.losses.items()),
    )
