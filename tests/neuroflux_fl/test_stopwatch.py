"""Seconds by name, nested and after errors."""

from __future__ import annotations

import time

import pytest

from neuroflux_fl.stopwatch import Stopwatch


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)


def test_nested_time_counts_for_the_inner_name_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, watch = Clock(monkeypatch), Stopwatch()

    with watch.running("train"):
        clock.now += 1
        with watch.running("evaluate"):
            clock.now += 10
            with watch.running("train"):
                clock.now += 100
            clock.now += 20
        clock.now += 2

    assert watch.seconds == {"profile": 0, "train": 103, "cache": 0, "evaluate": 30}


def test_times_add_up_and_unknown_names_are_welcome(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, watch = Clock(monkeypatch), Stopwatch()

    for _ in range(3):
        clock.now += 50
        with watch.running("send"):
            clock.now += 2

    assert watch.seconds["send"] == 6


def test_so_far_counts_what_is_running(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, watch = Clock(monkeypatch), Stopwatch()
    watch.add("profile", 9.0)

    with watch.running("train"):
        clock.now += 2
        with watch.running("evaluate"):
            clock.now += 3
            assert watch.so_far() == {"profile": 9, "train": 2, "cache": 0, "evaluate": 3}
            assert watch.seconds["evaluate"] == 0
    clock.now += 50

    assert watch.so_far() == watch.seconds == {"profile": 9, "train": 2, "cache": 0, "evaluate": 3}


def test_an_error_ends_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, watch = Clock(monkeypatch), Stopwatch()

    def fail() -> None:
        with watch.running("cache"):
            clock.now += 4
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        fail()
    clock.now += 8
    with watch.running("train"):
        clock.now += 1

    assert (watch.seconds["cache"], watch.seconds["train"]) == (4, 1)
