"""How far a run is: its clock, and its status for whoever listens."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from server.run_status import RunStatus, StatusListener


class RunProgress:
    """The clock runs while the run does: the time between an interruption and its resumption is not counted."""

    def __init__(self, rounds: int, listener: StatusListener | None) -> None:
        """``rounds`` in all; the clock starts at 0."""
        self.status = RunStatus(phase="starting", rounds=rounds)
        self._listener = listener
        self._zero = time.monotonic()

    def go_on_from(self, seconds: float) -> None:
        """Set the clock to the seconds that the run has taken so far."""
        self._zero = time.monotonic() - seconds

    @property
    def seconds(self) -> float:
        """Of the run so far."""
        return time.monotonic() - self._zero

    def tell(self, **changes: Any) -> None:
        """Change fields of the status and pass it on."""
        self.status = replace(self.status, **changes, seconds=self.seconds)
        if self._listener is not None:
            self._listener(self.status)
