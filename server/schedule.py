"""How the fleet goes through the network: which units are in training in a round, and when the fleet moves on.

``progressive`` trains one stage after the other, ``joint`` is a single stage of all units. Both advance by the same
rule: a stage ends when its exit stops improving, and deepening ends when a stage did not improve the best exit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from neuroflux_fl.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Units that the whole fleet trains together. Both ends are included; the stage's exit is ``last_unit``'s."""

    index: int
    first_unit: int
    last_unit: int

    @property
    def units(self) -> range:
        """The stage's units."""
        return range(self.first_unit, self.last_unit + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleState:
    """Where a fleet stands in its schedule."""

    stage_index: int = 0
    rounds_in_stage: int = 0
    """Rounds that this stage has had."""
    best_accuracy: float | None = None
    """Best accuracy of this stage's exit so far; None before the first measurement."""
    best_round: int = 0
    """Round of the stage, counted from 1, that gave ``best_accuracy``; 0 before the first measurement."""
    rounds_without_improvement: int = 0
    """Measured rounds since ``best_round``."""
    previous_stage_accuracy: float | None = None
    """Best accuracy of any earlier stage's exit; None in the first stage."""
    best_stage_index: int = 0
    """Stage with the best exit among those completed: the depth worth handing out when ``finished``."""
    finished: bool = False


def stages_of(number_of_units: int, stage_units: int) -> tuple[Stage, ...]:
    """Cut the unit chain into stages of ``stage_units`` units; the last stage may be shorter.

    Raises:
        ConfigError: either number is below 1.
    """
    if number_of_units < 1 or stage_units < 1:
        raise ConfigError(f"Cannot cut {number_of_units} units into stages of {stage_units}: both must be at least 1.")
    return tuple(
        Stage(index=index, first_unit=first, last_unit=min(first + stage_units, number_of_units) - 1)
        for index, first in enumerate(range(0, number_of_units, stage_units))
    )


def joint_stages(number_of_units: int) -> tuple[Stage, ...]:
    """The single stage of the ``joint`` schedule."""
    return stages_of(number_of_units, number_of_units)


def rounds_per_stage(total_rounds: int, number_of_stages: int) -> tuple[int, ...]:
    """Spread rounds over stages evenly; earlier stages, which every later one builds on, get the remainder."""
    if total_rounds < 0 or number_of_stages < 1:
        raise ConfigError(f"Cannot spread {total_rounds} rounds over {number_of_stages} stages.")
    share, remainder = divmod(total_rounds, number_of_stages)
    return tuple(share + (1 if index < remainder else 0) for index in range(number_of_stages))


def advance(
    state: ScheduleState,
    stages: Sequence[Stage],
    accuracy: float | None,
    *,
    patience: int,
    max_rounds_per_stage: int | Sequence[int] | None = None,
    min_improvement: float = 0.0,
    rounds_left: int,
) -> ScheduleState:
    """State after one more round of the current stage.

    Args:
        state: state before the round.
        stages: all stages, in order.
        accuracy: accuracy of the stage's exit in this round; None when no device measured it, which counts as a
            round but not against patience.
        patience: measured rounds without a new best after which a stage ends.
        max_rounds_per_stage: bound for every stage, one for each stage, or None for no bound (``joint``).
        min_improvement: a completed stage must beat the best earlier exit by more than this for deepening to go on.
        rounds_left: rounds that the run may still hold after this one; at 0 the schedule is finished.
    """
    if state.finished:
        return state
    state = _count_round(state, accuracy)
    bound = max_rounds_per_stage
    if isinstance(bound, Sequence):
        bound = bound[state.stage_index]
    out_of_patience = state.rounds_without_improvement >= patience
    out_of_rounds = bound is not None and state.rounds_in_stage >= bound
    if out_of_patience or out_of_rounds or rounds_left <= 0:
        return _complete_stage(state, stages, min_improvement, rounds_left)
    return state


def _count_round(state: ScheduleState, accuracy: float | None) -> ScheduleState:
    rounds = state.rounds_in_stage + 1
    if accuracy is None:
        return replace(state, rounds_in_stage=rounds)
    if state.best_accuracy is None or accuracy > state.best_accuracy:
        return replace(
            state, rounds_in_stage=rounds, best_accuracy=accuracy, best_round=rounds, rounds_without_improvement=0
        )
    return replace(state, rounds_in_stage=rounds, rounds_without_improvement=state.rounds_without_improvement + 1)


def _complete_stage(
    state: ScheduleState, stages: Sequence[Stage], min_improvement: float, rounds_left: int
) -> ScheduleState:
    best, previous = state.best_accuracy, state.previous_stage_accuracy
    improved = best is None or previous is None or best > previous + min_improvement
    best_stage = state.stage_index if best is not None and improved else state.best_stage_index
    last = state.stage_index == len(stages) - 1
    if last or rounds_left <= 0 or not improved:
        return replace(state, best_stage_index=best_stage, finished=True)
    accuracies = [accuracy for accuracy in (best, previous) if accuracy is not None]
    return ScheduleState(
        stage_index=state.stage_index + 1,
        previous_stage_accuracy=max(accuracies, default=None),
        best_stage_index=best_stage,
    )
