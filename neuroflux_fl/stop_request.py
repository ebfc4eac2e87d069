"""A command ends when it is asked to: signals become a flag that a loop looks at, or an interrupt as of Ctrl-C."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class StopRequest:
    """Turns SIGINT, SIGTERM and SIGHUP into a flag for as long as its block lasts. Main thread only."""

    _SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        """The first of the signals; None as long as nobody wants to stop."""
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        for number in self._SIGNALS:
            if not _is_ignored_hangup(number):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.received is None:
            self.received = signal.Signals(number)


@contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP raise KeyboardInterrupt while the block lasts, as Ctrl-C does: what is finished can be kept,
    and what is open is closed. Main thread only."""
    before = {
        number: signal.signal(number, signal.default_int_handler)
        for number in (signal.SIGTERM, signal.SIGHUP)
        if not _is_ignored_hangup(number)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_ignored_hangup(number: signal.Signals) -> bool:
    """A process started by nohup ignores SIGHUP, and must go on doing so."""
    return number is signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN
