"""Train one block: every window against its own head, batch by batch, inside the block's memory."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from neuroflux_fl.block_progress import BlockProgress
from neuroflux_fl.block_steps import BlockSteps, LiveWindow
from neuroflux_fl.compute import ComputeSettings
from neuroflux_fl.device_memory import PeakMeter, is_out_of_memory, run_keeping
from neuroflux_fl.errors import UsageError
from neuroflux_fl.evaluation import Score, score_windows
from neuroflux_fl.learning_rate import rate_share
from neuroflux_fl.local_step import OptimizerSettings
from neuroflux_fl.memory_allocator import FreedMemory
from neuroflux_fl.plan import Block
from neuroflux_fl.sample_source import PLAIN_VIEW, SampleSource, TensorSource
from neuroflux_fl.sizes import MIB
from neuroflux_fl.stopwatch import Stopwatch
from neuroflux_fl.training_monitor import TrainingMonitor
from neuroflux_fl.unit_store import UnitStore

KEPT_SHARE = 1.13
"""Of a block's predicted peak, the limit under which freed memory is kept while that will do: less costs speed, more
takes memory that others can use (docs/methods.md)."""
_LATE_BYTES = 8 * MIB
_MOST_VIEWS = 10_000
HEAD_PASSES = 2
"""Enough for heads on frozen units, on a device that trains alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """How long and how each block is trained."""

    epochs: int = 8
    patience: int | None = 3
    """Epochs without a better validation accuracy of the block's last exit, after which the block is done. None trains
    all epochs and spends no time on scores between them."""
    minimum_improvement: float = 0.001
    depth_patience: int | None = None
    """Finished blocks in a row without a better validation accuracy, after which the rest of the network is not trained
    at all: more depth no longer pays. None, or no ``patience``, trains every block."""
    warmup_share: float = 0.1
    """Share of all steps in which the learning rate rises from near zero."""
    final_rate_share: float = 0.05
    """Learning rate at the last step over the block's rate; between them a half cosine. 1 keeps the rate."""
    head_passes: int = 0
    """Passes over the data, after a block is trained, in which the heads before its windows' ends learn from the frozen
    units; 0 leaves exits at windows' ends only."""
    views: int = 4
    """Cached views: the plain one and augmented ones. 1 is no augmentation at all."""
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    compute: ComputeSettings = field(default_factory=ComputeSettings)
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in (
            ("Epochs", self.epochs),
            ("Patience", self.patience),
            ("Views", self.views),
            ("Depth patience", self.depth_patience),
        ):
            if value is not None and value < 1:
                raise UsageError(f"{name} {value} is too small: give at least 1.")
        if self.views > _MOST_VIEWS:
            raise UsageError(f"Views {self.views} are too many: each is cached; give at most {_MOST_VIEWS}.")
        if self.head_passes < 0:
            raise UsageError(f"Head passes {self.head_passes} is negative: give 0 or more.")
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
    """By unit: the exits, after training; empty without patience."""
    inner_exits: tuple[int, ...] = ()
    """Units before a window's end whose heads were trained too, with ``head_passes``."""
    finished: bool
    """False where the deadline came first, or where there are too few samples for one batch."""

    @property
    def exits(self) -> tuple[int, ...]:
        """Units whose heads were trained."""
        return tuple(sorted((*(window.last_unit for window in self.block.windows), *self.inner_exits)))


def train_block(
    store: UnitStore,
    block: Block,
    inputs: SampleSource,
    settings: TrainSettings,
    *,
    validation: SampleSource | None = None,
    device: torch.device,
    base_learning_rate: float,
    memory_bytes: int | None = None,
    learning_rate_scale: float = 1.0,
    first_epoch: int = 0,
    deadline: float | None = None,
    stopwatch: Stopwatch | None = None,
    monitor: TrainingMonitor | None = None,
    on_epoch: Callable[[int, float, Score | None], None] | None = None,
    on_modules: Callable[[Sequence[LiveWindow]], None] | None = None,
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
        memory_bytes: what training may hold; with it an allocator that can keep freed memory does so, up to
            ``KEPT_SHARE`` of the block's predicted peak, and up to all of it where that ran out.
        learning_rate_scale: factor on the block's rate, given by the server's schedule.
        first_epoch: number of earlier passes over this data: views and orders go on from there.
        deadline: ``time.monotonic()`` after which training stops.
        stopwatch: takes "train" and "evaluate" seconds.
        monitor: is told of every pass and step.
        on_epoch: called after each epoch with its number, the last window's loss and its score.
        on_modules: called before it with the block's live windows, to look at and not to change.
    """
    stopwatch, monitor = stopwatch or Stopwatch(), monitor or TrainingMonitor()
    started = time.perf_counter()
    meter = PeakMeter(device)
    with stopwatch.running("train"):
        _bring_in_code(store, block, settings, device)
        meter.start()
        monitor.holds(meter.held_bytes)
        expected_bytes = int(KEPT_SHARE * block.predicted_peak_bytes)
        freed = FreedMemory(memory_bytes, device.type, expected_bytes=expected_bytes)
        steps = BlockSteps(store, block, settings, device)
    count = len(inputs.labels)
    run = BlockProgress(
        block=block,
        monitor=monitor,
        batch_size=min(block.batch_size, max(1, count)),
        micro_batch=block.micro_batch,
    )
    scores: dict[int, Score] = {}
    best, stale, epoch = -1.0, 0, 0
    finished = count >= steps.smallest
    peak_rate = block.learning_rate * learning_rate_scale
    while epoch < settings.epochs and finished:
        order = np.random.default_rng([settings.seed, block.first_unit, first_epoch + epoch]).permutation(count)
        view = first_epoch + epoch if settings.views > 1 else PLAIN_VIEW
        rate_at = partial(_rate_at, settings, peak_rate, epoch)
        with stopwatch.running("train"):
            run.begin_epoch()
            finished = _epoch(
                steps, inputs, order, view, run, freed, partial(meter.overran, _tolerated(memory_bytes)), rate_at,
                base_learning_rate, deadline,
            )  # fmt: skip
            run.end_epoch()
        epoch += 1
        if not finished:
            break
        last = None
        if settings.patience is not None and validation is not None and len(validation.labels):
            with stopwatch.running("evaluate"):
                score = partial(score_windows, steps.windows, validation, run.samples_at_once, settings.compute)
                scores = run_keeping(freed, score)
            last = scores[block.last_unit]
        if on_modules is not None:
            on_modules(steps.windows)
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
            steps.save()
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


def even_batches(
    order: NDArray[np.int64], batch_size: int, *, smallest: int, multiple: int = 1
) -> Iterator[NDArray[np.int64]]:
    """Cut ``order`` into batches of one size, at most ``batch_size``, so that the fewest samples are left over.

    The size is a multiple of ``multiple``, a micro-batch.

    One size means no small last batch, from which batch norm could not learn (``smallest``), and one set of compiled
    kernels. The few samples that are left over sit this epoch out; the order is another in the next.
    """
    count = len(order)
    evened = count // max(1, math.ceil(count / batch_size))
    rounded = (size // multiple * multiple for size in (evened, batch_size, *((count,) if multiple > 1 else ())))
    sizes = [size for size in rounded if smallest <= size <= min(count, batch_size)]
    if not sizes:
        return
    size = max(sizes, key=lambda size: (count // size * size, size))
    for batch in range(count // size):
        yield order[batch * size : (batch + 1) * size]


def _epoch(
    steps: BlockSteps,
    inputs: SampleSource,
    order: NDArray[np.int64],
    view: int,
    run: BlockProgress,
    freed: FreedMemory,
    overran: Callable[[], bool],
    rate_at: Callable[[float], float],
    base_learning_rate: float,
    deadline: float | None,
) -> bool:
    """One pass over the data; False where the deadline came before its end.

    Where memory ran out, or the first steps held far more than they may because a trace did not know this machine's
    kernels, the rest is tried again: where memory ran out under the wider limit first, then with no freed memory kept,
    then with half the batch.
    """
    steps.begin_epoch()
    remaining = order
    done = 0
    while len(remaining):
        try:
            with freed.kept():
                for batch in even_batches(
                    remaining, run.batch_size, smallest=steps.smallest, multiple=run.micro_batch or 1
                ):
                    if deadline is not None and time.monotonic() > deadline:
                        return False
                    # The planned rate belongs to the planned batch: after a halving it shrinks in proportion.
                    rate = rate_at(done / len(order)) * min(1.0, run.batch_size / run.block.batch_size)
                    pieces = len(batch) // (run.micro_batch or len(batch))
                    losses = steps.step(inputs, batch, view, rate, pieces=pieces)
                    done += len(batch)
                    run.add_step(losses, len(batch), rate / base_learning_rate)
                    if run.is_new_size and overran() and run.samples_at_once > steps.smallest:
                        break
                else:
                    return True
            keeping = freed.give_up()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            keeping = freed.widen()
            if not keeping and run.samples_at_once <= steps.smallest:
                raise
        run.steps_of_size = 0
        steps.drop_gradients()
        if not keeping:
            run.halve_batch(steps.smallest)
        remaining = order[done:]
    return True


def _tolerated(memory_bytes: int | None) -> int | None:
    """What a step may hold before its batch is halved: less is what libraries load late, or an allocator's slack, and
    would make the course of a training a matter of chance."""
    return None if memory_bytes is None else int(1.1 * memory_bytes) + _LATE_BYTES


def _bring_in_code(store: UnitStore, block: Block, settings: TrainSettings, device: torch.device) -> None:
    """Run the block's operators once at the smallest batch, so that the kernels' code is resident before measuring.

    Code pages of the libraries belong to the interpreter's side of the ledger, as the CUDA context does; they came to
    2 to 3 MiB at the first use of an operator.
    """
    steps = BlockSteps(store, block, settings, device)
    shape = store.network.chain.input_shapes[block.first_unit]
    source = TensorSource(torch.zeros((2, *shape), device=device), np.zeros(2, np.int64))
    steps.step(source, np.arange(2), PLAIN_VIEW, 0.0)
    score_windows(steps.windows, source, 2, settings.compute)


def _rate_at(settings: TrainSettings, peak_rate: float, epoch: int, done: float) -> float:
    """Learning rate where ``done``, a share of the epoch, lies behind."""
    return peak_rate * rate_share(settings, epoch + done)
