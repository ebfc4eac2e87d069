"""The fleet moves on when an exit stops improving, and stops deepening when a stage was of no use."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest

from neuroflux_fl.errors import ConfigError
from server.schedule import ScheduleState, Stage, advance, joint_stages, rounds_per_stage, stages_of

STAGES = stages_of(6, 2)


def run(accuracies: Sequence[float | None], stages: Sequence[Stage] = STAGES, **options: Any) -> list[ScheduleState]:
    """States after each of the rounds."""
    options = {"patience": 2, "max_rounds_per_stage": 10, "rounds_left": 99, **options}
    states = [ScheduleState()]
    for accuracy in accuracies:
        states.append(advance(states[-1], stages, accuracy, **options))
    return states[1:]


def test_stages_cover_every_unit_once_in_order() -> None:
    assert stages_of(5, 2) == (
        Stage(index=0, first_unit=0, last_unit=1),
        Stage(index=1, first_unit=2, last_unit=3),
        Stage(index=2, first_unit=4, last_unit=4),
    )
    assert joint_stages(5) == (Stage(index=0, first_unit=0, last_unit=4),)
    with pytest.raises(ConfigError, match="stages of 0"):
        stages_of(5, 0)


def test_stage_ends_after_patience_rounds_without_a_new_best() -> None:
    states = run([0.3, 0.5, 0.4, 0.5])

    assert [state.stage_index for state in states] == [0, 0, 0, 1]
    assert (states[2].best_accuracy, states[2].best_round, states[2].rounds_without_improvement) == (0.5, 2, 1)
    assert states[3] == ScheduleState(stage_index=1, previous_stage_accuracy=0.5, best_stage_index=0)


def test_stage_ends_at_its_round_limit_while_still_improving() -> None:
    states = run([0.1, 0.2, 0.3, 0.4], max_rounds_per_stage=3)

    assert [(state.stage_index, state.rounds_in_stage) for state in states] == [(0, 1), (0, 2), (1, 0), (1, 1)]


def test_round_limits_may_differ_by_stage() -> None:
    states = run([0.1, 0.2, 0.3, 0.4], max_rounds_per_stage=(1, 2, 1))

    assert [state.stage_index for state in states] == [1, 1, 2, 2]
    assert states[-1].finished


def test_deepening_ends_when_a_stage_did_not_beat_the_best_exit() -> None:
    states = run([0.5, 0.6, 0.605], max_rounds_per_stage=1, min_improvement=0.01)

    assert [(state.stage_index, state.finished) for state in states] == [(1, False), (2, False), (2, True)]
    assert states[-1].best_stage_index == 1


def test_an_exit_worse_than_an_earlier_one_ends_deepening() -> None:
    states = run([0.5, 0.4], max_rounds_per_stage=1)

    assert (states[-1].finished, states[-1].best_stage_index) == (True, 0)


def test_last_stage_finishes_the_run() -> None:
    states = run([0.5, 0.6, 0.7], max_rounds_per_stage=1)

    assert (states[-1].finished, states[-1].stage_index, states[-1].best_stage_index) == (True, 2, 2)


def test_joint_is_finished_by_patience_alone() -> None:
    rising = [0.01 * round for round in range(50)]

    states = run([*rising, 0.1, 0.1], joint_stages(6), max_rounds_per_stage=None)

    assert [state.finished for state in states] == [False] * 51 + [True]
    assert states[-1].best_accuracy == rising[-1]


def test_unmeasured_rounds_count_as_rounds_but_not_against_patience() -> None:
    states = run([0.5, None, None, None, 0.4, 0.3])

    assert [state.stage_index for state in states] == [0, 0, 0, 0, 0, 1]
    assert states[3].rounds_in_stage == 4


def test_stage_that_was_never_measured_neither_ends_nor_lowers_the_bar() -> None:
    states = run([0.5, None, 0.4], max_rounds_per_stage=1)

    assert (states[1].finished, states[1].previous_stage_accuracy) == (False, 0.5)
    assert (states[2].finished, states[2].best_stage_index) == (True, 0)


def test_no_rounds_left_finishes_in_the_middle_of_a_stage() -> None:
    state = advance(ScheduleState(), STAGES, 0.5, patience=2, max_rounds_per_stage=10, rounds_left=0)

    assert (state.finished, state.stage_index, state.best_accuracy) == (True, 0, 0.5)


def test_finished_state_stays_as_it_is() -> None:
    done = dataclasses.replace(ScheduleState(), finished=True)

    assert advance(done, STAGES, 0.9, patience=1, rounds_left=5) == done


def test_rounds_are_spread_evenly_with_the_remainder_first() -> None:
    assert rounds_per_stage(11, 4) == (3, 3, 3, 2)
    assert rounds_per_stage(2, 4) == (1, 1, 0, 0)
