"""Growing, jittered pauses between tries."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """How long to wait before a process that ended is started again."""

    first_seconds: float = 1.0
    largest_seconds: float = 30.0
    jitter: float = 0.2
    """Share by which a pause is made longer or shorter at random: devices that lost one server must not all come back
    in the same second."""
    settled_seconds: float = 60.0
    """A process that lived this long was healthy: what ends it is a first failure again."""

    def pause(self, failures: int, draw: float) -> float:
        """Seconds after the given number of failures in a row (1 or more); ``draw`` is from 0 to 1."""
        pause = min(self.largest_seconds, self.first_seconds * 2.0 ** min(failures - 1, 60))
        return pause * (1 + self.jitter * (2 * draw - 1))
