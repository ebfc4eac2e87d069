"""How fast this machine computes, moves memory and starts operators: three numbers that turn a trace into seconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineSpeed:
    """Sustained rates; the defaults are of a two-core x86 machine and serve where nothing was measured."""

    flops_per_second: float = 1.2e11
    traffic_bytes_per_second: float = 6e9
    seconds_per_operator: float = 2e-5
    storage_bytes_per_second: float = 5e8

    def seconds(self, flops: float, traffic_bytes: float, operators: int) -> float:
        """Predicted time: arithmetic, memory traffic and operator starts one after the other."""
        return (
            flops / self.flops_per_second
            + traffic_bytes / self.traffic_bytes_per_second
            + operators * self.seconds_per_operator
        )


def measure_speed(device: torch.device) -> MachineSpeed:
    """Three short experiments, under a second together and under 40 MiB."""
    channels, side, batch = 64, 16, 32
    weight = torch.randn(channels, channels, 3, 3, device=device)
    image = torch.randn(batch, channels, side, side, device=device)
    large = torch.zeros(4 * 1024**2, device=device)  # 16 MiB: beyond a core's caches
    tiny = torch.zeros(8, device=device)
    convolution = _seconds(lambda: torch.nn.functional.conv2d(image, weight, padding=1), device)
    addition = _seconds(lambda: large + 1.0, device)
    operator = _seconds(lambda: tiny + 1.0, device)
    flops = 2 * batch * side * side * channels * channels * 9
    large_bytes = 4 * large.numel()
    return MachineSpeed(
        flops_per_second=flops / convolution,
        traffic_bytes_per_second=2 * large_bytes / addition,
        # A training step's operators also pass through autograd and allocation: about four bare operators.
        seconds_per_operator=4 * operator,
    )


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    samples = []
    for _ in range(15):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        samples.append(time.perf_counter() - started)
    return sorted(samples)[len(samples) // 2]
