"""How long a step takes, on a machine whose speed changes from one to the next."""

from __future__ import annotations

import pytest

from neuroflux_fl.window_step import typical_seconds


@pytest.mark.parametrize(
    ("at_least", "seconds", "typical", "runs"),
    [
        (3, [1.0, 9.0, 2.0], 2.0, 3),
        (1, [0.7], 0.7, 1),
        (1, [0.3, 0.1, 0.2], 0.2, 3),
        (3, [0.01] * 4 + [0.02] * 5, 0.02, 9),
    ],
)
def test_neither_a_quick_nor_a_slow_step_counts(at_least: int, seconds: list[float], typical: float, runs: int) -> None:
    left = [*seconds, 100.0]

    assert typical_seconds(lambda: left.pop(0), at_least=at_least) == typical
    assert len(seconds) + 1 - len(left) == runs
