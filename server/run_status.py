"""Where a run stands, in one small file, for whoever watches it from another process."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from neuroflux_fl.output_folder import write_text

STATUS_FILE = "status.json"
PHASES = ("starting", "waiting", "training", "evaluating", "finished", "failed")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatus:
    """One moment of a run."""

    phase: str
    """One of ``PHASES``; a run waits for devices."""
    round: int = 0
    """Round in progress, from 1; 0 before the first."""
    rounds: int = 0
    """Rounds in all."""
    stage: int = 0
    nodes: int = 0
    """Devices connected."""
    wanted: int = 0
    """Answers that the phase waits for."""
    answered: int = 0
    failed: int = 0
    seconds: float = 0.0
    """Time of the run so far, without interruptions."""
    late: int = 0
    """Tasks of earlier rounds that are still unanswered."""
    contributors: dict[int, int] = field(default_factory=dict)
    """By unit: updates in the last finished round."""
    exits: dict[int, float] = field(default_factory=dict)
    """By unit: validation accuracy in the last finished round."""
    test: dict[int, float] = field(default_factory=dict)
    error: str = ""
    """Why the run failed, in one line."""
    error_kind: str = ""
    """Name of the exception's class."""


StatusListener = Callable[[RunStatus], None]


def write_status(folder: Path, status: RunStatus) -> None:
    """Replace ``status.json`` in ``folder``, whole or not at all.

    Raises:
        StorageError: the folder cannot be written.
    """
    write_text(folder / STATUS_FILE, json.dumps({**asdict(status), "updated_at": time.time()}) + "\n")
