"""Where the time goes: seconds by name, so that a figure can say what it includes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Seconds spent under each name. Nested uses count for the inner name alone.

    One thread measures; ``so_far`` may be called from others.
    """

    def __init__(self) -> None:
        # Replaced whole at every change, so that a reader never sees one half of it: seconds, names, since when.
        self._state: tuple[dict[str, float], tuple[str, ...], float] = (
            {"profile": 0.0, "train": 0.0, "cache": 0.0, "evaluate": 0.0}, (), 0.0,
        )  # fmt: skip

    @property
    def seconds(self) -> dict[str, float]:
        """By name, without what is running."""
        return dict(self._state[0])

    def so_far(self) -> dict[str, float]:
        """By name, with what is running. Two looks in the same microseconds may disagree by as much."""
        return self._until(time.perf_counter())

    def add(self, name: str, seconds: float) -> None:
        """Count time that was measured elsewhere."""
        known, running, since = self._state
        self._state = ({**known, name: known.get(name, 0.0) + seconds}, running, since)

    @contextmanager
    def running(self, name: str) -> Iterator[None]:
        """Count the time inside the ``with`` for ``name``."""
        now = time.perf_counter()
        outer = self._state[1]
        self._state = (self._until(now), (*outer, name), now)
        try:
            yield
        finally:
            now = time.perf_counter()
            self._state = (self._until(now), outer, now)

    def _until(self, now: float) -> dict[str, float]:
        seconds, running, since = self._state
        if not running:
            return dict(seconds)
        return {**seconds, running[-1]: seconds.get(running[-1], 0.0) + now - since}
