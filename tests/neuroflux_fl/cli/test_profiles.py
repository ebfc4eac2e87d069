"""Which windows are run for real before planning."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from neuroflux_fl.cli import profiles
from neuroflux_fl.cli.profiles import make_profile
from neuroflux_fl.local_network import LocalNetwork
from neuroflux_fl.machine_speed import MachineSpeed
from neuroflux_fl.plan import Block, Plan, Window
from neuroflux_fl.planning import PlannerSettings
from neuroflux_fl.profiling import profile_network

CPU = torch.device("cpu")


def test_with_reach_zero_the_windows_that_the_budget_leads_to_are_measured(
    small_network: LocalNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[set[Window]] = []

    def measure(_network: LocalNetwork, traced: Any, *, windows: Any, **_settings: Any) -> Any:
        measured.append(set(windows))
        return traced

    monkeypatch.setattr(profiles, "measure_profile", measure)
    monkeypatch.setattr(profiles, "return_freed_memory_at_once", lambda: None)
    settings = PlannerSettings(reach=0, longest_share=1.0, margin=0, slack_bytes=0, window_slack_bytes=0)
    pair = Window(first_unit=1, last_unit=2)
    traced = profile_network(small_network, speed=MachineSpeed(), reach=3)
    units = {Window(first_unit=unit, last_unit=unit) for unit in range(3)}
    budget = max(traced.windows[window].peak_bytes(16) for window in (*units, pair))

    make_profile(small_network, settings, budget, "measured", CPU)
    make_profile(small_network, settings, 1000, "measured", CPU)

    whole = {traced.whole_window}
    assert traced.whole.peak_bytes(16) > budget
    assert measured[0] == {Window(first_unit=0, last_unit=0), pair} | whole, "those of the plan, and backpropagation"
    assert measured[1] == whole, "a budget that is too small is the planner's to refuse"


def test_windows_that_the_planner_changes_are_measured_as_it_wants_them(
    small_network: LocalNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    sliced = Window(first_unit=1, last_unit=1, updates="sliced")
    block = Block(
        windows=(sliced,), batch_size=2, learning_rate=0.1, predicted_peak_bytes=0, predicted_seconds_per_sample=0.0
    )
    plan = Plan(budget_bytes=1000, blocks=(block,), untrained_units=())
    measured: list[set[Window]] = []
    monkeypatch.setattr(profiles, "plan_units", lambda *_: plan)
    monkeypatch.setattr(profiles, "measure_profile", lambda *_, windows, **__: measured.append(set(windows)))
    monkeypatch.setattr(profiles, "return_freed_memory_at_once", lambda: None)

    make_profile(small_network, PlannerSettings(), 1000, "measured", CPU)

    assert sliced in measured[0]
