"""The profile that ``plan`` and ``train`` work from: traced, or traced and then measured on this machine."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import torch

from neuroflux_fl.compute import ComputeSettings
from neuroflux_fl.device_memory import warm_up_kernels
from neuroflux_fl.errors import BudgetError, UsageError
from neuroflux_fl.local_network import LocalNetwork
from neuroflux_fl.local_step import OptimizerSettings
from neuroflux_fl.machine_speed import measure_speed
from neuroflux_fl.memory_allocator import return_freed_memory_at_once
from neuroflux_fl.plan import Window
from neuroflux_fl.planning import PlannerSettings, plan_units
from neuroflux_fl.profiling import NetworkProfile, measure_profile, profile_network


def make_profile(
    network: LocalNetwork,
    settings: PlannerSettings,
    budget_bytes: int | None,
    mode: str,
    device: torch.device,
    *,
    depth: int = 0,
    optimizer: OptimizerSettings | None = None,
    compute: ComputeSettings | None = None,
) -> NetworkProfile:
    """Profile every window that the planner may use; under a budget, make the allocator keep to it first.

    With a ``depth`` the network counts as whole after that many units: backpropagation then ends at that exit's head.

    Raises:
        UsageError: an unknown mode, or a depth beyond the network.
    """
    if mode not in ("traced", "measured"):
        raise UsageError(f"Profile {mode!r} is unknown: choose traced or measured.")
    if budget_bytes is not None:
        return_freed_memory_at_once()
    warm_up_kernels()
    if depth > len(network):
        raise UsageError(f"Depth {depth} is beyond the network's {len(network)} units: give at most that many.")
    optimizer, compute = optimizer or OptimizerSettings(), compute or ComputeSettings()
    traced = profile_network(
        network, speed=measure_speed(device), reach=settings.reach, optimizer=optimizer, compute=compute
    )
    if depth:
        traced = replace(traced, whole_window=Window(first_unit=0, last_unit=depth - 1))
    if mode == "traced":
        return traced
    windows = {*traced.windows, traced.whole_window}
    with suppress(BudgetError):  # The planner says so again to the user.
        plan = plan_units(traced, budget_bytes, settings)  # may lead to windows that were not traced at the start
        windows |= {window for block in plan.blocks for window in block.windows}
    return measure_profile(
        network,
        traced,
        windows=windows,
        available_bytes=settings.available(budget_bytes),
        budget_bytes=budget_bytes,
        maximum_batch=settings.maximum_batch,
        minimum_batch=settings.minimum_batch,
        device=device,
        optimizer=optimizer,
        compute=compute,
    )
