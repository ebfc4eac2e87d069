"""What a monitor tells of training: live figures from another thread, sums that never go back."""

from __future__ import annotations

import math
import threading
import time
from dataclasses import asdict

import pytest

from neuroflux_fl.device_report import BlockReading
from neuroflux_fl.plan import Block, Window
from neuroflux_fl.stopwatch import Stopwatch
from neuroflux_fl.training_monitor import LARGEST_LOSS, TrainingMonitor

BLOCK = Block(
    windows=(Window(first_unit=0, last_unit=0), Window(first_unit=1, last_unit=1)),
    batch_size=8, learning_rate=0.1, predicted_peak_bytes=1000, predicted_seconds_per_sample=0.0,
)  # fmt: skip
PLANNED = BlockReading(first_unit=0, last_unit=1, batch_size=8, predicted_peak_bytes=1000)
LATER = BlockReading(first_unit=2, last_unit=2, batch_size=4, predicted_peak_bytes=700)


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def trained(monitor: TrainingMonitor, clock: Clock, speed: float = 4.0) -> None:
    """One pass of 16 samples, and the block's end."""
    monitor.epoch_began(BLOCK, 8)
    for _ in range(2):
        clock.now += 8 / speed
        monitor.step(8)
    monitor.epoch_ended(BLOCK, {0: 2.0, 1: 1.5})
    monitor.block_ended(BLOCK, 900)


def test_nothing_yet() -> None:
    reading = TrainingMonitor().reading()

    assert (reading.run, reading.busy, reading.training_bytes, reading.blocks, reading.samples) == (
        "",
        False,
        None,
        (),
        0,
    )


def test_a_block_in_training_is_seen_live(clock: Clock) -> None:
    monitor = TrainingMonitor()
    held = [300, 500]
    with monitor.task("run-1"):
        monitor.plan_known(3, [PLANNED, LATER])
        monitor.holds(lambda: held.pop(0))
        monitor.epoch_began(BLOCK, 8)
        assert monitor.reading().blocks == (PLANNED, LATER), "no speed before the first step"
        clock.now += 2
        monitor.step(8)

        reading = monitor.reading()

    assert (reading.run, reading.round, reading.busy, reading.tasks) == ("run-1", 3, True, 0)
    assert reading.training_bytes == 500
    assert reading.samples == 8
    assert [block.samples_per_second for block in reading.blocks] == [4.0, None]
    after = monitor.reading()
    assert (after.busy, after.tasks, after.training_bytes) == (False, 1, 0)


def test_what_a_block_came_to_stays(clock: Clock) -> None:
    monitor = TrainingMonitor()
    with monitor.task("run"):
        monitor.plan_known(1, [PLANNED, LATER])
        trained(monitor, clock)

        first, second = monitor.reading().blocks
        assert (first.measured_peak_bytes, first.samples_per_second) == (900, 4.0)
        assert second == LATER
        assert monitor.reading().losses == ((0, 2.0), (1, 1.5))
    with monitor.task("run"):
        monitor.plan_known(2, [PLANNED])
        assert monitor.reading().blocks == (first,), "until it is measured anew"


def test_a_block_that_is_planned_otherwise_begins_anew(clock: Clock) -> None:
    monitor = TrainingMonitor()
    larger = BlockReading(first_unit=0, last_unit=1, batch_size=16, predicted_peak_bytes=2000)
    with monitor.task("run"):
        monitor.plan_known(1, [PLANNED])
        trained(monitor, clock)
        monitor.plan_known(2, [larger])

    assert monitor.reading().blocks == (larger,)


def test_another_run_begins_anew_but_its_sums_go_on(clock: Clock) -> None:
    monitor = TrainingMonitor()
    with monitor.task("one"):
        monitor.plan_known(7, [PLANNED])
        trained(monitor, clock)
    with monitor.task("two"):
        reading = monitor.reading()

    assert (reading.run, reading.round, reading.blocks, reading.losses) == ("two", 0, (), ())
    assert reading.samples == 16


def test_memory_that_ran_out_and_a_platform_that_does_not_tell(clock: Clock) -> None:
    monitor = TrainingMonitor()
    with monitor.task("run"):
        monitor.plan_known(1, [PLANNED])
        monitor.holds(lambda: None)
        monitor.epoch_began(BLOCK, 8)
        monitor.batch_halved(BLOCK, 4)

        reading = monitor.reading()
        assert (reading.out_of_memory_retries, reading.blocks[0].batch_size) == (1, 4)
        assert reading.training_bytes is None
        monitor.block_ended(BLOCK, None)
    assert monitor.reading().training_bytes is None


@pytest.mark.parametrize("loss", [math.nan, math.inf, 1e300])
def test_a_loss_that_diverged_is_a_number(loss: float) -> None:
    monitor = TrainingMonitor()
    monitor.epoch_ended(BLOCK, {1: loss})

    assert monitor.reading().losses == ((1, LARGEST_LOSS),)


def test_what_happens_is_counted() -> None:
    monitor = TrainingMonitor()
    for _ in range(2):
        monitor.cache_hit()
        monitor.cache_written(100)
    monitor.cache_refused()
    monitor.deadline_reached()
    monitor.trains_with(Stopwatch(), lambda: 70)

    counts = asdict(monitor.reading())

    assert {name: counts[name] for name in counts if name.startswith("cache")} == {
        "cache_bytes": 70, "cache_hits": 2, "cache_writes": 2, "cache_written_bytes": 200, "cache_refusals": 1,
    }  # fmt: skip
    assert counts["deadlines_reached"] == 1


def test_where_the_time_went(clock: Clock) -> None:
    monitor = TrainingMonitor()
    clock.now += 5
    with monitor.task("run"):
        clock.now += 1  # nobody's
        stopwatch = Stopwatch()
        monitor.trains_with(stopwatch, lambda: 0)
        with stopwatch.running("cache"):
            clock.now += 10
        with stopwatch.running("train"):
            clock.now += 100
            live = monitor.reading().seconds
            with stopwatch.running("evaluate"):
                clock.now += 20
            clock.now += 3
    clock.now += 7
    with monitor.task("run"):
        stopwatch = Stopwatch()
        monitor.trains_with(stopwatch, lambda: 0)
        with stopwatch.running("profile"):
            clock.now += 2

    seconds = monitor.reading().seconds

    assert (live.wait, live.cache, live.train) == (5, 10, 100)
    assert asdict(seconds) == {"wait": 12, "cache": 10, "train": 103, "evaluate": 20, "profile": 2}


def test_a_task_that_fails_is_over() -> None:
    monitor = TrainingMonitor()

    def fail() -> None:
        with monitor.task("run"):
            monitor.epoch_began(BLOCK, 8)
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        fail()

    assert (monitor.reading().busy, monitor.reading().tasks) == (False, 1)


def test_sums_of_time_never_go_back_while_training_goes_on() -> None:
    monitor = TrainingMonitor()
    over = threading.Event()

    def train() -> None:
        while not over.is_set():
            with monitor.task("run"):
                stopwatch = Stopwatch()
                monitor.trains_with(stopwatch, lambda: 0)
                for name in ("cache", "train", "evaluate"):
                    with stopwatch.running(name):
                        monitor.step(1)

    thread = threading.Thread(target=train)
    thread.start()
    readings = [monitor.reading() for _ in range(2000)]
    over.set()
    thread.join()

    for activity in ("cache", "train", "evaluate", "wait"):
        values = [getattr(reading.seconds, activity) for reading in readings]
        assert values == sorted(values), activity
    assert readings[-1].samples > 0
