"""The fewest windows, against every way to cut."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import combinations, pairwise

import pytest

from neuroflux_fl.plan import Window
from neuroflux_fl.reach import fewest_windows


def window(first: int, last: int) -> Window:
    return Window(first_unit=first, last_unit=last)


def ends(windows: list[Window]) -> list[int]:
    return [item.last_unit for item in windows]


def every_cut(units: range) -> list[list[Window]]:
    inner = range(units[0] + 1, units[-1] + 1)
    bounds = [(units[0], *cuts, units[-1] + 1) for size in range(len(units)) for cuts in combinations(inner, size)]
    return [[window(start, end - 1) for start, end in pairwise(bound)] for bound in bounds]


def counted(fits: Callable[[Window], bool]) -> tuple[Callable[[Window], bool], list[Window]]:
    asked: list[Window] = []

    def ask(item: Window) -> bool:
        asked.append(item)
        return fits(item)

    return ask, asked


@pytest.mark.parametrize("seed", range(40))
def test_no_way_to_cut_has_fewer_windows_or_as_many_more_evenly_or_as_evenly_at_cheaper_cuts(seed: int) -> None:
    generator = random.Random(seed)
    units = range(1, 9)
    size = {unit: generator.randint(1, 9) for unit in units}
    head = {unit: generator.choice([0, 0, 4]) for unit in units}
    costs = [generator.randint(-5, 5) for _ in range(9)]
    room = generator.randint(9, 40)

    def fits(item: Window) -> bool:
        return sum(size[unit] for unit in item.units) + head[item.last_unit] <= room

    def rank(windows: list[Window]) -> tuple[int, int, int]:
        squares = sum(item.reach**2 for item in windows)
        return len(windows), squares, sum(costs[item.last_unit] for item in windows[:-1])

    ask, asked = counted(fits)
    windows, untrained = fewest_windows(units, fits=ask, trainable=lambda _: True, cut_costs=costs)

    possible = [cut for cut in every_cut(units) if all(fits(item) or item.reach == 1 for item in cut)]
    assert windows in possible
    assert rank(windows) == min(rank(cut) for cut in possible)
    assert untrained == ()
    assert len(set(asked)) < 3 * len(units), "each question may cost a trace"


def test_where_everything_fits_there_is_one_question() -> None:
    ask, asked = counted(lambda _: True)

    assert fewest_windows(range(20), fits=ask, trainable=lambda _: True, cut_costs=[1] * 20) == ([window(0, 19)], ())
    assert set(asked) == {window(0, 19)}


def test_equally_few_windows_are_even_and_cut_where_it_costs_least() -> None:
    costs = [9, -9, 3, 2, 9, 9, 9]

    windows, _ = fewest_windows(range(7), fits=lambda item: item.reach <= 5, trainable=lambda _: True, cut_costs=costs)

    # After 1 it would be cheaper, but not even: 3 and 4 units, in the cheaper order.
    assert ends(windows) == [3, 6]


def test_a_window_with_a_larger_head_than_its_longer_neighbour_is_not_taken_on_trust() -> None:
    costs = [9, 1, 9, 9]
    refused = {window(0, 1), window(0, 3)}

    windows, _ = fewest_windows(
        range(4), fits=lambda item: item not in refused, trainable=lambda _: True, cut_costs=costs
    )

    assert ends(windows) == [0, 3] or ends(windows) == [2, 3]


def test_units_that_do_not_fit_at_the_useful_batch_stay_alone_or_out() -> None:
    def fits(item: Window) -> bool:
        return not {2, 4} & set(item.units)

    windows, untrained = fewest_windows(
        range(7), fits=fits, trainable=lambda item: item == window(2, 2), cut_costs=[1] * 7
    )

    assert windows == [window(0, 1), window(2, 2), window(3, 3), window(5, 6)]
    assert untrained == (4,)
