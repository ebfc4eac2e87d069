"""A run's folder as others read it: the gateway at every scrape, the report page, the view in the terminal."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from neuroflux_fl.errors import StorageError
from server.answer_log import Answer, read_answers
from server.fleet_state import FleetState
from server.run_setting import read_setting
from server.run_status import STATUS_FILE

RUN_FILE = "run.json"
ROUNDS_FILE = "rounds.jsonl"
TELEMETRY_FILE = "telemetry.json"

_NO_SETTING: dict[str, Any] = {
    "run": "", "started_at": 0.0, "config": {}, "data": {}, "versions": {}, "machine": "", "units": [],
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFolder:
    """What is known of a run, however far it has come. Each part is whole; they may be of moments a little apart."""

    path: Path
    setting: dict[str, Any]
    """Content of setting.json, all keys there: run, started_at, config, data, versions, machine, units. They are empty
    where the run ended before it had found its data."""
    state: FleetState | None = None
    """After the last finished round; None before the first."""
    status: dict[str, Any] | None = None
    """Content of status.json: the fields of ``RunStatus``, and updated_at."""
    summary: dict[str, Any] | None = None
    """Content of run.json; None while the run is not complete."""
    answers: tuple[Answer, ...] = field(default=(), repr=False)
    telemetry: dict[str, Any] | None = None
    """What the gateway knows of the devices; None where there is no gateway."""


def read_run_folder(out: Path, *, answers: bool = True) -> RunFolder:
    """Read what is there; files are replaced whole, so a run that goes on meanwhile does no harm.

    Args:
        out: the run's ``out``.
        answers: False leaves out the answers, which grow with rounds times devices.

    Raises:
        StorageError: nothing of a run is there, or a file is damaged or of another release.
    """
    setting = read_setting(out)
    status = _read_json(out / STATUS_FILE)
    state = FleetState.peek(out)
    summary = _read_json(out / RUN_FILE)
    if setting is None and status is None and state is None and summary is None:
        raise StorageError(
            f"Folder {out} holds no run: give the folder that was --out, or a server's state folder/out."
        )
    return RunFolder(
        path=out,
        setting=setting or _NO_SETTING,
        state=state,
        status=status,
        summary=summary,
        answers=read_answers(out) if answers else (),
        telemetry=_read_json(out / TELEMETRY_FILE),
    )


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise StorageError(f"File {path} cannot be read: {error}.") from error
    if not isinstance(content, dict):
        raise StorageError(f"File {path} holds no JSON object: it was not written by this project.")
    return content
