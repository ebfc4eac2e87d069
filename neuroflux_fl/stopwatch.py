"""Where the time goes: seconds by name, so that a figure can say what it includes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Seconds spent under each name. Nested uses count for the inner name alone."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {"profile": 0.0, "train": 0.0, "cache": 0.0, "evaluate": 0.0}
        self._running: list[tuple[str, float]] = []

    @contextmanager
    def running(self, name: str) -> Iterator[None]:
        """Count the time inside the ``with`` for ``name``."""
        now = time.perf_counter()
        if self._running:
            outer, since = self._running[-1]
            self.seconds[outer] += now - since
        self._running.append((name, now))
        try:
            yield
        finally:
            now = time.perf_counter()
            _, since = self._running.pop()
            self.seconds[name] = self.seconds.get(name, 0.0) + now - since
            if self._running:
                self._running[-1] = (self._running[-1][0], now)
