"""The training step of one window, apart from any data: what profiling traces and times."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

from neuroflux_fl.compute import ComputeSettings
from neuroflux_fl.frugal_convolution import FrugalConv2d, prepare_updates
from neuroflux_fl.local_network import LocalNetwork
from neuroflux_fl.local_step import OptimizerSettings, add_gradients, make_optimizer, train_window
from neuroflux_fl.plan import SLICED_BFLOAT16, Window
from neuroflux_fl.unit_chain import ImageShape, empty_copy

_MOST_RUNS = 9
_ENOUGH_SECONDS = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowStep:
    """A window, and how its steps are made."""

    network: LocalNetwork
    window: Window
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    compute: ComputeSettings = field(default_factory=ComputeSettings)
    accumulate: bool = False
    """A step is one micro-batch, whose gradients are added to those of the ones before it, and not yet applied."""

    @property
    def modules(self) -> list[nn.Module]:
        """The window's units and its head, as descriptions."""
        units = [self.network.chain.units[unit] for unit in self.window.units]
        return [*units, self.network.heads[self.window.last_unit]]

    @property
    def input_shape(self) -> ImageShape:
        """Of one sample at the window's start."""
        return self.network.chain.input_shapes[self.window.first_unit]

    def resident_bytes(self) -> int:
        """Weights, buffers and optimizer state: what stays between steps."""
        modules = nn.ModuleList(empty_copy(module) for module in self.modules)
        prepare_updates(self.window, modules, self.optimizer)
        weights = sum(4 * part.numel() for part in (*modules.parameters(), *modules.buffers()))
        if not self.optimizer.momentum:
            return weights
        narrow = self.window.updates == SLICED_BFLOAT16
        saved = sum(part.weight.nbytes // 2 for part in modules.modules() if narrow and isinstance(part, FrugalConv2d))
        return weights + sum(parameter.nbytes for parameter in modules.parameters()) - saved

    def build(self, batch: int, device: torch.device) -> tuple[nn.Module, Callable[[], None]]:
        """Modules with uninitialised weights on ``device``, and a step of ``batch`` samples; the first call of the
        step also makes the optimizer's state."""
        modules = [self.compute.arrange(empty_copy(module, device)) for module in self.modules]
        prepare_updates(self.window, modules, self.optimizer)
        optimizer = make_optimizer((p for module in modules for p in module.parameters()), self.optimizer, 1e-4)
        checkpoints = self.window.checkpoint_positions

        def step() -> None:
            inputs = self.compute.place(torch.zeros((batch, *self.input_shape), device=device))
            labels = torch.zeros(batch, dtype=torch.long, device=device)
            units, head = modules[:-1], modules[-1]
            compute, similarity = self.compute, self.optimizer.similarity
            if not (self.accumulate and optimizer.state):
                train_window(
                    units, head, optimizer, inputs, labels,
                    compute=compute, checkpoints=checkpoints, similarity=similarity,
                )  # fmt: skip
            if self.accumulate:
                add_gradients(
                    units, head, inputs, labels, compute=compute, checkpoints=checkpoints, similarity=similarity
                )

        return nn.ModuleList(modules), step

    def timed(self, batch: int, device: torch.device) -> Callable[[], float]:
        """A real step on weights of no meaning, which gives the seconds that it took."""
        modules, step = self.build(batch, device)
        for tensor in (*modules.parameters(), *modules.buffers()):
            nn.init.normal_(tensor.data, std=0.02) if tensor.is_floating_point() else tensor.zero_()

        def run() -> float:
            started = time.perf_counter()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            return time.perf_counter() - started

        return run


def typical_seconds(run: Callable[[], float], *, at_least: int) -> float:
    """The median of so many runs, and of more, up to nine, while they are within half a second: a machine's speed
    changes from one step to the next."""
    seconds: list[float] = []
    while len(seconds) < at_least or (len(seconds) < _MOST_RUNS and sum(seconds) < _ENOUGH_SECONDS):
        seconds.append(run())
    return statistics.median(seconds)
