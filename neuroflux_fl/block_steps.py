"""A block's modules and optimizers, alive only as long as the block is trained, and one optimizer step of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from neuroflux_fl.device_memory import forget_failed_backward
from neuroflux_fl.errors import UsageError
from neuroflux_fl.frugal_convolution import WeightUpdate, prepare_updates, weight_updates
from neuroflux_fl.local_step import add_gradients, apply_gradients, make_optimizer, train_window
from neuroflux_fl.plan import Block, Window
from neuroflux_fl.sample_source import SampleSource
from neuroflux_fl.unit_store import UnitStore

if TYPE_CHECKING:
    from neuroflux_fl.block_training import TrainSettings


LiveWindow = tuple[Window, Sequence[nn.Module], nn.Module]
"""A window with its units and the head at its end, on the training device."""


class BlockSteps:
    """Weights come from the store, and go back to it with ``save``; optimizer state is made here and dropped here.

    Raises:
        UsageError: the block's batch is too small for batch norm.
    """

    def __init__(self, store: UnitStore, block: Block, settings: TrainSettings, device: torch.device) -> None:
        self._store = store
        self._compute = settings.compute
        self._similarity = settings.optimizer.similarity
        self._device = device
        self._pairs = {
            unit: store.load(
                unit, device, with_head=unit == window.last_unit, prepare=partial(prepare_pair, window, settings)
            )
            for window in block.windows
            for unit in window.units
        }
        self.windows: list[LiveWindow] = [
            (window, [self._pairs[unit].unit for unit in window.units], self._pairs[window.last_unit].head)
            for window in block.windows
        ]
        self._updates = weight_updates(self._pairs.values())
        self._optimizers = [
            make_optimizer(
                (p for module in (*units, head) for p in module.parameters()), settings.optimizer, block.learning_rate
            )
            for _, units, head in self.windows
        ]
        has_batch_norm = any(isinstance(m, nn.BatchNorm2d) for pair in self._pairs.values() for m in pair.modules())
        self.smallest = 2 if has_batch_norm else 1
        if block.samples_at_once < self.smallest:
            raise UsageError(
                f"Batch size {block.samples_at_once} is too small for batch norm: give at least "
                f"{self.smallest}, or use group norm."
            )

    def begin_epoch(self) -> None:
        """Modules go to training mode."""
        for pair in self._pairs.values():
            pair.train()

    def step(
        self, inputs: SampleSource, batch: NDArray[np.int64], view: int, rate: float, *, pieces: int = 1
    ) -> list[Tensor]:
        """One optimizer step of every window; returns their losses, scalars without gradient.

        With several pieces, gradients are added up over that many equal micro-batches before the weights move.
        """
        set_learning_rate(self._optimizers, self._updates, rate)
        if pieces == 1:
            return self._pass(inputs, batch, view, share=None)
        losses = [self._pass(inputs, piece, view, share=1 / pieces) for piece in np.split(batch, pieces)]
        for optimizer in self._optimizers:
            apply_gradients(optimizer)
        return [torch.stack(of_window).mean() for of_window in zip(*losses, strict=True)]

    def drop_gradients(self) -> None:
        """Forget a step that was cut short, and what the allocator kept for it."""
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none=True)
        forget_failed_backward()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def save(self) -> None:
        """Write every unit of the block, with its head where a window ends at it."""
        for unit, pair in self._pairs.items():
            self._store.save(unit, pair)

    def _pass(self, inputs: SampleSource, batch: NDArray[np.int64], view: int, *, share: float | None) -> list[Tensor]:
        """Forward and backward of every window; each steps at once where there is no ``share``."""
        labels = torch.from_numpy(inputs.labels[batch]).to(self._device)
        # One name for input and output, so that a window's input is freed as soon as its output exists.
        values = self._compute.place(inputs.read(batch, view))
        losses = []
        for (window, units, head), optimizer in zip(self.windows, self._optimizers, strict=True):
            checkpoints = window.checkpoint_positions
            if share is None:
                values, loss = train_window(
                    units,
                    head,
                    optimizer,
                    values,
                    labels,
                    compute=self._compute,
                    checkpoints=checkpoints,
                    similarity=self._similarity,
                )
            else:
                values, loss = add_gradients(
                    units,
                    head,
                    values,
                    labels,
                    compute=self._compute,
                    checkpoints=checkpoints,
                    similarity=self._similarity,
                    share=share,
                )
            losses.append(loss)
        return losses


def set_learning_rate(
    optimizers: Iterable[torch.optim.Optimizer], updates: Iterable[WeightUpdate], rate: float
) -> None:
    """For the next step, of sliced weights too."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate
    for update in updates:
        update.learning_rate = rate


def prepare_pair(window: Window, settings: TrainSettings, pair: nn.Module) -> None:
    """Lay out a unit of the window as the settings say, its large convolutions updated as the window says."""
    settings.compute.arrange(pair)
    prepare_updates(window, [pair], settings.optimizer)
