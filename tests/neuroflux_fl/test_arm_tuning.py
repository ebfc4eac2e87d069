"""Tuning where memory runs out during a trial, as it does on a GPU that keeps to a budget by force, and in noise."""

from __future__ import annotations

import pytest
import torch

from neuroflux_fl.arm_tuning import TunedArm, _Trial, tune
from neuroflux_fl.arms import Arm, ArmSetting
from neuroflux_fl.compute import ComputeSettings
from neuroflux_fl.plan import Window
from neuroflux_fl.planning import PlannerSettings


def test_what_ran_out_of_memory_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    def step_time(_trial: _Trial, _window: Window, _accumulates: bool, _compute: object, batch: int) -> float:
        if batch > 4:
            raise torch.OutOfMemoryError("no more")
        return 1.0

    monkeypatch.setattr(_Trial, "_step_time", step_time)
    setting = ArmSetting(model="vgg11", width=0.05, image_shape=(1, 32, 32), planner=PlannerSettings(maximum_batch=16))

    how = tune(Arm("backprop", setting), None, torch.device("cpu"))

    assert isinstance(how, TunedArm)
    assert [block.batch_size for block in how.plan.blocks] == [4]


def test_other_errors_of_a_trial_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_arguments: object) -> float:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(_Trial, "_step_time", fail)
    setting = ArmSetting(model="vgg11", width=0.05, image_shape=(1, 32, 32), planner=PlannerSettings(maximum_batch=4))

    with pytest.raises(RuntimeError, match="shapes differ"):
        tune(Arm("backprop", setting), None, torch.device("cpu"))


def test_a_slow_moment_does_not_choose_the_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    slow_moment = iter([True])

    def step_time(_trial: _Trial, _window: Window, _accumulates: bool, compute: ComputeSettings, batch: int) -> float:
        if compute.channels_last:
            return batch * (3.0 if next(slow_moment, False) else 1.0)
        return batch * 2.0

    monkeypatch.setattr(_Trial, "_step_time", step_time)
    setting = ArmSetting(model="vgg11", width=0.05, image_shape=(1, 32, 32), planner=PlannerSettings(maximum_batch=4))

    how = tune(Arm("backprop", setting), None, torch.device("cpu"))

    assert isinstance(how, TunedArm)
    assert how.compute.channels_last
    assert how.plan.blocks[0].predicted_seconds_per_sample == 1.0
