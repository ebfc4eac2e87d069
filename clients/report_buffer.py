"""Reports that the gateway has not acknowledged yet: numbered, in order, and no more than a stated number."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass

from neuroflux_fl.wire import telemetry_pb2 as pb


@dataclass(frozen=True, slots=True)
class KeptReport:
    """One of them."""

    number: int
    """From 1, without gaps; what has no room any more leaves one."""
    made_at: float
    """``time.monotonic()``."""
    report: pb.DeviceReport


class ReportBuffer:
    """One thread adds, others send and acknowledge. When it is full, the oldest goes."""

    def __init__(self, capacity: int) -> None:
        """Empty."""
        self._kept: deque[KeptReport] = deque(maxlen=capacity)
        self._last_number = 0
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, report: pb.DeviceReport) -> None:
        """Keep a report that was made now."""
        with self._changed:
            self._last_number += 1
            self._kept.append(KeptReport(self._last_number, time.monotonic(), report))
            self._changed.notify_all()

    def after(self, number: int, wait_seconds: float) -> KeptReport | None:
        """The first one with a larger number; None where there is none within the time."""
        with self._changed:
            self._changed.wait_for(lambda: self._kept and self._kept[-1].number > number, wait_seconds)
            return next((kept for kept in self._kept if kept.number > number), None)

    def acknowledge(self, number: int) -> None:
        """Forget all up to this number."""
        with self._changed:
            while self._kept and self._kept[0].number <= number:
                self._kept.popleft()
