"""Choose how an arm runs under a budget: by real steps of what fits, alike for all arms, or by prediction alone."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import torch

from neuroflux_fl.arms import NEUROFLUX, Arm, Shape
from neuroflux_fl.compute import ComputeSettings
from neuroflux_fl.device_memory import is_out_of_memory, release_free_memory, run_keeping
from neuroflux_fl.errors import BudgetError
from neuroflux_fl.memory_allocator import FreedMemory
from neuroflux_fl.plan import Plan, Window
from neuroflux_fl.planning import choose_batch, minimum_budget, plan_units
from neuroflux_fl.profiling import measure_profile
from neuroflux_fl.window_step import typical_seconds

_FIRST_BATCH = 64
"""Layouts and checkpoints are compared at this batch or the largest that fits."""
_LAYOUT_ROUNDS = 3
"""Layouts differ by less than a machine's speed from one second to the next, so each is tried that often."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TunedArm:
    """How an arm runs under a budget."""

    plan: Plan
    compute: ComputeSettings
    tuning_seconds: float = 0.0
    """Tracing and trying."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A budget under which the arm does not run."""

    needed_bytes: int
    """The smallest budget that would do."""


def predict(arm: Arm, budget_bytes: int | None, layouts: Sequence[ComputeSettings] | None = None) -> TunedArm | Refusal:
    """The plan with the least predicted time, nothing run; in any of ``layouts``, by default both."""
    started = time.perf_counter()
    planner = arm.setting.planner
    usable = _usable_layouts(arm, budget_bytes, layouts or arm.setting.layouts())
    if isinstance(usable, Refusal):
        return usable
    if arm.name == NEUROFLUX:
        compute = usable[0]
        plan = plan_units(arm.profile(compute), budget_bytes, planner)
    else:
        options = [
            (arm.predicted_seconds(shape, layout, batch), shape, layout, batch)
            for shape in arm.shapes
            for layout in usable
            if (largest := arm.largest_batch(shape, layout, budget_bytes)) is not None
            for batch in _sizes(largest, planner.minimum_batch)
        ]
        _, shape, compute, _ = min(options, key=lambda option: option[0])
        sizes = [batch for _, *choice, batch in options if choice == [shape, compute]]
        batch = choose_batch(sizes, lambda size: arm.predicted_seconds(shape, compute, size), planner)
        plan = arm.plan(shape, compute, batch, budget_bytes)
    return TunedArm(plan=plan, compute=compute, tuning_seconds=time.perf_counter() - started)


def tune(arm: Arm, budget_bytes: int | None, device: torch.device) -> TunedArm | Refusal:
    """What real steps show to be fastest: layout, then where the checkpoints are, then the smallest batch size that is
    about as fast as any."""
    started = time.perf_counter()
    layouts = _usable_layouts(arm, budget_bytes, arm.setting.layouts())
    if isinstance(layouts, Refusal):
        return layouts
    trial = _Trial(arm, budget_bytes, device)
    search = _tune_planner if arm.name == NEUROFLUX else _tune_block
    found = search(arm, budget_bytes, layouts, trial)
    if isinstance(found, Refusal):
        return found
    compute, plan = found
    return TunedArm(plan=plan, compute=compute, tuning_seconds=time.perf_counter() - started)


class _Trial:
    """Real steps of an arm under a budget; each is run once, but for those of which layouts are compared."""

    def __init__(self, arm: Arm, budget_bytes: int | None, device: torch.device) -> None:
        self.device = device
        self._arm = arm
        self._budget_bytes = budget_bytes
        self._step_seconds: dict[tuple[Window, bool, ComputeSettings, int], float] = {}

    def seconds(self, shape: Shape, compute: ComputeSettings, batch: int) -> float:
        """Seconds for one sample."""
        steps = [(window, shape.accumulates, compute, batch) for window in shape.windows]
        for step in steps:
            if step not in self._step_seconds:
                self._step_seconds[step] = self._run(*step)
        return sum(self._step_seconds[step] for step in steps) / batch

    def quickest_layout(self, steps: Mapping[ComputeSettings, Sequence[tuple[Shape, int]]]) -> ComputeSettings:
        """The layout in which its steps, shapes with their batch sizes, take the least time for one sample.

        Turn by turn, and again: a machine that is slower for a while is so for all.
        """
        if len(steps) > 1:
            for _ in range(_LAYOUT_ROUNDS):
                for of_turn in zip_longest(*([(layout, *step) for step in steps[layout]] for layout in steps)):
                    for layout, shape, batch in filter(None, of_turn):
                        self._try_again(shape, layout, batch)
        return min(steps, key=lambda layout: sum(self.seconds(shape, layout, batch) for shape, batch in steps[layout]))

    def _try_again(self, shape: Shape, compute: ComputeSettings, batch: int) -> None:
        for window in shape.windows:
            step = (window, shape.accumulates, compute, batch)
            self._step_seconds[step] = min(self._run(*step), self._step_seconds.get(step, math.inf))

    def _run(self, window: Window, accumulates: bool, compute: ComputeSettings, batch: int) -> float:
        try:
            return self._step_time(window, accumulates, compute, batch)
        except (RuntimeError, MemoryError) as error:
            # A GPU keeps to its budget by force, and its libraries may hold more than the trace says.
            if not is_out_of_memory(error):
                raise
            return math.inf

    def _step_time(self, window: Window, accumulates: bool, compute: ComputeSettings, batch: int) -> float:
        release_free_memory()
        freed = FreedMemory(self._budget_bytes, self.device.type)
        run = self._arm.step(window, compute, accumulates).timed(batch, self.device)

        def warm() -> float:
            run()
            return typical_seconds(run, at_least=1)

        return run_keeping(freed, warm)


def _usable_layouts(
    arm: Arm, budget_bytes: int | None, layouts: Sequence[ComputeSettings]
) -> list[ComputeSettings] | Refusal:
    """Those in which the arm runs under the budget: NeuroFlux as soon as it can train the first unit."""
    if budget_bytes is None:
        return list(layouts)
    needs = {layout: _needed_bytes(arm, layout) for layout in layouts}
    usable = [layout for layout, needed in needs.items() if needed <= budget_bytes]
    return usable or Refusal(needed_bytes=min(needs.values()))


def _needed_bytes(arm: Arm, layout: ComputeSettings) -> int:
    if arm.name == NEUROFLUX:
        return minimum_budget(arm.profile(layout), arm.setting.planner)
    return arm.smallest_budget(layout)


def _tune_planner(
    arm: Arm, budget_bytes: int | None, layouts: Sequence[ComputeSettings], trial: _Trial
) -> tuple[ComputeSettings, Plan] | Refusal:
    """The product's own planner, on times measured in the faster layout."""
    planner = arm.setting.planner
    plans = {layout: plan_units(arm.profile(layout), budget_bytes, planner) for layout in layouts}
    steps = {
        layout: [
            (Shape(windows=(window,)), min(block.batch_size, _FIRST_BATCH))
            for block in plan.blocks
            for window in block.windows
        ]
        for layout, plan in plans.items()
    }
    compute = trial.quickest_layout(steps)
    measured = measure_profile(
        arm.network,
        arm.profile(compute),
        windows=[window for block in plans[compute].blocks for window in block.windows],
        available_bytes=planner.available(budget_bytes),
        budget_bytes=budget_bytes,
        maximum_batch=planner.maximum_batch,
        minimum_batch=planner.minimum_batch,
        device=trial.device,
        optimizer=arm.optimizer,
        compute=compute,
    )
    try:
        return compute, plan_units(measured, budget_bytes, planner)
    except BudgetError:
        # The device holds more than the trace says.
        return Refusal(needed_bytes=minimum_budget(measured, planner))


def _tune_block(
    arm: Arm, budget_bytes: int | None, layouts: Sequence[ComputeSettings], trial: _Trial
) -> tuple[ComputeSettings, Plan]:
    largest = {
        (shape, layout): batch
        for shape in arm.shapes
        for layout in layouts
        if (batch := arm.largest_batch(shape, layout, budget_bytes)) is not None
    }
    first = {choice: min(batch, _FIRST_BATCH) for choice, batch in largest.items()}
    quickest, _ = min(first, key=lambda choice: arm.predicted_seconds(choice[0], choice[1], first[choice]))
    compute = trial.quickest_layout(
        {layout: [(quickest, batch)] for (shape, layout), batch in first.items() if shape == quickest}
    )
    # More arithmetic, that is more checkpoints, must be paid for by a larger batch.
    shapes: list[Shape] = []
    for shape in sorted((s for s, layout in first if layout == compute), key=lambda s: arm.flops(s, compute)):
        if all(first[shape, compute] > first[other, compute] for other in shapes):
            shapes.append(shape)
    shape = min(shapes, key=lambda shape: trial.seconds(shape, compute, first[shape, compute]))
    sizes = _sizes(largest[shape, compute], arm.setting.planner.minimum_batch)
    batch = choose_batch(sizes, lambda size: trial.seconds(shape, compute, size), arm.setting.planner)
    return compute, arm.plan(shape, compute, batch, budget_bytes, trial.seconds(shape, compute, batch))


def _sizes(largest: int, smallest: int) -> list[int]:
    """Batch sizes to try: the largest, and powers of two from the one below it down to a quarter."""
    power = 2 ** (largest.bit_length() - 1)
    return sorted({largest, *(size for size in (power, power // 2, power // 4) if size >= smallest)})
