"""What comes together in one round: the units' averages, the exits' scores, and what was rejected and why."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np
from flwr.app import ArrayRecord, Message
from numpy.typing import NDArray

from neuroflux_fl.errors import WireError
from neuroflux_fl.evaluation import Score
from neuroflux_fl.packing import PackLayout, unit_key
from neuroflux_fl.update_codec import decode_update
from neuroflux_fl.wire import ExitScore, TrainReport, UnitUpdate
from server.aggregation import Rule, UnitAggregator
from server.records import read_array
from server.schedule import Stage
from server.update_checks import Reason, check_update

Packed = NDArray[np.float32]


class RoundSums:
    """Takes one answer after the other and keeps none.

    Args:
        stage: units in training.
        layouts: layout of every unit.
        arrays: global packed array of every unit, as the round's devices got them.
        rule: how units are averaged.
        precision: what devices were asked to send.
    """

    def __init__(
        self,
        stage: Stage,
        layouts: Mapping[int, PackLayout],
        arrays: Mapping[int, Packed],
        rule: Rule,
        precision: str,
    ) -> None:
        self.stage = stage
        self._layouts = layouts
        self._arrays = arrays
        self._precision = precision
        self.aggregator = UnitAggregator(layouts, arrays, rule)
        self.scores: dict[int, Score] = {}
        self.rejected: dict[str, int] = {}
        self.bytes_up = 0
        self.seconds = 0.0
        """Spent on checking, adding and averaging."""
        self._planned: set[int] = set()

    def contributors(self) -> dict[int, int]:
        """Number of updates by unit, of units that have some."""
        return {unit: count for unit, count in self.aggregator.contributors.items() if count}

    def trained_heads(self, quorum: int) -> set[int]:
        """Units whose heads were trained, and that have at least ``quorum`` updates."""
        heads = self.aggregator.head_contributors
        return {unit for unit, count in self.contributors().items() if heads[unit] and count >= quorum}

    def below(self, quorum: int) -> bool:
        """Whether a unit that some device planned to train, or trained, has fewer than ``quorum`` updates.

        Units that no device has the memory for are left untrained by design: they are not waited for.
        """
        counts = self.aggregator.contributors
        return any(counts[unit] < quorum for unit in self._planned | self.contributors().keys())

    def result(self, quorum: int) -> dict[int, Packed]:
        """The round's new weights; see ``UnitAggregator.result``."""
        started = time.perf_counter()
        arrays = self.aggregator.result(quorum=quorum)
        self.seconds += time.perf_counter() - started
        return arrays

    def reject(self, reason: Reason) -> None:
        """Count something that could not be used."""
        self.rejected[reason] = self.rejected.get(reason, 0) + 1

    def take(self, report: TrainReport, reply: Message, *, examples_held: int, round: int) -> int:
        """Add every sound update of an answer to this round, and its scores; returns the number of updates added."""
        add_scores(self.scores, report.exits, self.stage.units)
        self._planned |= {unit for unit in self.stage.units if any(unit in block.units for block in report.plan.blocks)}
        return self._add(report, reply, examples_held, round, self._arrays, 1.0)

    def take_late(
        self,
        report: TrainReport,
        reply: Message,
        *,
        examples_held: int,
        round: int,
        base: Mapping[int, Packed],
        discount: float,
    ) -> int:
        """Add what an answer to an earlier ``round``, which began with ``base``, has moved; returns the number added.

        The move is added to today's weights, as in FedBuff (Nguyen et al. 2022, arXiv 2106.06639), with the answer's
        weight multiplied by ``discount``. Its scores are of other weights and are left out.
        """
        return self._add(report, reply, examples_held, round, base, discount)

    def _add(
        self,
        report: TrainReport,
        reply: Message,
        examples_held: int,
        round: int,
        base: Mapping[int, Packed],
        discount: float,
    ) -> int:
        started = time.perf_counter()
        record = reply.content.array_records.get("arrays", ArrayRecord())
        seen: set[int] = set()
        for update in report.updates:
            values, reason = self._decoded(update, record, base)
            if values is not None:
                reason = check_update(
                    update,
                    values,
                    self._layouts.get(update.unit),
                    report_round=report.round,
                    expected_round=round,
                    stage_units=self.stage.units,
                    seen_units=seen,
                    current=base.get(update.unit),
                    examples_held=examples_held,
                )
            if values is None or reason is not None:
                self.reject(reason or "unreadable")
                continue
            packed = values.astype(np.float32, copy=False)
            if base is not self._arrays:
                packed = _moved(packed, base[update.unit], self._arrays[update.unit], self._layouts[update.unit])
            self.aggregator.add(update, packed, discount=discount)
            seen.add(update.unit)
        self.seconds += time.perf_counter() - started
        return len(seen)

    def _decoded(
        self, update: UnitUpdate, record: ArrayRecord, base: Mapping[int, Packed]
    ) -> tuple[NDArray[np.generic] | None, Reason | None]:
        array = record.pop(unit_key(update.unit), None)
        if array is None:
            return None, "missing_array"
        values = read_array(array)
        layout = self._layouts.get(update.unit)
        # In full precision the checks name what is wrong; a coded update of a unit that we do not know has no size.
        if values is None or layout is None or self._precision == "float32":
            return values, "unreadable" if values is None else None
        try:
            return decode_update(values, base[update.unit], layout.size(update.has_head), self._precision), None
        except WireError:
            return None, "wrong_coding"


def add_scores(scores: dict[int, Score], reported: Sequence[ExitScore], units: range) -> None:
    """Add a device's scores to the fleet's; those of exits that nobody asked for are left out."""
    for score in reported:
        if score.unit in units:
            scores[score.unit] = scores.get(score.unit, Score(0, 0)) + Score(score.correct, score.total)


def _moved(packed: Packed, base: Packed, current: Packed, layout: PackLayout) -> Packed:
    """Today's weights, moved as ``packed`` moved from ``base``. Buffers are statistics: they are taken as they are."""
    moved = packed.copy()
    for where in (layout.unit_parameter_slice, layout.head_parameter_slice):
        if where.stop <= len(packed):
            moved[where] += current[where] - base[where]
    return moved
