"""Comparisons: budgets as they are asked for, arms in processes of their own, and what their answers come to."""

from __future__ import annotations

from dataclasses import replace

import pytest

from neuroflux_fl.arm_run import Schedule, TimedPass
from neuroflux_fl.arm_tuning import Refusal, TunedArm
from neuroflux_fl.arm_worker import ArmWorker, DataRequest
from neuroflux_fl.arms import ArmSetting
from neuroflux_fl.comparison import ArmResult, Budget, Work, read_budget, run_arms, steps
from neuroflux_fl.errors import DataError, NeurofluxError, UsageError
from neuroflux_fl.planning import PlannerSettings
from neuroflux_fl.sizes import MIB

SETTING = ArmSetting(
    model="vgg11", width=0.05, image_shape=(1, 32, 32), planner=PlannerSettings(maximum_batch=8, passes=2)
)


@pytest.mark.parametrize(
    ("text", "asked", "size"),
    [
        ("smallest", "smallest", 11 * MIB),
        ("1x", "1x", 11 * MIB),
        ("1.2x", "1.2x", 13 * MIB),
        ("none", "none", None),
        ("64MiB", "64mib", 64 * MIB),
    ],
)
def test_budgets_are_read(text: str, asked: str, size: int | None) -> None:
    assert read_budget(text, int(10.5 * MIB)) == Budget(asked=asked, bytes=size)


@pytest.mark.parametrize("text", ["fastx", "0x", "-1x", "nanx", "infx", "1001x", "much", ""])
def test_other_budgets_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        read_budget(text, MIB)


def test_median_of_the_passes_and_the_highest_peak_count() -> None:
    def one(seconds: float, peak: int) -> TimedPass:
        return TimedPass(
            samples=100, seconds=seconds, cache_seconds=0, evaluate_seconds=0, peak_bytes=peak, out_of_memory_retries=0
        )

    result = ArmResult(
        arm="backprop",
        budget=Budget(asked="none", bytes=None),
        how=Refusal(needed_bytes=1),
        passes=(one(10, 5), one(4, 7), one(5, 6)),
    )

    assert (result.samples_per_second, result.peak_bytes) == (20, 7)
    assert replace(result, passes=()).samples_per_second is None


def test_arms_run_in_processes_of_their_own() -> None:
    budgets = [Budget(asked="1mib", bytes=MIB), Budget(asked="6mib", bytes=6 * MIB)]
    work = Work(seconds=0.1, repeats=2, threads=1)
    told: list[int] = []
    known: list[ArmResult] = []

    results = run_arms(
        SETTING, ["neuroflux", "backprop-both"], budgets, work, lambda _, done: told.append(done), known.append
    )

    assert [(result.arm, result.budget) for result in results] == [
        (arm, budget) for budget in budgets for arm in ("neuroflux", "backprop-both")
    ]
    assert known == results
    assert sum(told) == steps(["neuroflux", "backprop-both"], budgets, work) == 12
    for refused in results[:2]:
        assert isinstance(refused.how, Refusal)
        assert MIB < refused.how.needed_bytes < 6 * MIB
        assert refused.passes == ()
    for result in results[2:]:
        assert isinstance(result.how, TunedArm)
        assert len(result.passes) == 2
        assert result.samples_per_second is not None
        assert result.peak_bytes is not None
    accumulated = results[3].how
    assert isinstance(accumulated, TunedArm)
    assert accumulated.plan.blocks[0].batch_size == 64
    assert accumulated.plan.blocks[0].windows[0].checkpoints


def test_a_mistake_in_a_worker_is_the_callers() -> None:
    with ArmWorker("backprop", SETTING, limited=False, threads=1, seed=0) as worker:
        worker.tune(None)
        with pytest.raises(DataError, match="neither a known name"):
            worker.train(DataRequest(name="no-such-data"), Schedule(), lambda _: None)


def test_a_worker_has_started_before_the_next_one_does() -> None:
    """Each measures how fast the machine is: six at once found it ten times as slow, and plans went by that."""
    worker = ArmWorker("sgd", SETTING, limited=False, threads=1, seed=0)

    with pytest.raises(UsageError, match="Method 'sgd' is unknown"), worker:
        pytest.fail("it was not waited for")
    assert worker._process.returncode is not None


def test_a_worker_that_dies_is_reported() -> None:
    with ArmWorker("backprop", SETTING, limited=False, threads=1, seed=0) as worker:
        worker._process.kill()
        with pytest.raises(NeurofluxError, match="method backprop ended with code -9"):
            worker.tune(None)


def test_a_worker_whose_parent_is_gone_ends_without_a_word(capfd: pytest.CaptureFixture[str]) -> None:
    with ArmWorker("backprop", SETTING, limited=False, threads=1, seed=0) as worker:
        assert worker._process.stdout is not None
        worker._send({"do": "tune", "budget_bytes": None})
        worker._process.stdout.close()

        assert worker._process.wait(timeout=100) == 0
    assert capfd.readouterr().err == ""
