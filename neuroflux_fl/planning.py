"""From a profile and a memory budget to a plan. Plain arithmetic: no torch, no clock, no randomness."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from neuroflux_fl.errors import BudgetError, UsageError
from neuroflux_fl.machine_speed import MachineSpeed
from neuroflux_fl.plan import UPDATES, Block, Plan, Window
from neuroflux_fl.profiling import NetworkProfile, WindowProfile
from neuroflux_fl.reach import fewest_windows
from neuroflux_fl.sizes import KIB, MIB, format_bytes

PLANNERS = ("fastest", "threshold")
_CACHED_NUMBER_BYTES = 2
_NO_LIMIT = 2.0**60
_NO_PIECES_BYTES = 24 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannerSettings:
    """How a device divides its work."""

    planner: str = "fastest"
    """``fastest``: least predicted time. ``threshold``: merge units of like batch sizes (the paper's idea)."""
    reach: int = 0
    """Units in a window at most. 1 is NeuroFlux as published; 0 is as many as fit at ``useful_batch``, up to
    ``longest_share`` of the network."""
    progressive: bool = False
    """Whether a block is trained to its end before the next one begins, for many passes, as on a single device. Blocks
    are then no longer than ``longest_share`` of the network either, however much would fit."""
    longest_share: float = 0.25
    """Four windows, one after the other, were as accurate as one over the whole network after long training, and far
    ahead of it, and of all units at once, after short (docs/methods.md)."""
    useful_batch: int = 16
    """A window that does not fit at this batch size gets sliced updates; with reach 0, memory beyond what it needs is
    spent on longer windows. ``batch_tolerance`` does not go below it where the fastest
    batch is not smaller: from a few samples batch norm learns badly."""
    rho: float = 0.4
    """Only for ``threshold``: units merge while their batch sizes differ by at most this share."""
    minimum_batch: int = 2
    maximum_batch: int = 256
    batch_tolerance: float = 0.1
    """Share of a sample's time given up for a smaller batch: more steps in a pass teach better (docs/methods.md)."""
    learning_rate: float = 0.05
    """At ``reference_batch``; a block's rate grows linearly with its batch size, up to ``maximum_learning_rate``."""
    reference_batch: int = 64
    maximum_learning_rate: float = 0.2
    passes: int = 8
    """Passes over the data that the cost of writing a cache is spread over."""
    views: int = 1
    """Cached views written at each cut."""
    margin: float = 0.02
    """Share of the budget kept free, for what a trace cannot see."""
    slack_bytes: int = 1280 * KIB
    """Bytes kept free beside the margin: just-in-time kernels and the allocator's rounding."""
    window_slack_bytes: int = 192 * KIB
    """Bytes more for every unit in a block's windows: each has kernels of its own."""
    pieces_bytes: int = 4 * MIB
    """Of a budget, beside the predicted peak, a quarter of what that has over 24 MiB and at most this: room for free
    pieces between tensors where the allocator keeps freed memory (``FreedMemory``), or else keeping would fail."""

    def __post_init__(self) -> None:
        if self.planner not in PLANNERS:
            raise UsageError(f"Planner {self.planner!r} is unknown: choose one of {', '.join(PLANNERS)}.")
        if self.reach < 0:
            raise UsageError(
                f"Reach {self.reach} is negative: give the units of a window at most, or 0 to go by the memory budget."
            )
        if not 0 <= self.rho <= 1:
            raise UsageError(f"Rho {self.rho} is not allowed: give a share from 0 to 1.")
        if not 1 <= self.minimum_batch <= self.maximum_batch:
            raise UsageError(
                f"Batch sizes {self.minimum_batch} to {self.maximum_batch} are not allowed: "
                "give a minimum of at least 1 and a maximum that is not smaller."
            )
        if not 0 < self.longest_share <= 1:
            raise UsageError(f"Longest share {self.longest_share} is not allowed: give a share above 0, up to 1.")
        if not self.batch_tolerance >= 0:
            raise UsageError(f"Batch tolerance {self.batch_tolerance} is negative: give a share of 0 or more.")
        if self.useful_batch < 1:
            raise UsageError(f"Useful batch {self.useful_batch} is too small: give at least 1.")
        if not 0 < self.learning_rate < math.inf:
            raise UsageError(f"Learning rate {self.learning_rate} is not positive and finite: give for example 0.05.")

    def learning_rate_at(self, batch_size: int) -> float:
        """Linear scaling with the batch size, capped."""
        return min(self.maximum_learning_rate, self.learning_rate * batch_size / self.reference_batch)

    def predicted_peak(self, peak_bytes: float, units: int = 1) -> int:
        """Of a block of so many units: what the profile says, margin and slack added."""
        return int(peak_bytes * (1 + self.margin)) + self._slack(units)

    def needed_budget(self, peak_bytes: float, units: int = 1) -> int:
        """The smallest budget for such a block: its predicted peak, and room for pieces."""
        return self.predicted_peak(peak_bytes, units) + self._room(peak_bytes)

    def budget_of(self, block: Block) -> int:
        """The smallest budget for a block that is planned."""
        peak_bytes = (block.predicted_peak_bytes - self._slack(len(block.units))) / (1 + self.margin)
        return block.predicted_peak_bytes + self._room(peak_bytes)

    def available(self, budget_bytes: int | None, units: int = 1) -> float:
        """The opposite of ``needed_budget``: what the profile's figures may add up to. A large number for no limit."""
        if budget_bytes is None:
            return _NO_LIMIT
        # Exactly the opposite, so that a budget which an error message names really does.
        peaks = range(budget_bytes + 1)
        return max(0, bisect_right(peaks, budget_bytes, key=lambda peak: self.needed_budget(peak, units)) - 1)

    def _slack(self, units: int) -> int:
        return self.slack_bytes + units * self.window_slack_bytes

    def _room(self, peak_bytes: float) -> int:
        return int(min(self.pieces_bytes, max(0.0, (peak_bytes - _NO_PIECES_BYTES) / 4)))


def plan_units(
    profile: NetworkProfile,
    budget_bytes: int | None,
    settings: PlannerSettings,
    *,
    first_unit: int = 0,
    last_unit: int | None = None,
) -> Plan:
    """Plan the training of ``first_unit`` to ``last_unit`` (by default all) under a budget (None: no limit).

    A unit that does not fit at the smallest batch is left untrained; its neighbours are still planned.

    Raises:
        BudgetError: no unit of the range fits; the message names the budget that would do.
    """
    last_unit = len(profile.units) - 1 if last_unit is None else last_unit
    windows, untrained = _cut_windows(profile, budget_bytes, settings, first_unit, last_unit)
    if not windows:
        needed = min(_needed(profile, unit, settings) for unit in range(first_unit, last_unit + 1))
        raise BudgetError(
            f"Memory budget {format_bytes(budget_bytes or 0)} trains none of units {first_unit} to {last_unit}: the "
            f"smallest needs {format_bytes(needed)} at batch {settings.minimum_batch}. Raise the budget to "
            f"{-(-needed // MIB)}MiB, or choose a narrower model."
        )
    merge = _merge_fastest if settings.planner == "fastest" else _merge_by_threshold
    blocks: list[Block] = []
    for run in _contiguous_runs(windows):
        for group, smallest in _by_smallest_batch(profile, run, budget_bytes, settings):
            blocks.extend(merge(profile, group, budget_bytes, replace(settings, minimum_batch=smallest)))
    return Plan(budget_bytes=budget_bytes, blocks=tuple(blocks), untrained_units=untrained)


def plan_backpropagation(profile: NetworkProfile, budget_bytes: int | None, settings: PlannerSettings) -> Plan:
    """One window over all units with the largest batch that fits.

    Raises:
        BudgetError: the whole network does not fit at the smallest batch.
    """
    block = make_block(profile, (profile.whole_window,), budget_bytes, settings)
    if block is None:
        needed = backpropagation_minimum(profile, settings)
        raise BudgetError(
            f"Memory budget {format_bytes(budget_bytes or 0)} is too small for backpropagation: it needs "
            f"{format_bytes(needed)} at batch {settings.minimum_batch}. Raise the budget to {-(-needed // MIB)}MiB, or "
            "train in blocks (method neuroflux)."
        )
    return Plan(budget_bytes=budget_bytes, blocks=(block,), untrained_units=())


def minimum_budget(profile: NetworkProfile, settings: PlannerSettings) -> int:
    """The smallest budget that trains the first unit, without which no exit is trained from end to end."""
    return _needed(profile, 0, settings)


def full_budget(profile: NetworkProfile, settings: PlannerSettings) -> int:
    """The smallest budget that trains every unit."""
    return max(_needed(profile, unit, settings) for unit in range(len(profile.units)))


def backpropagation_minimum(profile: NetworkProfile, settings: PlannerSettings) -> int:
    """The smallest budget under which backpropagation runs at the smallest batch."""
    whole = profile.whole
    return settings.needed_budget(whole.peak_bytes(settings.minimum_batch), whole.window.reach)


def block_peak_bytes(profiles: Sequence[WindowProfile], batch_size: int) -> int:
    """Peak of training windows together: what all keep between steps, and the one step that adds most to it.

    Gradients are dropped after each window's step, so only one window's count at a time.
    """
    resident = sum(profile.resident_bytes for profile in profiles)
    return resident + max(profile.peak_bytes(batch_size) - profile.resident_bytes for profile in profiles)


def choose_batch(sizes: Iterable[int], seconds: Callable[[int], float], settings: PlannerSettings) -> int:
    """The smallest batch size at which a sample takes no more than ``batch_tolerance`` longer than at the fastest.

    Where the fastest is a useful batch, so is the one chosen.
    """
    taken = {size: seconds(size) for size in sorted(sizes)}
    fastest = min(taken, key=lambda size: taken[size])
    useful = _useful_batch(settings)
    least = useful if fastest >= useful else 1
    slowest = (1 + settings.batch_tolerance) * taken[fastest]
    return next(size for size, time in taken.items() if size >= least and time <= slowest)


def make_block(
    profile: NetworkProfile, windows: tuple[Window, ...], budget_bytes: int | None, settings: PlannerSettings
) -> Block | None:
    """The block with the smallest batch that fits and is about as fast as any, or None where not even one fits."""
    profiles = [profile.windows[window] for window in windows]
    units = sum(window.reach for window in windows)
    available = settings.available(budget_bytes, units)
    resident = sum(item.resident_bytes for item in profiles)
    largest = settings.maximum_batch
    for item in profiles:
        others = resident - item.resident_bytes
        largest = min(largest, item.largest_batch(available - others))
    if largest < settings.minimum_batch:
        return None

    def seconds(batch: int) -> float:
        return sum(item.seconds_per_step(batch, profile.speed) for item in profiles) / batch

    # Below what was measured a step's time is not known, and looks as good as at the smallest batch that was.
    measured = max((item.timings[0][0] for item in profiles if item.timings), default=settings.minimum_batch)
    smallest = max(settings.minimum_batch, min(measured, largest))
    batch_size = choose_batch(_candidates(smallest, largest), seconds, settings)
    return Block(
        windows=windows,
        batch_size=batch_size,
        learning_rate=settings.learning_rate_at(batch_size),
        predicted_peak_bytes=settings.predicted_peak(block_peak_bytes(profiles, batch_size), units),
        predicted_seconds_per_sample=seconds(batch_size) + _cache_seconds(profile, windows, settings),
    )


def _cut_windows(
    profile: NetworkProfile, budget_bytes: int | None, settings: PlannerSettings, first: int, last: int
) -> tuple[list[Window], tuple[int, ...]]:
    """Windows of up to ``reach`` units, shorter where a long one does not fit, and the units that do not fit."""
    if settings.reach == 0:
        useful = _useful_batch(settings)
        longest = _longest(profile, settings)
        windows, untrained = fewest_windows(
            range(first, last + 1),
            fits=lambda window: (
                window.reach <= longest and _largest_batch(profile, window, budget_bytes, settings) >= useful
            ),
            trainable=lambda window: _is_trainable(profile, window, budget_bytes, settings),
            cut_costs=_cut_nanoseconds(profile, settings),
        )
        return [_updated(profile, window, budget_bytes, settings) for window in windows], untrained
    cut: list[Window] = []
    left: list[int] = []
    unit = first
    while unit <= last:
        for end in range(min(last, unit + settings.reach - 1), unit - 1, -1):
            window = Window(first_unit=unit, last_unit=end)
            if _is_trainable(profile, window, budget_bytes, settings):
                cut.append(_updated(profile, window, budget_bytes, settings))
                unit = end + 1
                break
        else:
            left.append(unit)
            unit += 1
    return cut, tuple(left)


def _updated(profile: NetworkProfile, window: Window, budget_bytes: int | None, settings: PlannerSettings) -> Window:
    """The window with whole updates where so a useful batch fits, else with those that allow the largest batch."""
    batches: dict[Window, int] = {}
    for way in _ways(profile, window):
        batches[way] = _largest_batch(profile, way, budget_bytes, settings)
        if batches[way] >= _useful_batch(settings):
            return way  # the others are slower, and to trace sliced updates of a large unit takes seconds
    return max(batches, key=lambda way: batches[way])  # the first of equals: whole before sliced, exact before narrow


def _ways(profile: NetworkProfile, window: Window) -> list[Window]:
    """The window with every kind of updates that may make a difference."""
    if profile.sliceable_units.isdisjoint(window.units):
        return [window]
    return [replace(window, updates=updates) for updates in UPDATES]


def _is_trainable(profile: NetworkProfile, window: Window, budget_bytes: int | None, settings: PlannerSettings) -> bool:
    ways = _ways(profile, window)
    return any(_largest_batch(profile, way, budget_bytes, settings) >= settings.minimum_batch for way in ways)


def _needed(profile: NetworkProfile, unit: int, settings: PlannerSettings) -> int:
    """The smallest budget that trains a unit alone."""
    ways = _ways(profile, Window(first_unit=unit, last_unit=unit))
    # One between the first and the last never needs least, and each costs a trace.
    smallest = min(profile.windows[way].peak_bytes(settings.minimum_batch) for way in {ways[0], ways[-1]})
    return settings.needed_budget(smallest)


def _contiguous_runs(windows: Sequence[Window]) -> list[list[Window]]:
    runs: list[list[Window]] = []
    for window in windows:
        if runs and runs[-1][-1].last_unit + 1 == window.first_unit:
            runs[-1].append(window)
        else:
            runs.append([window])
    return runs


def _cut_nanoseconds(profile: NetworkProfile, settings: PlannerSettings) -> list[int]:
    """For each unit what a cut after it costs a sample of one pass: cache traffic, less the input gradient of the unit
    behind it, which no window's first unit computes.

    By a machine's usual speed, not by that measured here: like devices cut alike.
    """
    speed = MachineSpeed()
    costs = []
    for unit, following in pairwise(profile.units):
        moved = unit.output_numbers * _CACHED_NUMBER_BYTES * (1 + settings.views / settings.passes)
        saved = following.input_gradient_flops / speed.flops_per_second
        costs.append(round(1e9 * (moved / speed.storage_bytes_per_second - saved)))
    return [*costs, 0]


def _longest(profile: NetworkProfile, settings: PlannerSettings) -> int:
    return max(1, math.ceil(settings.longest_share * len(profile.units)))


def _may_be_block(profile: NetworkProfile, windows: Sequence[Window], settings: PlannerSettings) -> bool:
    units = sum(window.reach for window in windows)
    return not settings.progressive or len(windows) == 1 or units <= _longest(profile, settings)


def _useful_batch(settings: PlannerSettings) -> int:
    return max(settings.minimum_batch, min(settings.useful_batch, settings.maximum_batch))


def _by_smallest_batch(
    profile: NetworkProfile, windows: Sequence[Window], budget_bytes: int | None, settings: PlannerSettings
) -> list[tuple[list[Window], int]]:
    """Neighbours with the smallest batch that their blocks may have.

    With reach 0 no window trades a useful batch for speed: neither in a block shared with others, nor alone.
    """
    if settings.reach != 0:
        return [(list(windows), settings.minimum_batch)]
    useful = _useful_batch(settings)
    groups: list[tuple[list[Window], int]] = []
    for window in windows:
        smallest = min(useful, _largest_batch(profile, window, budget_bytes, settings))
        if groups and groups[-1][1] == smallest:
            groups[-1][0].append(window)
        else:
            groups.append(([window], smallest))
    return groups


def _merge_fastest(
    profile: NetworkProfile, windows: Sequence[Window], budget_bytes: int | None, settings: PlannerSettings
) -> list[Block]:
    """Dynamic programming over the cut points: the blocks with the least predicted time for one sample."""
    best: list[tuple[float, tuple[Block, ...]]] = [(0.0, ())]
    for end in range(1, len(windows) + 1):
        options = []
        for start in range(end):
            if not _may_be_block(profile, windows[start:end], settings):
                continue
            block = make_block(profile, tuple(windows[start:end]), budget_bytes, settings)
            if block is not None:
                seconds, blocks = best[start]
                options.append((seconds + block.predicted_seconds_per_sample, (*blocks, block)))
        best.append(min(options, key=lambda option: option[0]))
    return list(best[-1][1])


def _merge_by_threshold(
    profile: NetworkProfile, windows: Sequence[Window], budget_bytes: int | None, settings: PlannerSettings
) -> list[Block]:
    """Consecutive windows join while each one's largest batch is within ``rho`` of the first's (EuroSys 2024)."""
    blocks: list[Block] = []
    group: list[Window] = []
    current: Block | None = None
    first_batch = 0
    for window in windows:
        batch = min(settings.maximum_batch, _largest_batch(profile, window, budget_bytes, settings))
        may_join = bool(group) and _may_be_block(profile, (*group, window), settings)
        joined = make_block(profile, (*group, window), budget_bytes, settings) if may_join else None
        if joined is not None and abs(batch - first_batch) <= settings.rho * first_batch:
            group.append(window)
            current = joined
            continue
        if current is not None:
            blocks.append(current)
        group, first_batch = [window], batch
        current = make_block(profile, (window,), budget_bytes, settings)
    if current is not None:
        blocks.append(current)
    return blocks


def _largest_batch(profile: NetworkProfile, window: Window, budget_bytes: int | None, settings: PlannerSettings) -> int:
    return profile.windows[window].largest_batch(settings.available(budget_bytes, window.reach))


def _candidates(smallest: int, largest: int) -> list[int]:
    sizes = {smallest, largest}
    size = 2
    while size <= largest:
        sizes.update(candidate for candidate in (size, size + size // 2) if smallest <= candidate <= largest)
        size *= 2
    return sorted(sizes)


def _cache_seconds(profile: NetworkProfile, windows: Sequence[Window], settings: PlannerSettings) -> float:
    """Seconds for one sample of one pass: the block's input read, and its output written once for every view."""
    speed = profile.speed
    first, last = windows[0].first_unit, windows[-1].last_unit
    read = profile.units[first - 1].output_numbers * _CACHED_NUMBER_BYTES if first > 0 else 0
    write = profile.units[last].output_numbers * _CACHED_NUMBER_BYTES if last < len(profile.units) - 1 else 0
    forward = sum(profile.units[unit].forward_flops for unit in range(first, last + 1)) if write else 0.0
    once = write / speed.storage_bytes_per_second + forward / speed.flops_per_second
    return read / speed.storage_bytes_per_second + once * settings.views / settings.passes
