"""What training is at, for whoever asks from another thread: written by plain assignments, never waited for."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from neuroflux_fl.device_report import ActivitySeconds, BlockReading, TrainingReading
from neuroflux_fl.stopwatch import Stopwatch

if TYPE_CHECKING:
    from neuroflux_fl.plan import Block

LARGEST_LOSS = 1e9
"""Stands for a loss that has diverged, which is no number that a report could carry."""
_ACTIVITIES = ("profile", "train", "cache", "evaluate")

Bytes = Callable[[], int | None]


def finite_loss(loss: float) -> float:
    """The loss, or ``LARGEST_LOSS`` where it is larger or no number."""
    return min(loss, LARGEST_LOSS) if math.isfinite(loss) else LARGEST_LOSS


class TrainingMonitor:
    """One thread trains and tells; any other may ask ``reading``. Costs training some attribute writes a step.

    Sums begin with the process. What is live, memory and speed, is looked at when somebody asks.
    """

    def __init__(self) -> None:
        """Idle, and waiting for its first task since now."""
        self._run = ""
        self._round = 0
        self._blocks: tuple[BlockReading, ...] = ()
        self._losses: Mapping[int, float] = {}
        self._held: Bytes | None = None
        self._cached: Bytes | None = None
        self._pass: _Pass | None = None
        self._samples = self._tasks = 0
        self._cache_hits = self._cache_writes = self._cache_written_bytes = self._cache_refusals = 0
        self._retries = self._deadlines = 0
        # Replaced whole: seconds of former tasks by activity, this task's stopwatch, and since when it waits.
        self._time: tuple[Mapping[str, float], Stopwatch | None, float | None] = ({}, None, time.perf_counter())
        self._told: Mapping[str, float] = {}
        self._telling = threading.Lock()

    @contextmanager
    def task(self, run: str) -> Iterator[None]:
        """A task of a run is worked on, of any kind. Another run's blocks and losses are forgotten."""
        if run != self._run:
            self._blocks, self._losses, self._round = (), {}, 0
        self._run = run
        self._time = (self._seconds(), None, None)
        try:
            yield
        finally:
            self._time = (self._seconds(), None, time.perf_counter())
            self._pass = None
            if self._held is not None:
                self._held = _nothing
            self._tasks += 1

    def trains_with(self, stopwatch: Stopwatch, cached_bytes: Bytes) -> None:
        """This task's stopwatch, and what tells how much its cache holds."""
        self._time = (self._seconds(), stopwatch, None)
        self._cached = cached_bytes

    def plan_known(self, round: int, blocks: Iterable[BlockReading]) -> None:
        """A training task has its plan; what was measured of a block that was planned the same before still holds."""
        before = {(block.first_unit, block.last_unit): block for block in self._blocks}
        self._round = round
        self._blocks = tuple(_with_former(block, before.get((block.first_unit, block.last_unit))) for block in blocks)

    def holds(self, held_bytes: Bytes) -> None:
        """What tells, from now on, how much memory training holds; it may be called from any thread."""
        self._held = held_bytes

    def epoch_began(self, block: Block, batch_size: int) -> None:
        """One pass of one block begins."""
        self._change(block, batch_size=batch_size)
        self._pass = _Pass(block.first_unit)

    def step(self, samples: int) -> None:
        """One step of all windows of the block is done."""
        self._samples += samples
        if self._pass is not None:
            self._pass.samples += samples

    def batch_halved(self, block: Block, batch_size: int) -> None:
        """Memory ran out, and training goes on with smaller batches."""
        self._retries += 1
        self._change(block, batch_size=batch_size)

    def epoch_ended(self, block: Block, losses: Mapping[int, float]) -> None:
        """The pass is over, with these mean losses by unit; where the deadline ended it, of what there was."""
        if self._pass is not None and (speed := self._pass.speed()) is not None:
            self._change(block, samples_per_second=speed)
        self._pass = None
        self._losses = {**self._losses, **{unit: finite_loss(loss) for unit, loss in losses.items()}}

    def block_ended(self, block: Block, measured_peak_bytes: int | None) -> None:
        """The block is trained."""
        self._change(block, measured_peak_bytes=measured_peak_bytes)
        self._held = None if measured_peak_bytes is None else _nothing

    def deadline_reached(self) -> None:
        """The task's deadline has ended its training."""
        self._deadlines += 1

    def cache_hit(self) -> None:
        """Activations were there."""
        self._cache_hits += 1

    def cache_written(self, size_bytes: int) -> None:
        """Activations were written."""
        self._cache_writes += 1
        self._cache_written_bytes += size_bytes

    def cache_refused(self) -> None:
        """Activations had no room."""
        self._cache_refusals += 1

    def reading(self) -> TrainingReading:
        """How things stand; for any thread, at any time."""
        held, cached = self._held, self._cached
        return TrainingReading(
            run=self._run,
            round=self._round,
            busy=self._time[2] is None,
            training_bytes=None if held is None else held(),
            blocks=self._blocks_now(),
            losses=tuple(sorted(self._losses.items())),
            samples=self._samples,
            tasks=self._tasks,
            cache_bytes=0 if cached is None else cached() or 0,
            cache_hits=self._cache_hits,
            cache_writes=self._cache_writes,
            cache_written_bytes=self._cache_written_bytes,
            cache_refusals=self._cache_refusals,
            out_of_memory_retries=self._retries,
            deadlines_reached=self._deadlines,
            seconds=self._seconds_told(),
        )

    def _seconds_told(self) -> ActivitySeconds:
        """Never less than was told before: a counter that went back by a microsecond would count as one begun anew."""
        with self._telling:  # of those who ask; training takes no lock
            now = self._seconds()
            self._told = {name: max(value, self._told.get(name, 0.0)) for name, value in now.items()}
            return ActivitySeconds(**self._told)

    def _seconds(self) -> dict[str, float]:
        """By activity, up to now."""
        former, stopwatch, idle_since = self._time
        task = {} if stopwatch is None else stopwatch.so_far()
        seconds = {name: former.get(name, 0.0) + task.get(name, 0.0) for name in _ACTIVITIES}
        waited = 0.0 if idle_since is None else time.perf_counter() - idle_since
        return {**seconds, "wait": former.get("wait", 0.0) + waited}

    def _blocks_now(self) -> tuple[BlockReading, ...]:
        blocks, present = self._blocks, self._pass
        speed = None if present is None else present.speed()
        if present is None or speed is None:
            return blocks
        return tuple(
            replace(block, samples_per_second=speed) if block.first_unit == present.first_unit else block
            for block in blocks
        )

    def _change(self, block: Block, **changes: Any) -> None:
        self._blocks = tuple(
            replace(reading, **changes) if reading.first_unit == block.first_unit else reading
            for reading in self._blocks
        )


class _Pass:
    """One pass over the data, as far as it is."""

    def __init__(self, first_unit: int) -> None:
        self.first_unit = first_unit
        self.samples = 0
        self._began = time.perf_counter()

    def speed(self) -> float | None:
        """Samples a second; None before the first step."""
        seconds = time.perf_counter() - self._began
        return self.samples / seconds if self.samples and seconds > 0 else None


def _with_former(block: BlockReading, former: BlockReading | None) -> BlockReading:
    if former is None or former.predicted_peak_bytes != block.predicted_peak_bytes:
        return block
    measured = former.measured_peak_bytes if block.measured_peak_bytes is None else block.measured_peak_bytes
    speed = former.samples_per_second if block.samples_per_second is None else block.samples_per_second
    return replace(block, measured_peak_bytes=measured, samples_per_second=speed)


def _nothing() -> int:
    return 0
