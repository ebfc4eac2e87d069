"""Every rejection slug has an update that earns it, and an honest update passes."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from neuroflux_fl.wire import PackLayout, UnitUpdate
from server.update_checks import REASONS, check_update

LAYOUT = PackLayout(
    unit_parameters=(("unit.weight", (3,)),),
    unit_buffers=(("unit.norm.running_mean", (1,)), ("unit.norm.running_var", (1,))),
    head_parameters=(("head.weight", (2,)),),
    head_buffers=(("head.norm.running_var", (1,)),),
)
CURRENT = np.array([3, 0, 4, 0, 1, 1, 1, 1], np.float32)
HONEST = np.array([2, -1, 5, -0.5, 0.5, 2, 2, 0], np.float32)
UPDATE = UnitUpdate(unit=4, examples=10, steps=2, effective_steps=2.0, has_head=True)


def check(update: UnitUpdate = UPDATE, array: NDArray[Any] = HONEST, **changes: Any) -> str | None:
    arguments: dict[str, Any] = {
        "layout": LAYOUT,
        "report_round": 7,
        "expected_round": 7,
        "stage_units": range(3, 6),
        "seen_units": {3},
        "current": CURRENT,
        "examples_held": 10,
        "max_norm_ratio": 10.0,
    }
    return check_update(update, array, **{**arguments, **changes})


def altered(index: int, value: float) -> NDArray[np.float32]:
    array = HONEST.copy()
    array[index] = value
    return array


def test_honest_update_passes_with_and_without_head() -> None:
    body = dataclasses.replace(UPDATE, has_head=False)

    assert check() is None
    assert check(body, HONEST[:5]) is None


CASES: list[tuple[str, dict[str, Any]]] = [
    ("wrong_round", {"report_round": 6}),
    ("unknown_unit", {"layout": None, "current": None}),
    ("unexpected_unit", {"stage_units": range(3)}),
    ("duplicate", {"seen_units": {4}}),
    ("no_examples", {"update": dataclasses.replace(UPDATE, examples=0)}),
    ("too_many_examples", {"examples_held": 9}),
    ("no_steps", {"update": dataclasses.replace(UPDATE, steps=0)}),
    ("no_steps", {"update": dataclasses.replace(UPDATE, effective_steps=0.0)}),
    ("wrong_dtype", {"array": HONEST.astype(np.float64)}),
    ("wrong_size", {"array": HONEST[:5]}),
    ("wrong_size", {"array": HONEST.reshape(2, 4)}),
    ("not_finite", {"array": altered(0, np.nan)}),
    ("not_finite", {"array": altered(7, np.inf)}),
    ("negative_variance", {"array": altered(4, -0.01)}),
    ("negative_variance", {"array": altered(7, -0.01)}),
    ("absurd_norm", {"array": altered(3, -2e6)}),
    ("absurd_norm", {"array": altered(5, 3e38)}),
]


@pytest.mark.parametrize(("reason", "changes"), CASES)
def test_rejection(reason: str, changes: dict[str, Any]) -> None:
    assert check(**changes) == reason


def test_every_reason_has_a_case() -> None:
    # Those found before the checks have theirs in test_fleet.py and test_fleet_faults.py.
    before = {"missing_array", "unreadable", "wrong_coding", "malformed"}
    assert {reason for reason, _ in CASES} | before == set(REASONS)


def test_norm_limit_is_the_move_against_the_current_norm() -> None:
    # Parameters (3, 0, 4) have norm 5: a move of 49 is within ten times that, 51 is not.
    within, beyond = CURRENT.copy(), CURRENT.copy()
    within[1], beyond[1] = 49, 51

    assert check(array=within) is None
    assert check(array=beyond) == "absurd_norm"
    assert check(array=beyond, max_norm_ratio=11.0) is None
