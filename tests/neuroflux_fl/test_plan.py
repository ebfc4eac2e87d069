"""Numbers that a plan derives from its blocks."""

from __future__ import annotations

from neuroflux_fl.plan import Block, Plan, Window


def make_block(*windows: tuple[int, int], peak: int) -> Block:
    return Block(
        windows=tuple(Window(first_unit=first, last_unit=last) for first, last in windows),
        batch_size=8, learning_rate=0.1, predicted_peak_bytes=peak, predicted_seconds_per_sample=0.0,
    )  # fmt: skip


def test_units_blocks_and_peak() -> None:
    first, second = make_block((1, 2), (3, 3), peak=50), make_block((5, 5), peak=70)
    plan = Plan(budget_bytes=100, blocks=(first, second), untrained_units=(0, 4))

    assert (first.first_unit, first.last_unit, list(first.units)) == (1, 3, [1, 2, 3])
    assert [window.reach for window in first.windows] == [2, 1]
    assert [plan.block_of(unit) for unit in range(6)] == [None, first, first, first, None, second]
    assert plan.predicted_peak_bytes == 70
    assert Plan(budget_bytes=None, blocks=(), untrained_units=()).predicted_peak_bytes == 0
