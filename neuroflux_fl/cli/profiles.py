"""The profile that ``plan`` and ``train`` work from: traced, or traced and then measured on this machine."""

from __future__ import annotations

import torch

from neuroflux_fl.device_memory import return_freed_memory_at_once, warm_up_kernels
from neuroflux_fl.errors import UsageError
from neuroflux_fl.local_network import LocalNetwork
from neuroflux_fl.local_step import OptimizerSettings
from neuroflux_fl.machine_speed import measure_speed
from neuroflux_fl.planning import PlannerSettings
from neuroflux_fl.profiling import NetworkProfile, measure_profile, profile_network


def make_profile(
    network: LocalNetwork,
    settings: PlannerSettings,
    budget_bytes: int | None,
    mode: str,
    device: torch.device,
    optimizer: OptimizerSettings | None = None,
) -> NetworkProfile:
    """Profile every window that the planner may use; under a budget, make the allocator keep to it first.

    Raises:
        UsageError: an unknown mode.
    """
    if mode not in ("traced", "measured"):
        raise UsageError(f"Profile {mode!r} is unknown: choose traced or measured.")
    if budget_bytes is not None:
        return_freed_memory_at_once()
    warm_up_kernels()
    traced = profile_network(network, speed=measure_speed(device), reach=settings.reach, optimizer=optimizer)
    if mode == "traced":
        return traced
    return measure_profile(
        network,
        traced,
        windows=traced.windows,
        available_bytes=settings.available(budget_bytes),
        maximum_batch=settings.maximum_batch,
        minimum_batch=settings.minimum_batch,
        device=device,
        optimizer=optimizer,
    )
