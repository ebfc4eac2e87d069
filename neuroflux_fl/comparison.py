"""Compare methods of training under the same budgets: each arm in a process of its own, their passes in turn."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

from neuroflux_fl.arm_run import CurvePoint, Schedule, TimedPass, TrainedArm
from neuroflux_fl.arm_tuning import Refusal, TunedArm, predict
from neuroflux_fl.arm_worker import ArmWorker, DataRequest
from neuroflux_fl.arms import Arm, ArmSetting
from neuroflux_fl.errors import UsageError
from neuroflux_fl.sizes import MIB, format_bytes, parse_bytes

Tell = Callable[[str, int], None]
"""Called with what goes on, and how many steps are done since the last call."""
OnResult = Callable[["ArmResult"], None]
"""Called with what an arm came to, as soon as it is known: a comparison that is cut short keeps that."""

_LARGEST_FACTOR = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """A limit, and how it was asked for."""

    asked: str
    bytes: int | None
    """None stands for no limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmResult:
    """What one arm came to under one budget."""

    arm: str
    budget: Budget
    how: TunedArm | Refusal
    passes: tuple[TimedPass, ...] = ()
    trained: TrainedArm | None = None

    @property
    def samples_per_second(self) -> float | None:
        """Median over the passes."""
        return statistics.median(one.samples / one.seconds for one in self.passes) if self.passes else None

    @property
    def peak_bytes(self) -> int | None:
        """The highest that was measured."""
        peaks = [one.peak_bytes for one in self.passes] + ([self.trained.peak_bytes] if self.trained else [])
        return max((peak for peak in peaks if peak is not None), default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """How the arms are run."""

    seconds: float = 10.0
    """About how long a timed pass lasts."""
    repeats: int = 3
    data: DataRequest | None = None
    """Train for real on this, instead of timed passes over noise."""
    schedule: Schedule = field(default_factory=Schedule)
    threads: int = 0
    seed: int = 0


def read_budget(text: str, smallest_bytes: int) -> Budget:
    """``smallest``, ``1.2x`` (of it), ``none`` or a size. Parts of the smallest are whole MiB, rounded up.

    Raises:
        UsageError: anything else.
    """
    asked = text.strip().lower()
    if asked == "none":
        return Budget(asked=asked, bytes=None)
    factor = 1.0 if asked == "smallest" else None
    if asked.endswith("x"):
        try:
            factor = float(asked[:-1])
        except ValueError:
            factor = -1.0
        if not 0 < factor <= _LARGEST_FACTOR:
            raise UsageError(f"Budget {text!r} is no factor of the smallest up to {_LARGEST_FACTOR}: write 1.2x.")
    size = parse_bytes(text) if factor is None else -(-int(smallest_bytes * factor) // MIB) * MIB
    return Budget(asked=asked, bytes=size)


def backpropagation_budget(setting: ArmSetting) -> int:
    """The smallest budget under which plain backpropagation runs at the smallest batch, in either layout."""
    return smallest_budgets([Arm("backprop", setting)])["backprop"]


def smallest_budgets(arms: Sequence[Arm]) -> dict[str, int]:
    """By arm, the smallest budget that trains the whole network, in the layout that needs least."""
    return {arm.name: min(arm.smallest_budget(layout) for layout in arm.setting.layouts()) for arm in arms}


def predict_arms(arms: Sequence[Arm], budgets: Sequence[Budget], tell: Tell) -> list[ArmResult]:
    """What every arm would do under every budget; nothing is run."""
    results = []
    for budget in budgets:
        for arm in arms:
            tell(f"{describe_budget(budget)}: {arm.name}", 0)
            results.append(ArmResult(arm=arm.name, budget=budget, how=predict(arm, budget.bytes)))
            tell(describe_budget(budget), 1)
    return results


def run_arms(
    setting: ArmSetting,
    arms: Sequence[str],
    budgets: Sequence[Budget],
    work: Work,
    tell: Tell,
    on_result: OnResult = lambda _: None,
) -> list[ArmResult]:
    """Tune and run every arm under every budget; ``steps`` of them are told one by one.

    Passes of the arms of a budget take turns, so that a machine that slows down slows them all. An arm keeps its
    process from budget to budget; but its allocator is told once, so that no limit means another process.
    """
    results: dict[Budget, list[ArmResult]] = {}
    for limited in (True, False):
        wanted = [budget for budget in budgets if (budget.bytes is not None) == limited]
        with ExitStack() as stack:
            workers: dict[str, ArmWorker] = {}
            for arm in arms if wanted else ():
                worker = ArmWorker(arm, setting, limited=limited, threads=work.threads, seed=work.seed)
                workers[arm] = stack.enter_context(worker)
            for budget in wanted:
                results[budget] = _run_budget(workers, budget, work, tell, on_result)
    return [result for budget in budgets for result in results[budget]]


def steps(arms: Sequence[str], budgets: Sequence[Budget], work: Work) -> int:
    """How many steps ``run_arms`` tells of."""
    return len(arms) * len(budgets) * (1 + (work.repeats if work.data is None else 1))


def describe_budget(budget: Budget) -> str:
    """For people: how it was asked for, and what that is."""
    if budget.bytes is None:
        return "no limit"
    size = format_bytes(budget.bytes)
    return f"{size} ({budget.asked})" if budget.asked == "smallest" or budget.asked.endswith("x") else size


def _run_budget(
    workers: Mapping[str, ArmWorker], budget: Budget, work: Work, tell: Tell, on_result: OnResult
) -> list[ArmResult]:
    results: dict[str, ArmResult] = {}
    under = describe_budget(budget)
    turns = work.repeats if work.data is None else 1
    for arm, worker in workers.items():
        tell(f"{under}: tuning {arm}", 0)
        results[arm] = ArmResult(arm=arm, budget=budget, how=worker.tune(budget.bytes))
        if isinstance(results[arm].how, Refusal):
            on_result(results[arm])
        tell(under, 1)
    for turn in range(turns):
        for arm, worker in workers.items():
            if isinstance(results[arm].how, TunedArm):
                tell(f"{under}: {arm}", 0)
                results[arm] = _run_once(worker, results[arm], work, tell)
                if turn == turns - 1:
                    on_result(results[arm])
            tell(under, 1)
    return list(results.values())


def _run_once(worker: ArmWorker, result: ArmResult, work: Work, tell: Tell) -> ArmResult:
    if work.data is None:
        return replace(result, passes=(*result.passes, worker.time_pass(work.seconds)))

    def on_point(point: CurvePoint) -> None:
        accuracy = f"{100 * point.test_accuracy:.1f} % at exit {point.unit} after {point.seconds:.0f} s"
        tell(f"{describe_budget(result.budget)}: {result.arm}, {accuracy}", 0)

    return replace(result, trained=worker.train(work.data, work.schedule, on_point))
