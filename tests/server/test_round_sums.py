"""When a round has too few updates of a unit: of one that was planned, not of one that no device can hold."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, RecordDict

from neuroflux_fl.packing import PackLayout, unit_key
from neuroflux_fl.plan import Block, Plan, Window
from neuroflux_fl.wire import TrainReport, UnitUpdate
from server.round_sums import RoundSums
from server.schedule import Stage

LAYOUT = PackLayout(unit_parameters=(("unit.weight", (2,)),), head_parameters=(("head.weight", (1,)),))
STAGE = Stage(index=1, first_unit=1, last_unit=3)


def make_sums() -> RoundSums:
    arrays = {unit: np.zeros(3, np.float32) for unit in range(5)}
    return RoundSums(STAGE, dict.fromkeys(range(5), LAYOUT), arrays, "fedavg", "float32")


def take(sums: RoundSums, planned: tuple[int, ...], trained: tuple[int, ...]) -> int:
    """An answer of a device that planned to train some units, a block each, and trained some of them."""
    blocks = tuple(
        Block(
            windows=(Window(first_unit=unit, last_unit=unit),), batch_size=4, learning_rate=0.1, predicted_peak_bytes=1,
            predicted_seconds_per_sample=1.0,
        )
        for unit in planned
    )  # fmt: skip
    updates = tuple(UnitUpdate(unit=unit, examples=5, steps=1, effective_steps=1.0, has_head=True) for unit in trained)
    report = TrainReport(round=2, plan=Plan(budget_bytes=9, blocks=blocks, untrained_units=()), updates=updates)
    arrays = {unit_key(unit): Array(np.ones(3, np.float32)) for unit in trained}
    return sums.take(report, Message(RecordDict({"arrays": ArrayRecord(arrays)}), 1, "train"), examples_held=5, round=2)


def test_unit_that_was_planned_and_not_trained_is_missed() -> None:
    sums = make_sums()
    assert not sums.below(1)

    assert take(sums, (1, 2), (1,)) == 1  # the deadline came before the second block
    assert sums.below(1)
    assert take(sums, (1, 2), (1, 2)) == 2
    assert not sums.below(1)
    assert sums.below(2)


def test_unit_that_no_device_can_hold_is_not_missed() -> None:
    sums = make_sums()

    take(sums, (2, 3), (2, 3))

    assert not sums.below(1)


def test_units_of_other_stages_are_not_missed() -> None:
    sums = make_sums()

    take(sums, (0, 1, 4), (1,))

    assert not sums.below(1)


def test_time_of_checking_adding_and_averaging_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(100))
    monkeypatch.setattr("server.round_sums.time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))
    sums = make_sums()

    take(sums, (1,), (1,))
    take(sums, (1,), (1,))
    sums.result(1)

    assert sums.seconds == 3
