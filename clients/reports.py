"""A device's work as parts of its report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from neuroflux_fl.block_training import BlockResult
from neuroflux_fl.device_training import DeviceTrainer
from neuroflux_fl.evaluation import Score
from neuroflux_fl.wire import BlockReport, ExitScore, Seconds, TrainReport, UnitUpdate

_LARGEST_LOSS = 1e9


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
        cache_refusals=earlier.cache_refusals + len(cache.refusals),
    )


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
        final_loss=float(np.nan_to_num(result.final_loss, nan=_LARGEST_LOSS, posinf=_LARGEST_LOSS)),
    )
