"""Plans by hand and by brute force, on a small profile with made-up costs."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, pairwise

import pytest

from neuroflux_fl.errors import BudgetError, UsageError
from neuroflux_fl.machine_speed import MachineSpeed
from neuroflux_fl.plan import Block, Plan, Window
from neuroflux_fl.planning import (
    PlannerSettings,
    backpropagation_minimum,
    block_peak_bytes,
    full_budget,
    make_block,
    minimum_budget,
    plan_backpropagation,
    plan_units,
)
from neuroflux_fl.profiling import Line, NetworkProfile, UnitCost, WindowProfile
from neuroflux_fl.sizes import MIB, parse_bytes

SPEED = MachineSpeed(
    flops_per_second=1e9, traffic_bytes_per_second=1e9, seconds_per_operator=1e-4, storage_bytes_per_second=1e6
)
EXACT = PlannerSettings(reach=1, margin=0, slack_bytes=0, window_slack_bytes=0, maximum_batch=64, batch_tolerance=0)
# Units: (bytes that stay, bytes of a step beside them, bytes a sample, arithmetic a sample, numbers of the output).
UNITS = [
    (100, 50, 400, 3e6, 4000),
    (200, 100, 300, 2e6, 2000),
    (800, 400, 100, 2e6, 500),
    (900, 500, 90, 1e6, 400),
    (3000, 1000, 20, 1e6, 100),
]


def make_profile(units: list[tuple[int, int, int, float, int]], reach: int = 1) -> NetworkProfile:
    def window_profile(first: int, last: int) -> WindowProfile:
        part = units[first : last + 1]
        resident = sum(unit[0] for unit in part)
        return WindowProfile(
            window=Window(first_unit=first, last_unit=last),
            resident_bytes=resident,
            memory=(
                Line(resident + sum(unit[1] for unit in part), 0.25),
                Line(resident + 10, sum(unit[2] for unit in part)),
            ),
            flops=Line(1e4, sum(unit[3] for unit in part)),
            traffic_bytes=Line(1000, 50),
            operators=30 * len(part),
        )

    windows = [
        window_profile(first, last)
        for first in range(len(units))
        for last in range(first, min(len(units), first + reach))
    ]
    whole = window_profile(0, len(units) - 1)
    return NetworkProfile(
        units=tuple(
            UnitCost(
                name=f"unit{index}",
                head_filters=8,
                forward_flops=unit[3] / 3,
                input_gradient_flops=unit[3] / 3,
                output_numbers=unit[4],
            )
            for index, unit in enumerate(units)
        ),
        windows={profile.window: profile for profile in (*windows, whole)},
        whole_window=whole.window,
        speed=SPEED,
    )


PROFILE = make_profile(UNITS)


def single(unit: int) -> Window:
    return Window(first_unit=unit, last_unit=unit)


def cuts(blocks: tuple[Block, ...]) -> list[list[int]]:
    return [list(block.units) for block in blocks]


def test_block_peak_is_what_all_keep_and_the_one_step_that_adds_most() -> None:
    profiles = [PROFILE.unit(0), PROFILE.unit(2)]

    # At batch 10: unit 0 adds 10 + 4000 to what it keeps, unit 2 adds 10 + 1000; at batch 1, 410 and 400.25 up.
    assert block_peak_bytes(profiles, 10) == 100 + 800 + 4010
    assert block_peak_bytes(profiles, 1) == 100 + 800 + 410
    assert block_peak_bytes([PROFILE.unit(2)], 1) == 800 + 401


@pytest.mark.parametrize("views", [1, 4])
@pytest.mark.parametrize("budget", [6000, 7000, 9000, 12_000, 30_000, None])
def test_fastest_finds_the_least_time_of_all_ways_to_cut(budget: int | None, views: int) -> None:
    settings = replace(EXACT, views=views, passes=4)
    count = len(UNITS)
    best = float("inf")
    for size in range(count):
        for inner in combinations(range(1, count), size):
            total = 0.0
            for start, end in pairwise((0, *inner, count)):
                block = make_block(PROFILE, tuple(single(unit) for unit in range(start, end)), budget, settings)
                total += float("inf") if block is None else block.predicted_seconds_per_sample
            best = min(best, total)

    plan = plan_units(PROFILE, budget, settings)

    assert sum(block.predicted_seconds_per_sample for block in plan.blocks) == pytest.approx(best)
    assert [unit for block in plan.blocks for unit in block.units] == list(range(count))
    assert plan.untrained_units == ()


def test_fastest_cuts_where_memory_forbids_one_block_and_merges_where_the_cache_is_dear() -> None:
    assert cuts(plan_units(PROFILE, None, EXACT).blocks) == [[0, 1, 2, 3, 4]]
    assert len(plan_units(PROFILE, 5000, EXACT).blocks) > 1


def test_threshold_merges_batches_within_rho_of_the_first() -> None:
    # At 8000 bytes the largest batches are (8000 - fixed) / slope: 19, 25, 71 -> 64, 78 -> 64, 249 -> 64.
    settings = replace(EXACT, planner="threshold", rho=0.4)

    plan = plan_units(PROFILE, 8000, settings)

    # 25 is within 0.4 of 19; 64 is not; the third to the fifth are all 64 and fit together.
    assert cuts(plan.blocks) == [[0, 1], [2, 3, 4]]
    strict = replace(EXACT, planner="threshold", rho=0.1, maximum_batch=256)
    assert cuts(plan_units(PROFILE, 8000, strict).blocks)[0] == [0]


@pytest.mark.parametrize("planner", ["fastest", "threshold"])
@pytest.mark.parametrize("reach", [0, 1])
def test_blocks_of_progressive_training_stop_at_their_share_of_the_network(planner: str, reach: int) -> None:
    profile = make_profile(LONG, len(LONG))
    settings = replace(EXACT, planner=planner, rho=1.0, reach=reach, useful_batch=6)
    for budget in (None, 20_000, 5000):
        blocks = plan_units(profile, budget, replace(settings, progressive=True)).blocks
        assert max(len(block.units) for block in blocks) == 2, "a quarter of eight units"
        assert [unit for block in blocks for unit in block.units] == list(range(8))
    assert max(len(block.units) for block in plan_units(profile, None, settings).blocks) > 2

    # What one window holds is not cut.
    long = plan_units(profile, None, replace(settings, reach=5, progressive=True))
    assert [len(block.units) for block in long.blocks] == [5, 3]


def test_the_batch_is_the_fastest_that_fits_not_the_largest() -> None:
    slow_when_large = {
        single(0): WindowProfile(
            window=single(0), resident_bytes=0, memory=(Line(0, 10),), flops=Line(0, 0), traffic_bytes=Line(0, 0),
            operators=1, timings=((4, 0.4), (16, 0.8), (64, 6.4)),
        )
    }  # fmt: skip
    profile = NetworkProfile(units=PROFILE.units[:1], windows=slow_when_large, whole_window=single(0), speed=SPEED)

    # Seconds a sample: 0.1 at batch 4, 0.05 at 16, 0.1 at 64.
    assert plan_units(profile, 640, EXACT).blocks[0].batch_size == 16
    assert plan_units(profile, 80, EXACT).blocks[0].batch_size == 8
    # Of those that are hardly slower the smallest: 0.067 at 12, 0.083 at 8.
    tolerant = replace(EXACT, useful_batch=2)
    assert plan_units(profile, 640, replace(tolerant, batch_tolerance=0.35)).blocks[0].batch_size == 12
    assert plan_units(profile, 640, replace(tolerant, batch_tolerance=0.7)).blocks[0].batch_size == 8
    # But useful, where the fastest is.
    assert plan_units(profile, 640, replace(tolerant, batch_tolerance=0.7, useful_batch=12)).blocks[0].batch_size == 12
    assert plan_units(profile, 640, replace(tolerant, batch_tolerance=0.7, useful_batch=32)).blocks[0].batch_size == 8
    # Below the smallest that was measured nothing is known.
    assert plan_units(profile, 640, replace(tolerant, batch_tolerance=9)).blocks[0].batch_size == 4
    assert plan_units(profile, 30, replace(tolerant, batch_tolerance=9)).blocks[0].batch_size == 3
    assert profile.unit(0).seconds_per_step(10, SPEED) == pytest.approx(10 * 0.075)
    assert profile.unit(0).seconds_per_step(2, SPEED) == pytest.approx(2 * 0.1)
    assert profile.unit(0).seconds_per_step(128, SPEED) == pytest.approx(128 * 0.1)


@pytest.mark.parametrize("planner", ["fastest", "threshold"])
@pytest.mark.parametrize("reach", [1, 2, 5])
def test_no_plan_predicts_more_than_its_budget_and_every_unit_is_in_one_place(planner: str, reach: int) -> None:
    settings = PlannerSettings(planner=planner, reach=reach, slack_bytes=100, window_slack_bytes=7)
    profile = make_profile(UNITS, reach)
    for budget in range(1100, 30_000, 311):
        plan = plan_units(profile, budget, settings)
        trained = [unit for block in plan.blocks for unit in block.units]
        assert plan.predicted_peak_bytes <= budget
        assert sorted([*trained, *plan.untrained_units]) == list(range(len(UNITS)))
        assert trained == sorted(trained)
        assert all(2 <= block.batch_size <= 256 for block in plan.blocks)
        assert all(window.reach <= reach for block in plan.blocks for window in block.windows)
        for block in plan.blocks:
            profiles = [profile.windows[window] for window in block.windows]
            peak = block_peak_bytes(profiles, block.batch_size)
            assert block.predicted_peak_bytes == settings.predicted_peak(peak, len(block.units))
            assert settings.budget_of(block) == settings.needed_budget(peak, len(block.units)) <= budget


def test_windows_grow_with_the_budget_up_to_the_reach() -> None:
    profile = make_profile(UNITS, 3)
    settings = PlannerSettings(reach=3, margin=0, slack_bytes=0, window_slack_bytes=0)

    def reaches(budget: int | None) -> list[int]:
        return [window.reach for block in plan_units(profile, budget, settings).blocks for window in block.windows]

    assert reaches(None) == [3, 2]
    # Units 3 and 4 together need 5400 bytes; 0 to 2 need 2710 at batch 2, 0 and 1 1710.
    assert reaches(4500) == [3, 1, 1]
    assert reaches(2000) == [2, 1, 1]


AUTO = replace(EXACT, reach=0, longest_share=1.0, useful_batch=6)
LONG = [
    *UNITS[:3], (300, 100, 200, 2e6, 1000), (300, 100, 200, 2e6, 300), (300, 100, 200, 2e6, 1000), *UNITS[3:],
]  # fmt: skip


def windows_of(plan: Plan) -> list[Window]:
    return [window for block in plan.blocks for window in block.windows]


def test_reach_by_memory_has_fewer_windows_with_every_larger_budget_until_it_is_backpropagation() -> None:
    profile = make_profile(LONG, len(LONG))
    plans = [plan_units(profile, budget, AUTO) for budget in range(5000, 20_000, 173)]
    counts = [len(windows_of(plan)) for plan in plans]

    assert counts == sorted(counts, reverse=True)
    assert {1, 2, 3, 4} <= set(counts)
    assert plan_units(profile, None, AUTO).blocks == plan_backpropagation(profile, None, AUTO).blocks
    smallest = AUTO.needed_budget(profile.whole.peak_bytes(6))
    assert len(windows_of(plan_units(profile, smallest, AUTO))) == 1
    assert len(windows_of(plan_units(profile, smallest - 1, AUTO))) == 2


def test_reach_by_memory_never_goes_below_the_useful_batch_nor_above_the_budget() -> None:
    profile = make_profile(LONG, len(LONG))
    settings = replace(AUTO, margin=0.02, slack_bytes=100, window_slack_bytes=7)
    for budget in range(1100, 30_000, 311):
        plan = plan_units(profile, budget, settings)
        trained = [unit for block in plan.blocks for unit in block.units]
        assert plan.predicted_peak_bytes <= budget
        assert sorted([*trained, *plan.untrained_units]) == list(range(len(LONG)))
        assert plan.untrained_units == plan_units(profile, budget, replace(settings, reach=1)).untrained_units
        for block in plan.blocks:
            fits = [
                profile.windows[window].largest_batch(settings.available(budget, window.reach))
                for window in block.windows
            ]
            assert block.batch_size >= min(6, *fits)
            assert all(fit >= 6 or window.reach == 1 for fit, window in zip(fits, block.windows, strict=True))


def test_reach_by_memory_stops_at_its_share_of_the_network() -> None:
    plan = plan_units(make_profile(LONG, len(LONG)), None, replace(AUTO, longest_share=0.25))

    assert [window.reach for window in windows_of(plan)] == [2, 2, 2, 2]


def test_a_useful_batch_beyond_the_largest_allowed_is_the_largest_allowed() -> None:
    plan = plan_units(make_profile(UNITS, 5), None, replace(AUTO, useful_batch=100, maximum_batch=4))

    assert [(block.windows, block.batch_size) for block in plan.blocks] == [((Window(first_unit=0, last_unit=4),), 4)]


def sliced_profile() -> NetworkProfile:
    """Unit 1 is large: 4000 bytes stay and 4000 are a gradient; sliced, only 500 of it; narrow momentum saves 1000."""
    units = [(100, 50, 10, 1e6, 100), (4000, 4000, 10, 1e6, 100), (100, 50, 10, 1e6, 100)]
    profile = make_profile(units)
    large = Window(first_unit=1, last_unit=1)
    ways = {
        replace(large, updates="sliced"): (4000, 500),
        replace(large, updates="sliced-bfloat16"): (3000, 600),
    }
    frugal = {
        window: replace(
            profile.windows[large], window=window, resident_bytes=resident, memory=(Line(resident + step, 10),)
        )
        for window, (resident, step) in ways.items()
    }
    return replace(profile, windows={**profile.windows, **frugal}, sliceable_units=frozenset({1}))


@pytest.mark.parametrize(
    ("budget", "updates"),
    [(None, "whole"), (8004, "whole"), (8003, "sliced"), (4660, "sliced"), (4659, "sliced-bfloat16"),
     (3620, "sliced-bfloat16")],
)  # fmt: skip
def test_updates_are_sliced_where_a_useful_batch_does_not_fit_otherwise(budget: int | None, updates: str) -> None:
    profile = sliced_profile()
    plan = plan_units(profile, budget, EXACT)

    block = plan.block_of(1)
    assert block is not None
    assert {w.updates for b in plan.blocks for w in b.windows if w.first_unit != 1} == {"whole"}
    assert [w.updates for w in block.windows if w.first_unit == 1] == [updates]
    assert budget is None or plan.predicted_peak_bytes <= budget
    assert full_budget(profile, EXACT) == 3620, "at batch 2"


def test_kinds_of_updates_that_are_not_needed_are_not_looked_at() -> None:
    class Table(dict[Window, WindowProfile]):
        def __missing__(self, window: Window) -> WindowProfile:
            raise AssertionError(f"{window} was asked for, which takes a trace of seconds")

    def without(*updates: str) -> NetworkProfile:
        profile = sliced_profile()
        kept = {window: item for window, item in profile.windows.items() if window.updates not in updates}
        return replace(profile, windows=Table(kept))

    assert plan_units(without("sliced", "sliced-bfloat16"), 8004, EXACT).block_of(1) is not None
    assert plan_units(without("sliced-bfloat16"), 4660, EXACT).block_of(1) is not None


def test_a_unit_that_does_not_fit_is_left_out_and_the_others_are_planned() -> None:
    # The first unit needs 910 bytes at batch 2, the last 4000.
    early = [(100, 50, 4000, 3e6, 4000), *UNITS[1:]]

    assert plan_units(PROFILE, 3000, EXACT).untrained_units == (4,)
    plan = plan_units(make_profile(early), 5000, EXACT)
    assert plan.untrained_units == (0,)
    assert [unit for block in plan.blocks for unit in block.units] == [1, 2, 3, 4]
    middle = [*UNITS[:2], (800, 400, 9000, 1e6, 500), *UNITS[3:]]
    plan = plan_units(make_profile(middle), 5000, EXACT)
    assert plan.untrained_units == (2,)
    assert not any(block.first_unit < 2 < block.last_unit for block in plan.blocks)


def test_only_the_units_asked_for_are_planned() -> None:
    plan = plan_units(PROFILE, None, EXACT, first_unit=1, last_unit=3)

    assert cuts(plan.blocks) == [[1, 2, 3]]


MEBI = [tuple(1024**2 * number for number in unit[:3]) + unit[3:] for unit in UNITS]


@pytest.mark.parametrize("margin", [0.0, 0.02, 0.037])
def test_a_budget_that_is_too_small_is_refused_with_one_that_does(margin: float) -> None:
    profile = make_profile(MEBI)  # type: ignore[arg-type]
    settings = PlannerSettings(reach=1, margin=margin)
    for plan in (plan_units, plan_backpropagation):
        with pytest.raises(BudgetError, match="Raise the budget to") as raised:
            plan(profile, 100 * 1024**2, settings)

        named = str(raised.value).split("Raise the budget to ")[1].split(",")[0]
        assert plan(profile, parse_bytes(named), settings).blocks
        with pytest.raises(BudgetError):
            plan(profile, parse_bytes(named) - 2 * 1024**2, settings)


@pytest.mark.parametrize("margin", [0.0, 0.02, 0.037])
@pytest.mark.parametrize("offset", range(0, 40, 3))
def test_the_smallest_budgets_are_exact_to_the_byte(margin: float, offset: int) -> None:
    units = [(resident + offset, *rest) for resident, *rest in UNITS]
    profile = make_profile(units)  # type: ignore[arg-type]
    settings = PlannerSettings(reach=1, margin=margin)

    assert 0 in plan_units(profile, minimum_budget(profile, settings), settings).blocks[0].units
    assert plan_units(profile, full_budget(profile, settings), settings).untrained_units == ()
    assert plan_backpropagation(profile, backpropagation_minimum(profile, settings), settings).blocks
    assert 0 in plan_units(profile, minimum_budget(profile, settings) - 2, settings).untrained_units
    assert plan_units(profile, full_budget(profile, settings) - 2, settings).untrained_units != ()
    with pytest.raises(BudgetError):
        plan_backpropagation(profile, backpropagation_minimum(profile, settings) - 2, settings)


def test_room_for_pieces_is_part_of_a_budget_and_of_no_peak() -> None:
    settings = PlannerSettings(margin=0.02, slack_bytes=MIB, window_slack_bytes=0)
    for peak, room in ((20, 0), (24, 0), (25, 0.25), (32, 2), (40, 4), (400, 4)):
        block = Block(
            windows=(Window(first_unit=0, last_unit=0),), batch_size=8, learning_rate=0.1,
            predicted_peak_bytes=settings.predicted_peak(peak * MIB), predicted_seconds_per_sample=0.0,
        )  # fmt: skip
        budget = settings.needed_budget(peak * MIB)
        assert block.predicted_peak_bytes == int(1.02 * peak * MIB) + MIB
        assert budget - block.predicted_peak_bytes == room * MIB
        assert 0 <= budget - settings.budget_of(block) <= 1


def test_available_is_the_opposite_of_needed_budget() -> None:
    settings = PlannerSettings(reach=1, margin=0.02, slack_bytes=1000, window_slack_bytes=10)
    for budget in range(1100, 3000):
        available = int(settings.available(budget, 3))
        assert settings.needed_budget(available, 3) <= budget < settings.needed_budget(available + 1, 3)
    assert settings.available(None) > 2**50
    assert settings.needed_budget(1000, 2) == 1020 + 1000 + 20


def test_backpropagation_is_one_window_over_all_units() -> None:
    plan = plan_backpropagation(PROFILE, None, EXACT)

    assert [block.windows for block in plan.blocks] == [(Window(first_unit=0, last_unit=4),)]


def test_learning_rate_grows_with_the_batch_up_to_a_cap() -> None:
    settings = PlannerSettings(reach=1, learning_rate=0.1, reference_batch=32, maximum_learning_rate=0.3)

    assert [settings.learning_rate_at(batch) for batch in (8, 32, 64, 500)] == pytest.approx([0.025, 0.1, 0.2, 0.3])
    block = plan_units(
        PROFILE, 9000, settings=PlannerSettings(reach=1, margin=0, slack_bytes=0, window_slack_bytes=0)
    ).blocks[0]
    assert block.learning_rate == pytest.approx(0.05 * block.batch_size / 64)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"planner": "slowest"}, "Planner 'slowest' is unknown"),
        ({"reach": -1}, "Reach -1"),
        ({"useful_batch": 0}, "Useful batch 0"),
        ({"rho": 1.5}, r"Rho 1\.5"),
        ({"minimum_batch": 0}, "Batch sizes 0 to 256"),
        ({"minimum_batch": 9, "maximum_batch": 8}, "Batch sizes 9 to 8"),
        ({"batch_tolerance": -0.1}, r"Batch tolerance -0\.1"),
        ({"learning_rate": 0.0}, r"Learning rate 0\.0"),
    ],
)
def test_impossible_settings_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        PlannerSettings(**options)  # type: ignore[arg-type]


def test_windows_of_equal_reach_are_cut_where_most_input_gradients_are_saved() -> None:
    """By VGG-16's arithmetic: before the dear unit of a stage, not behind its pooling, where the cache is smaller."""
    convolutions = [1.8, 37.7, 18.9, 37.7, 18.9, 37.7, 37.7, 18.9, 37.7, 37.7, 9.4, 9.4, 9.4]
    outputs = [65536, 16384, 32768, 8192, 16384, 16384, 4096, 8192, 8192, 2048, 2048, 2048, 512]
    units = [(1, 1, 1, 6e6 * million, numbers) for million, numbers in zip(convolutions, outputs, strict=True)]

    plan = plan_units(make_profile(units, reach=13), None, PlannerSettings(reach=0, views=4))

    windows = [window for block in plan.blocks for window in block.windows]
    assert [window.first_unit for window in windows] == [0, 3, 6, 9]
