"""Everything that one device does for a range of units: block after block, cached activations between them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from neuroflux_fl.activation_cache import ActivationCache
from neuroflux_fl.activation_flow import ActivationFlow
from neuroflux_fl.block_steps import LiveWindow
from neuroflux_fl.block_training import BlockResult, TrainSettings, train_block
from neuroflux_fl.data.images import ImageData, LabelledImages
from neuroflux_fl.device_memory import PeakMeter, run_keeping
from neuroflux_fl.evaluation import Score, score_exits
from neuroflux_fl.inner_exits import train_inner_heads
from neuroflux_fl.local_network import LocalNetwork
from neuroflux_fl.memory_allocator import FreedMemory
from neuroflux_fl.plan import Block, Plan
from neuroflux_fl.planning import PlannerSettings
from neuroflux_fl.sample_source import ImageSource, SampleSource
from neuroflux_fl.stopwatch import Stopwatch
from neuroflux_fl.training_monitor import TrainingMonitor
from neuroflux_fl.unit_store import UnitStore

CROP_PADDING = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceData:
    """A device's own share of the data."""

    train: LabelledImages
    validation: LabelledImages
    mean: tuple[float, ...]
    std: tuple[float, ...]
    horizontal_flip: bool

    @classmethod
    def of(cls, images: ImageData, training: NDArray[np.int64], validation: NDArray[np.int64]) -> DeviceData:
        """The training images with these numbers."""
        return cls(
            train=images.train.select(training),
            validation=images.train.select(validation),
            mean=images.mean,
            std=images.std,
            horizontal_flip=images.horizontal_flip,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSettings:
    """Where activations are cached, how much, and how exactly."""

    folder: Path
    quota_bytes: int | None = None
    precision: str = "float16"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingResult:
    """What training a range of units came to."""

    blocks: tuple[BlockResult, ...]
    """Finished blocks, in order; a block that the deadline cut short is not among them."""
    forward_peak_bytes: int | None
    """Peak of running frozen units forward into the cache, between blocks."""
    deadline_reached: bool
    deep_enough: bool = False
    """Blocks are left because more depth no longer paid."""


Progress = Callable[[Block, int, float, Score | None], None]
"""Called after each epoch with the block, the epoch's number, the loss and the validation score."""


class DeviceTrainer:
    """One device's data, weights and cache. ``train`` may be called again for other units, as rounds go by."""

    def __init__(
        self,
        network: LocalNetwork,
        store: UnitStore,
        data: DeviceData,
        *,
        cache: CacheSettings,
        settings: TrainSettings,
        planner: PlannerSettings,
        memory_bytes: int | None,
        device: torch.device,
        monitor: TrainingMonitor | None = None,
    ) -> None:
        self.network = network
        self.store = store
        self.data = data
        self.monitor = monitor or TrainingMonitor()
        stored = [4 * network.layout(unit).size_with_head for unit in range(len(network))]
        self.cache = ActivationCache(
            cache.folder,
            quota_bytes=cache.quota_bytes,
            reserve_bytes=max(stored) + sum(stored),  # a unit that is replaced, and the exit that is made in the end
            precision=cache.precision,
            monitor=self.monitor,
        )
        self.settings = settings
        self.planner = planner
        self.device = device
        self.stopwatch = Stopwatch()
        self._memory_bytes = memory_bytes
        self.monitor.trains_with(self.stopwatch, self.cache.used_bytes)
        with self.stopwatch.running("cache"):
            self._train_flow = self.flow(data.train, views=settings.views)
            self._validation_flow = self.flow(data.validation, views=1)

    def flow(self, data: LabelledImages, *, views: int) -> ActivationFlow:
        """A data set on its way through this device's network; with one view it is not augmented."""
        images = ImageSource(
            data,
            mean=self.data.mean,
            std=self.data.std,
            horizontal_flip=self.data.horizontal_flip,
            padding=CROP_PADDING,
            seed=self.settings.seed,
            device=self.device,
        )
        return ActivationFlow(
            images,
            self.store,
            self.cache,
            views=views,
            memory_bytes=self._memory_bytes,
            device=self.device,
            compute=self.settings.compute,
        )

    def train(
        self,
        plan: Plan,
        *,
        epochs: int | None = None,
        first_epoch: int = 0,
        known: int = 0,
        start: int | None = None,
        learning_rate_scale: float = 1.0,
        deadline: float | None = None,
        on_epoch: Progress | None = None,
        on_modules: Callable[[Block, Sequence[LiveWindow]], None] | None = None,
        on_block: Callable[[BlockResult], None] | None = None,
    ) -> TrainingResult:
        """Train the plan's blocks in order, each to its end, from activations of everything before it.

        Args:
            plan: the blocks; units of the chain before and between them run forward only.
            epochs: instead of the settings' number.
            first_epoch: passes that earlier calls have made.
            known: a cut whose activations earlier calls have left in the cache.
            start: a later cut whose activations an interrupted call has left there: where the block before the plan's
                first one began. Activations then come out as they would have without the interruption.
            learning_rate_scale: factor on every block's rate.
            deadline: ``time.monotonic()`` at which to stop; finished blocks are kept.
            on_epoch: progress.
            on_modules: called after each epoch, before ``on_epoch``, with the block and its live windows.
            on_block: called with each finished block, whose units are then in the store.
        """
        settings = replace(self.settings, epochs=self.settings.epochs if epochs is None else epochs)
        results: list[BlockResult] = []
        forward_peak: int | None = None
        start = known if start is None else start
        for block in plan.blocks:
            if deadline is not None and time.monotonic() > deadline:
                return TrainingResult(blocks=tuple(results), forward_peak_bytes=forward_peak, deadline_reached=True)
            passes = min(settings.epochs, settings.views)  # later ones come round to the same views
            views = {epoch % settings.views for epoch in range(first_epoch, first_epoch + passes)}
            inputs, validation, peak = self._advance(
                start, block.first_unit, keep=known, views=views, scored=settings.patience is not None
            )
            if peak is not None:
                forward_peak = max(forward_peak or 0, peak)
            start = block.first_unit
            result = train_block(
                self.store,
                block,
                inputs,
                settings,
                validation=validation,
                device=self.device,
                base_learning_rate=self.planner.learning_rate,
                memory_bytes=self._memory_bytes,
                learning_rate_scale=learning_rate_scale,
                first_epoch=first_epoch,
                deadline=deadline,
                stopwatch=self.stopwatch,
                monitor=self.monitor,
                on_epoch=None if on_epoch is None else lambda *event, b=block: on_epoch(b, *event),
                on_modules=None if on_modules is None else partial(on_modules, block),
            )
            if not result.finished:
                late = deadline is not None and time.monotonic() > deadline
                return TrainingResult(blocks=tuple(results), forward_peak_bytes=forward_peak, deadline_reached=late)
            try:
                result = self._with_inner_exits(
                    result, inputs, settings, validation, learning_rate_scale, first_epoch, deadline
                )
            except KeyboardInterrupt:
                if on_block is not None:
                    on_block(result)  # the block is trained and stored; it has fewer exits
                raise
            results.append(result)
            if on_block is not None:
                on_block(result)
            if _is_deep_enough(results, settings) and block is not plan.blocks[-1]:
                return TrainingResult(
                    blocks=tuple(results), forward_peak_bytes=forward_peak, deadline_reached=False, deep_enough=True
                )
        return TrainingResult(blocks=tuple(results), forward_peak_bytes=forward_peak, deadline_reached=False)

    def _with_inner_exits(
        self,
        result: BlockResult,
        inputs: SampleSource,
        settings: TrainSettings,
        validation: SampleSource | None,
        learning_rate_scale: float,
        first_epoch: int,
        deadline: float | None,
    ) -> BlockResult:
        with self.stopwatch.running("train"):
            found = train_inner_heads(
                self.store,
                replace(result.block, batch_size=result.final_batch_size),
                inputs,
                settings,
                validation=validation,
                device=self.device,
                memory_bytes=self._memory_bytes,
                learning_rate_scale=learning_rate_scale * result.final_batch_size / result.block.batch_size,
                first_epoch=first_epoch,
                deadline=deadline,
                monitor=self.monitor,
            )
        peaks = [peak for peak in (result.measured_peak_bytes, found.measured_peak_bytes) if peak is not None]
        return replace(
            result,
            inner_exits=found.units,
            validation=result.validation | found.validation,
            measured_peak_bytes=max(peaks, default=None),
        )

    def score_exits(self, first_unit: int, last_unit: int, *, data: LabelledImages | None = None) -> dict[int, Score]:
        """Accuracy of the stored exits on validation data, or on ``data``."""
        with self.stopwatch.running("evaluate"):
            flow = self._validation_flow if data is None else self.flow(data, views=1)
            return score_exits(flow, self.cache, first_unit=first_unit, last_unit=last_unit)

    def keep_cached_only(self, *cuts: int) -> None:
        """Remove cached activations but those at ``cuts``, which the next round or the rest of this one starts from."""
        flows = (self._train_flow, self._validation_flow)
        self.cache.keep_only(key for cut in cuts if cut for flow in flows for key in flow.keys(cut))

    def _advance(
        self, start: int, cut: int, *, keep: int, views: set[int], scored: bool
    ) -> tuple[SampleSource, SampleSource | None, int | None]:
        meter = PeakMeter(self.device)
        with self.stopwatch.running("cache"):
            meter.start()
            self.monitor.holds(meter.held_bytes)
            freed = FreedMemory(self._memory_bytes, self.device.type)
            inputs = run_keeping(freed, lambda: self._train_flow.source_at(cut, known=start, wanted=views))
            validation = None
            if scored:
                validation = run_keeping(freed, lambda: self._validation_flow.source_at(cut, known=start))
            if start not in (0, cut, keep):
                self.cache.remove_all([*self._train_flow.keys(start), *self._validation_flow.keys(start)])
        return inputs, validation, meter.peak_bytes()


def _is_deep_enough(results: Sequence[BlockResult], settings: TrainSettings) -> bool:
    """Whether the last ``depth_patience`` blocks brought no better exit than there was before them."""
    best = [max((score.accuracy for score in result.validation.values()), default=0.0) for result in results]
    patience = settings.depth_patience
    if patience is None or settings.patience is None or len(best) <= patience:
        return False
    return max(best[-patience:]) <= max(best[:-patience]) + settings.minimum_improvement
