"""Exits inside windows: once a block is trained, the heads before its windows' ends learn on its frozen units.

In training a window has one head, at its end. The others need no gradient through units, so a few passes forward give
every unit an exit for a small part of the time that the block took (docs/methods.md).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from neuroflux_fl.block_steps import LiveWindow, prepare_pair, set_learning_rate
from neuroflux_fl.block_training import TrainSettings, even_batches
from neuroflux_fl.checkpointing import run_units
from neuroflux_fl.device_memory import PeakMeter, is_out_of_memory, run_keeping
from neuroflux_fl.evaluation import Score, score_windows
from neuroflux_fl.frugal_convolution import weight_updates
from neuroflux_fl.learning_rate import rate_share
from neuroflux_fl.local_network import UnitWithHead
from neuroflux_fl.local_step import make_optimizer, train_window
from neuroflux_fl.memory_allocator import FreedMemory
from neuroflux_fl.plan import Block, Window
from neuroflux_fl.sample_source import PLAIN_VIEW, SampleSource
from neuroflux_fl.training_monitor import TrainingMonitor
from neuroflux_fl.unit_store import UnitStore

_SMALLEST_BATCH = 2  # batch norm learns nothing from less


@dataclass(frozen=True, slots=True, kw_only=True)
class InnerExits:
    """What training the heads inside a block came to."""

    units: tuple[int, ...] = ()
    """Whose heads are trained and stored; none where the deadline or the end of memory came first."""
    validation: dict[int, Score] = field(default_factory=dict)
    """By unit; empty without validation data."""
    measured_peak_bytes: int | None = None


def train_inner_heads(
    store: UnitStore,
    block: Block,
    inputs: SampleSource,
    settings: TrainSettings,
    *,
    validation: SampleSource | None,
    device: torch.device,
    memory_bytes: int | None = None,
    learning_rate_scale: float = 1.0,
    first_epoch: int = 0,
    deadline: float | None = None,
    monitor: TrainingMonitor | None = None,
) -> InnerExits:
    """Train the heads of a trained block that are at no window's end, for ``settings.head_passes`` passes.

    Units run in eval mode and stay as they are. At the block's batch size this holds less than training it did: no
    activations for a backward pass, and neither gradients nor momentum of units.

    Args:
        store: where the units come from and the heads go to.
        block: what was trained.
        inputs: activations at ``block.first_unit``, of the views that training read.
        settings: passes, optimizer, precision and learning-rate schedule.
        validation: activations of validation data at the same cut, to score these exits.
        device: where to train.
        memory_bytes: what training may hold; with it an allocator that can keep freed memory does so, up to the block's
            predicted peak, of which this needs less than half, and up to all of it where that ran out.
        learning_rate_scale: factor on the block's rate.
        first_epoch: number of earlier passes over this data.
        deadline: ``time.monotonic()`` after which the heads are given up.
        monitor: is told what is held.
    """
    units = inner_units(block)
    if not units or not settings.head_passes:
        return InnerExits()
    meter = PeakMeter(device)
    meter.start()
    (monitor or TrainingMonitor()).holds(meter.held_bytes)
    freed = FreedMemory(memory_bytes, device.type, expected_bytes=block.predicted_peak_bytes)
    pairs = _load(store, block, settings, device)
    passes = _Passes(inputs, block, pairs, settings, device, block.learning_rate * learning_rate_scale)
    try:
        finished = run_keeping(freed, partial(passes.run, first_epoch, deadline))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        finished = False  # the block is trained and stored; it has fewer exits
    if not finished:
        return InnerExits(measured_peak_bytes=meter.peak_bytes())
    for unit in units:
        store.save(unit, pairs[unit])
    scores: dict[int, Score] = {}
    if validation is not None and len(validation.labels):
        score = partial(score_windows, passes.windows, validation, block.samples_at_once, settings.compute)
        scores = run_keeping(freed, score)
    return InnerExits(units=units, validation=scores, measured_peak_bytes=meter.peak_bytes())


def inner_units(block: Block) -> tuple[int, ...]:
    """Units of the block at which no window ends."""
    ends = {window.last_unit for window in block.windows}
    return tuple(unit for unit in block.units if unit not in ends)


class _Passes:
    """The heads with their optimizers, each at the end of the frozen units that lead to it from the one before."""

    def __init__(
        self,
        inputs: SampleSource,
        block: Block,
        pairs: dict[int, UnitWithHead],
        settings: TrainSettings,
        device: torch.device,
        learning_rate: float,
    ) -> None:
        self._inputs = inputs
        self._block = block
        self._settings = replace(settings, epochs=settings.head_passes)
        self._views = settings.epochs
        self._device = device
        self._learning_rate = learning_rate
        self._updates = weight_updates(pairs.values())
        self.windows: list[LiveWindow] = []
        start = block.first_unit
        for unit in inner_units(block):
            between = Window(first_unit=start, last_unit=unit)
            self.windows.append((between, [pairs[index].unit for index in between.units], pairs[unit].head))
            start = unit + 1
        self._optimizers = [
            make_optimizer(head.parameters(), settings.optimizer, learning_rate) for *_, head in self.windows
        ]

    def run(self, first_epoch: int, deadline: float | None) -> bool:
        """All passes; False where the deadline came before their end."""
        count = len(self._inputs.labels)
        for _, units, head in self.windows:
            nn.ModuleList(units).eval()
            head.train()
        for epoch in range(self._settings.epochs):
            # Only views that training read are sure to be cached.
            view = first_epoch + epoch % self._views if self._settings.views > 1 else PLAIN_VIEW
            order = np.random.default_rng([self._settings.seed, self._block.first_unit, view]).permutation(count)
            done = 0
            size = self._block.samples_at_once
            for batch in even_batches(order, size, smallest=min(_SMALLEST_BATCH, size)):
                if deadline is not None and time.monotonic() > deadline:
                    return False
                rate = self._learning_rate * rate_share(self._settings, epoch + done / count)
                set_learning_rate(self._optimizers, self._updates, rate)
                self._step(batch, view)
                done += len(batch)
        return True

    def _step(self, batch: NDArray[np.int64], view: int) -> None:
        compute = self._settings.compute
        labels = torch.from_numpy(self._inputs.labels[batch]).to(self._device)
        values = compute.place(self._inputs.read(batch, view))
        for (_, units, head), optimizer in zip(self.windows, self._optimizers, strict=True):
            optimizer.zero_grad(set_to_none=True)  # of a step that was cut short
            with torch.no_grad(), compute.running(self._device):
                values = run_units(units, values)
            train_window([], head, optimizer, values, labels, compute=compute)


def _load(store: UnitStore, block: Block, settings: TrainSettings, device: torch.device) -> dict[int, UnitWithHead]:
    """Units up to the last inner one, laid out as they were trained; heads of inner ones only."""
    inner = inner_units(block)
    return {
        unit: store.load(unit, device, with_head=unit in inner, prepare=partial(prepare_pair, window, settings))
        for window in block.windows
        for unit in window.units
        if unit <= inner[-1]
    }
