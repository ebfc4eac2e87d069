"""Run one arm in this process: timed passes over noise, or a real training with its curve of accuracy."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from neuroflux_fl.arm_tuning import TunedArm
from neuroflux_fl.arms import NEUROFLUX, Arm
from neuroflux_fl.block_steps import LiveWindow
from neuroflux_fl.block_training import HEAD_PASSES, BlockResult, TrainSettings
from neuroflux_fl.data import ImageData, LabelledImages, split_validation
from neuroflux_fl.device_training import CacheSettings, DeviceData, DeviceTrainer, TrainingResult
from neuroflux_fl.errors import DataError
from neuroflux_fl.evaluation import Score, score_exits, score_windows
from neuroflux_fl.exits import check_standard_errors, choose_exit, exit_parameters
from neuroflux_fl.plan import Block
from neuroflux_fl.unit_chain import ImageShape
from neuroflux_fl.unit_store import UnitStore

PASS_EPOCHS = 2
"""Of a timed pass: a cached view is then read as often as in a run of 8 epochs with 4 views."""
VALIDATION_SHARE = 0.1
"""Of the images, scored after every epoch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedPass:
    """A whole training of few images: weights read and written, cache, evaluation after every epoch."""

    samples: int
    """Images times epochs; of a few that no batch had room for, the block with the most of them counts."""
    seconds: float
    cache_seconds: float
    evaluate_seconds: float
    peak_bytes: int | None
    out_of_memory_retries: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """What one would have had if training had ended here: the exit that validation images choose."""

    seconds: float
    """Since tuning began, without the test images' part."""
    unit: int
    validation_accuracy: float
    test_accuracy: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedArm:
    """What a real training came to; the last point of the curve is its result."""

    curve: tuple[CurvePoint, ...]
    parameters: int
    """Of the chosen exit, its head included."""
    epochs: int
    """Most of any block."""
    seconds: dict[str, float]
    """By activity."""
    peak_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How long a real training goes on."""

    epochs: int = 8
    """Passes for each block, at most."""
    minutes: float | None = None
    """Instead of ``epochs``: so many as are expected to fill this time, tuning included."""
    patience: int = 3
    """Epochs without improvement that end a block."""
    depth_patience: int | None = 2
    """Blocks without a better exit, after which deeper ones are left out; None trains all."""
    head_passes: int = HEAD_PASSES
    """Of NeuroFlux: passes in which heads inside windows learn from frozen units."""
    views: int = 4
    standard_errors: float = 1.0
    """How many standard errors a smaller exit may be behind the best validation accuracy."""

    def __post_init__(self) -> None:
        """Refuse before any arm is tuned what training would refuse after it."""
        self.train_settings()
        check_standard_errors(self.standard_errors)

    def train_settings(self) -> TrainSettings:
        """What of it a training needs to know; the rest as it is by default."""
        return TrainSettings(
            epochs=self.epochs, patience=self.patience, depth_patience=self.depth_patience,
            head_passes=self.head_passes, views=self.views,
        )  # fmt: skip


def time_pass(arm: Arm, tuned: TunedArm, seconds: float, *, seed: int, device: torch.device) -> TimedPass:
    """Train fresh weights on noise for about ``seconds``, and at least two batches of the largest size."""
    return pass_with_blocks(arm, tuned, seconds, seed=seed, device=device)[0]


def pass_with_blocks(
    arm: Arm, tuned: TunedArm, seconds: float, *, seed: int, device: torch.device
) -> tuple[TimedPass, tuple[BlockResult, ...]]:
    """The same, and what each block came to."""
    images = samples_for(tuned, seconds)
    shape, classes = arm.setting.image_shape, arm.setting.classes
    data = DeviceData(
        train=noise(images, shape, classes, seed),
        validation=noise(max(1, round(images * VALIDATION_SHARE)), shape, classes, seed + 1),
        mean=(0.5,) * shape[0],
        std=(0.25,) * shape[0],
        horizontal_flip=True,
    )
    settings = TrainSettings(
        epochs=PASS_EPOCHS, patience=PASS_EPOCHS, views=1, optimizer=arm.optimizer, compute=tuned.compute,
        seed=seed,
    )  # fmt: skip
    with open_trainer(arm, tuned, data, settings, device) as trainer:
        before = trainer.stopwatch.seconds
        started = time.perf_counter()
        result = trainer.train(tuned.plan)
        elapsed = time.perf_counter() - started
        after = trainer.stopwatch.seconds
    timed = TimedPass(
        samples=min(block.samples for block in result.blocks),
        seconds=elapsed,
        cache_seconds=after["cache"] - before["cache"],
        evaluate_seconds=after["evaluate"] - before["evaluate"],
        peak_bytes=_peak_bytes(result),
        out_of_memory_retries=sum(block.out_of_memory_retries for block in result.blocks),
    )
    return timed, result.blocks


def samples_for(tuned: TunedArm, seconds: float) -> int:
    """Images of a pass: whole batches of the largest block."""
    largest = max(block.batch_size for block in tuned.plan.blocks)
    rate = 1 / sum(block.predicted_seconds_per_sample for block in tuned.plan.blocks)
    return largest * max(2, round(seconds * rate / PASS_EPOCHS / largest))


def train_arm(
    arm: Arm,
    tuned: TunedArm,
    images: ImageData,
    schedule: Schedule,
    *,
    seed: int,
    device: torch.device,
    on_point: Callable[[CurvePoint], None] = lambda _: None,
    clock: Callable[[], float] = time.perf_counter,
) -> TrainedArm:
    """Train on ``images`` and follow the accuracy that the chosen exit would have on test images.

    Test images decide nothing, and the time that they take is off the clock: seconds that pass or, with
    ``time.process_time``, that the process computes.

    Raises:
        DataError: there are too few images for one batch.
    """
    data = split_images(images, seed, smallest=arm.setting.planner.minimum_batch)
    epochs = schedule.epochs
    if schedule.minutes is not None:
        epoch_seconds = len(data.train) * sum(block.predicted_seconds_per_sample for block in tuned.plan.blocks)
        epochs = max(1, round((60 * schedule.minutes - tuned.tuning_seconds) / epoch_seconds))
    settings = replace(
        schedule.train_settings(), epochs=epochs, head_passes=schedule.head_passes if arm.name == NEUROFLUX else 0,
        optimizer=arm.optimizer, compute=tuned.compute, seed=seed,
    )  # fmt: skip
    with open_trainer(arm, tuned, data, settings, device) as trainer:
        trainer.stopwatch.add("profile", tuned.tuning_seconds)
        recorder = _Recorder(trainer, tuned, images.test, schedule.standard_errors, on_point, clock)
        result = trainer.train(tuned.plan, on_modules=recorder.on_modules, on_block=recorder.on_block)
        seconds = trainer.stopwatch.seconds
    return TrainedArm(
        curve=tuple(recorder.curve),
        parameters=exit_parameters(arm.network, recorder.curve[-1].unit),
        epochs=max(block.epochs for block in result.blocks),
        seconds=seconds,
        peak_bytes=_peak_bytes(result),
    )


def split_images(images: ImageData, seed: int, *, smallest: int) -> DeviceData:
    """The training images, a tenth of them kept for validation.

    Raises:
        DataError: fewer than ``smallest`` images are left to train on.
    """
    training, validation = split_validation(np.arange(len(images.train)), images.train.labels, VALIDATION_SHARE, seed)
    if len(training) < smallest:
        raise DataError(f"Data {images.name!r} leaves {len(training)} images to train on: give at least {smallest}.")
    return DeviceData.of(images, training, validation)


@contextmanager
def open_trainer(
    arm: Arm, tuned: TunedArm, data: DeviceData, settings: TrainSettings, device: torch.device
) -> Iterator[DeviceTrainer]:
    """A device with fresh weights and an empty cache, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="neuroflux-compare-") as folder:
        store = UnitStore(Path(folder) / "weights", arm.network)
        store.initialise(settings.seed)
        yield DeviceTrainer(
            arm.network,
            store,
            data,
            cache=CacheSettings(folder=Path(folder) / "cache"),
            settings=settings,
            planner=arm.setting.planner,
            memory_bytes=tuned.plan.budget_bytes,
            device=device,
        )


class _Recorder:
    """Scores the exits that are in training after every epoch, with the clock stopped."""

    def __init__(
        self,
        trainer: DeviceTrainer,
        tuned: TunedArm,
        test: LabelledImages,
        standard_errors: float,
        on_point: Callable[[CurvePoint], None],
        clock: Callable[[], float],
    ) -> None:
        self.curve: list[CurvePoint] = []
        self._clock = clock
        self._cache = trainer.cache
        self._tuned = tuned
        self._standard_errors = standard_errors
        self._on_point = on_point
        self._validation = trainer.flow(trainer.data.validation, views=1)
        self._test = trainer.flow(test, views=1)
        self._exits: dict[int, tuple[Score, Score]] = {}
        self._cut = 0
        self._began = clock() - tuned.tuning_seconds

    def on_modules(self, block: Block, windows: Sequence[LiveWindow]) -> None:
        """A point of the curve."""
        stopped = self._clock()
        validation, test = (
            score_windows(
                windows,
                flow.source_at(block.first_unit, known=self._cut),
                block.samples_at_once,
                self._tuned.compute,
            )
            for flow in (self._validation, self._test)
        )
        self._exits |= {unit: (validation[unit], test[unit]) for unit in validation}
        self._add_point(stopped - self._began)
        self._began += self._clock() - stopped

    def on_block(self, result: BlockResult) -> None:
        """Score the exits inside the block, and bring the test images to the next one, while no block's memory is
        measured."""
        stopped = self._clock()
        inner = [unit for unit in result.inner_exits if unit in result.validation]
        if inner:
            test = score_exits(self._test, self._cache, first_unit=result.block.first_unit, last_unit=inner[-1])
            self._exits |= {unit: (result.validation[unit], test[unit]) for unit in inner}
            self._add_point(stopped - self._began)
        following = [b.first_unit for b in self._tuned.plan.blocks if b.first_unit > result.block.last_unit]
        if following:
            self._test.source_at(following[0], known=self._cut)
            if self._cut:
                self._cache.remove_all(self._test.keys(self._cut))
            self._cut = following[0]
        self._began += self._clock() - stopped

    def _add_point(self, seconds: float) -> None:
        chosen = choose_exit({unit: score for unit, (score, _) in self._exits.items()}, self._standard_errors)
        point = CurvePoint(
            seconds=seconds,
            unit=chosen,
            validation_accuracy=self._exits[chosen][0].accuracy,
            test_accuracy=self._exits[chosen][1].accuracy,
        )
        self.curve.append(point)
        self._on_point(point)


def noise(count: int, shape: ImageShape, classes: int, seed: int) -> LabelledImages:
    """Random images with labels: training costs the same whatever they show."""
    generator = np.random.default_rng(seed)
    return LabelledImages(
        images=generator.integers(0, 256, (count, *shape), dtype=np.uint8),
        labels=generator.integers(0, classes, count, dtype=np.int64),
    )


def _peak_bytes(result: TrainingResult) -> int | None:
    peaks = [result.forward_peak_bytes, *(block.measured_peak_bytes for block in result.blocks)]
    return max((peak for peak in peaks if peak is not None), default=None)
