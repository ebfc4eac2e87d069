"""Tasks that were not answered in time: their devices are busy, and what they answer later is used or counted."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class OutstandingTask:
    """One task that was sent and not answered so far."""

    node_id: int
    round: int
    base: Mapping[int, NDArray[np.float32]]
    """Global arrays that the round began with."""
    sent_at: float
    """Seconds of the run."""
    expires_at: float
    """``time.monotonic()`` after which Flower drops the answer."""


class OutstandingTasks:
    """By message id. Arrays of old rounds are held only while an answer to them can still be used."""

    def __init__(self) -> None:
        self._tasks: dict[str, OutstandingTask] = {}

    def add(self, message_id: str, task: OutstandingTask) -> None:
        """Remember a task."""
        self._tasks[message_id] = task

    def pop(self, message_id: str) -> OutstandingTask:
        """Take a task out, because something came to it."""
        return self._tasks.pop(message_id)

    def forget_before(self, round: int) -> None:
        """Let go of arrays of rounds before ``round``, and of tasks that can no longer be answered."""
        now = time.monotonic()
        self._tasks = {
            message_id: replace(task, base=task.base if task.round >= round else {})
            for message_id, task in self._tasks.items()
            if task.expires_at > now
        }

    @property
    def message_ids(self) -> tuple[str, ...]:
        """Of all tasks."""
        return tuple(self._tasks)

    @property
    def busy_nodes(self) -> frozenset[int]:
        """Devices that still work on an old task."""
        return frozenset(task.node_id for task in self._tasks.values())
