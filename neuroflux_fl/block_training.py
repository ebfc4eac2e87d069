"""Train one block: every window against its own head, batch by batch, inside the block's memory."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from neuroflux_fl.block_progress import BlockProgress
from neuroflux_fl.device_memory import PeakMeter, is_out_of_memory
from neuroflux_fl.errors import UsageError
from neuroflux_fl.evaluation import Score, score_windows
from neuroflux_fl.learning_rate import rate_share
from neuroflux_fl.local_step import OptimizerSettings, make_optimizer, train_window
from neuroflux_fl.plan import Block, Window
from neuroflux_fl.sample_source import PLAIN_VIEW, SampleSource, TensorSource
from neuroflux_fl.stopwatch import Stopwatch
from neuroflux_fl.training_monitor import TrainingMonitor
from neuroflux_fl.unit_store import UnitStore


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """How long and how each block is trained."""

    epochs: int = 8
    patience: int | None = 3
    """Epochs without a better validation accuracy of the block's last exit, after which the block is done. None trains
    all epochs and spends no time on scores between them."""
    minimum_improvement: float = 0.001
    warmup_share: float = 0.1
    """Share of all steps in which the learning rate rises from near zero."""
    final_rate_share: float = 0.05
    """Learning rate at the last step over the block's rate; between them a half cosine. 1 keeps the rate."""
    views: int = 4
    """Cached views: the plain one and augmented ones. 1 is no augmentation at all."""
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in (("Epochs", self.epochs), ("Patience", self.patience), ("Views", self.views)):
            if value is not None and value < 1:
                raise UsageError(f"{name} {value} is too small: give at least 1.")
        if not 0 <= self.warmup_share < 1 or not 0 <= self.final_rate_share <= 1:
            raise UsageError(
                f"Warm-up share {self.warmup_share} and final rate share {self.final_rate_share} must lie in 0 to 1."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockResult:
    """What training a block came to."""

    block: Block
    final_batch_size: int
    """Smaller than planned after an out-of-memory error."""
    measured_peak_bytes: int | None
    samples: int
    """Samples processed, counted once for all windows of the block."""
    steps: int
    effective_steps: float
    """Steps weighted by their learning rate over the base rate: how far a unit was moved."""
    seconds: float
    out_of_memory_retries: int
    final_loss: float
    """Mean loss of the last window over the last epoch."""
    losses: dict[int, float]
    """The same of every window, by the unit at its end; no number where no step was made."""
    epochs: int
    validation: dict[int, Score]
    """By unit: the exit at each window's end, after training; empty without patience."""
    finished: bool
    """False where the deadline came first, or where there are too few samples for one batch."""


def train_block(
    store: UnitStore,
    block: Block,
    inputs: SampleSource,
    settings: TrainSettings,
    *,
    validation: SampleSource | None = None,
    device: torch.device,
    base_learning_rate: float,
    learning_rate_scale: float = 1.0,
    first_epoch: int = 0,
    deadline: float | None = None,
    stopwatch: Stopwatch | None = None,
    monitor: TrainingMonitor | None = None,
    on_epoch: Callable[[int, float, Score | None], None] | None = None,
) -> BlockResult:
    """Train the block's units in the store on ``inputs`` and store the result, if the deadline allows to finish.

    Optimizer state is made here and dropped at the end. Nothing before ``block.first_unit`` is touched, and no
    gradient crosses a window's start.

    Args:
        store: where the units come from and go to.
        block: windows, batch size and learning rate.
        inputs: activations at ``block.first_unit``; each epoch reads another view.
        settings: epochs, early stopping, learning-rate schedule.
        validation: activations of validation data at the same cut, for early stopping; not read without patience.
        device: where to train.
        base_learning_rate: the rate at which a step counts as one effective step.
        learning_rate_scale: factor on the block's rate, given by the server's schedule.
        first_epoch: number of earlier passes over this data: views and orders go on from there.
        deadline: ``time.monotonic()`` after which training stops.
        stopwatch: takes "train" and "evaluate" seconds.
        monitor: is told of every pass and step.
        on_epoch: called after each epoch with its number, the last window's loss and its score.
    """
    stopwatch, monitor = stopwatch or Stopwatch(), monitor or TrainingMonitor()
    started = time.perf_counter()
    meter = PeakMeter(device)
    with stopwatch.running("train"):
        _bring_in_code(store, block, settings, device)
        meter.start()
        monitor.holds(meter.held_bytes)
        training = _BlockInTraining(store, block, settings, device)
    count = len(inputs.labels)
    run = BlockProgress(block=block, monitor=monitor, batch_size=min(block.batch_size, max(1, count)))
    scores: dict[int, Score] = {}
    best, stale, epoch = -1.0, 0, 0
    finished = count >= training.smallest
    peak_rate = block.learning_rate * learning_rate_scale
    while epoch < settings.epochs and finished:
        order = np.random.default_rng([settings.seed, block.first_unit, first_epoch + epoch]).permutation(count)
        view = first_epoch + epoch if settings.views > 1 else PLAIN_VIEW
        rate_at = partial(_rate_at, settings, peak_rate, epoch)
        with stopwatch.running("train"):
            run.begin_epoch()
            finished = training.epoch(inputs, order, view, run, rate_at, base_learning_rate, deadline)
            run.end_epoch()
        epoch += 1
        if not finished:
            break
        last = None
        if settings.patience is not None and validation is not None and len(validation.labels):
            with stopwatch.running("evaluate"):
                scores = score_windows(training.windows, validation, run.batch_size)
            last = scores[block.last_unit]
        if on_epoch is not None:
            on_epoch(epoch, run.final_loss, last)
        if last is not None:
            if last.accuracy > best + settings.minimum_improvement:
                best, stale = last.accuracy, 0
            else:
                stale += 1
            if settings.patience is not None and stale >= settings.patience:
                break
    if finished:
        with stopwatch.running("train"):
            training.save()
    peak = meter.peak_bytes()
    monitor.block_ended(block, peak)
    return BlockResult(
        block=block,
        final_batch_size=run.batch_size,
        measured_peak_bytes=peak,
        samples=run.samples,
        steps=run.steps,
        effective_steps=run.effective_steps,
        seconds=time.perf_counter() - started,
        out_of_memory_retries=run.retries,
        final_loss=run.final_loss,
        losses=run.losses,
        epochs=epoch,
        validation=scores,
        finished=finished,
    )


def even_batches(order: NDArray[np.int64], batch_size: int, *, smallest: int) -> Iterator[NDArray[np.int64]]:
    """Cut ``order`` into batches of one size, at most ``batch_size``, so that the fewest samples are left over.

    One size means no small last batch, from which batch norm could not learn (``smallest``), and one set of compiled
    kernels. The few samples that are left over sit this epoch out; the order is another in the next.
    """
    count = len(order)
    evened = count // max(1, math.ceil(count / batch_size))
    sizes = [size for size in (evened, batch_size) if smallest <= size <= count]
    if not sizes:
        return
    size = max(sizes, key=lambda size: (count // size * size, size))
    for batch in range(count // size):
        yield order[batch * size : (batch + 1) * size]


class _BlockInTraining:
    """The block's modules and optimizers, alive only as long as the block is trained."""

    def __init__(self, store: UnitStore, block: Block, settings: TrainSettings, device: torch.device) -> None:
        self._store = store
        self._block = block
        heads = {window.last_unit for window in block.windows}
        self._pairs = {unit: store.load(unit, device, with_head=unit in heads) for unit in block.units}
        self.windows = [(window, self._units(window), self._pairs[window.last_unit].head) for window in block.windows]
        self._optimizers = [
            make_optimizer(
                (p for module in (*units, head) for p in module.parameters()), settings.optimizer, block.learning_rate
            )
            for _, units, head in self.windows
        ]
        self._device = device
        has_batch_norm = any(isinstance(m, nn.BatchNorm2d) for pair in self._pairs.values() for m in pair.modules())
        self.smallest = 2 if has_batch_norm else 1
        if block.batch_size < self.smallest:
            raise UsageError(
                f"Batch size {block.batch_size} is too small for batch norm: give at least {self.smallest}, or use "
                "group norm."
            )

    def epoch(
        self,
        inputs: SampleSource,
        order: NDArray[np.int64],
        view: int,
        run: BlockProgress,
        rate_at: Callable[[float], float],
        base_learning_rate: float,
        deadline: float | None,
    ) -> bool:
        """One pass over the data; False where the deadline came before its end."""
        for pair in self._pairs.values():
            pair.train()
        remaining = order
        done = 0
        while len(remaining):
            try:
                for batch in even_batches(remaining, run.batch_size, smallest=self.smallest):
                    if deadline is not None and time.monotonic() > deadline:
                        return False
                    # The planned rate belongs to the planned batch: after a halving it shrinks in proportion.
                    rate = rate_at(done / len(order)) * min(1.0, run.batch_size / self._block.batch_size)
                    labels = torch.from_numpy(inputs.labels[batch]).to(self._device)
                    losses = self.step(inputs.read(batch, view), labels, rate)
                    done += len(batch)
                    run.add_step(losses, len(batch), rate / base_learning_rate)
                return True
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or run.batch_size <= self.smallest:
                    raise
            for optimizer in self._optimizers:
                optimizer.zero_grad(set_to_none=True)
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
            run.halve_batch(self.smallest)
            remaining = order[done:]
        return True

    def step(self, values: Tensor, labels: Tensor, rate: float) -> list[Tensor]:
        """One step of every window; returns their losses, scalars without gradient."""
        # One name for input and output, so that a window's input is freed as soon as its output exists.
        losses = []
        for (_, units, head), optimizer in zip(self.windows, self._optimizers, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate
            values, loss = train_window(units, head, optimizer, values, labels)
            losses.append(loss)
        return losses

    def save(self) -> None:
        """Write every unit of the block, with its head where a window ends at it."""
        for unit, pair in self._pairs.items():
            self._store.save(unit, pair)

    def _units(self, window: Window) -> list[nn.Module]:
        return [self._pairs[unit].unit for unit in window.units]


def _bring_in_code(store: UnitStore, block: Block, settings: TrainSettings, device: torch.device) -> None:
    """Run the block's operators once at the smallest batch, so that the kernels' code is resident before measuring.

    Code pages of the libraries belong to the interpreter's side of the ledger, as the CUDA context does; they came to
    2 to 3 MiB at the first use of an operator.
    """
    training = _BlockInTraining(store, block, settings, device)
    shape = store.network.chain.input_shapes[block.first_unit]
    training.step(torch.zeros((2, *shape), device=device), torch.zeros(2, dtype=torch.long, device=device), 0.0)
    score_windows(training.windows, TensorSource(torch.zeros((2, *shape), device=device), np.zeros(2, np.int64)), 2)


def _rate_at(settings: TrainSettings, peak_rate: float, epoch: int, done: float) -> float:
    """Learning rate where ``done``, a share of the epoch, lies behind."""
    return peak_rate * rate_share(settings, epoch + done)
