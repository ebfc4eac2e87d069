"""Everything the server must remember, as one value in one file: written beside, synced, and renamed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuroflux_fl.errors import StorageError
from server.device_totals import DeviceTotals
from server.schedule import ScheduleState

STATE_FILE = "fleet.safetensors"
_FORMAT = 4
_METADATA_KEY = "fleet_state"


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRecord:
    """What happened in one round."""

    round: int
    stage: int
    exits: dict[int, float] = field(default_factory=dict)
    """Validation accuracy of the exits that the round began with, by unit."""
    test: dict[int, float] = field(default_factory=dict)
    """Test accuracy of the exits that the round ended with, by unit; empty where the server has no test data."""
    contributors: dict[int, int] = field(default_factory=dict)
    """Number of aggregated updates, by unit."""
    seconds: float = 0.0
    bytes_up: int = 0
    """From devices to server."""
    bytes_down: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    """Number of rejected updates, by reason."""
    tasks: int = 0
    """Devices that were given the round's task. Each has answered well, failed, or is missing."""
    failed: int = 0
    """Devices that answered with an error, or were lost and did not come back in time."""
    missing: int = 0
    """Devices that did not answer before the round's end."""
    resent: int = 0
    """Tasks sent again to devices that had been lost."""
    late_used: int = 0
    """Answers to earlier tasks that came in this round and were used."""
    late_dropped: int = 0
    """Answers to earlier tasks that came in this round and were of no use any more."""
    ended_at: float = 0.0
    """Unix time."""
    elapsed_seconds: float = 0.0
    """Of the run, at the round's end."""
    aggregation_seconds: float = 0.0
    """Spent by the server on checking, adding and averaging updates."""
    device_seconds: float = 0.0
    """Spent by all devices on the training tasks whose answers came in this round."""
    samples: int = 0
    """Training samples of these answers, passes counted."""
    below_quorum: bool = False
    """Devices had to be asked again for want of answers, or a unit got fewer updates than it needs."""
    update_error: float = 0.0
    """Largest coding error of an update, as a share of what training moved."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetState:
    """Where a run stands after ``round`` rounds. The weights are saved beside it, in the same file."""

    round: int = 0
    schedule: ScheduleState = field(default_factory=ScheduleState)
    history: tuple[RoundRecord, ...] = ()
    trained_exits: tuple[int, ...] = ()
    """Units whose heads some device has trained."""
    devices: tuple[DeviceTotals, ...] = ()
    """In the order of their node ids."""
    seconds: float = 0.0
    """Time of the run so far, without the time between an interruption and its resumption."""

    def to_json(self) -> str:
        """Compact JSON."""
        return json.dumps({"format": _FORMAT, **asdict(self)}, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> FleetState:
        """Read ``to_json``'s text.

        Raises:
            StorageError: the text is not JSON, of another format, or lacks or adds a field.
        """
        try:
            fields = json.loads(text)
            if fields.pop("format") != _FORMAT:
                raise ValueError("written by another release")
            return cls(
                round=fields["round"],
                schedule=ScheduleState(**fields["schedule"]),
                history=tuple(_record_from_fields(record) for record in fields["history"]),
                trained_exits=tuple(fields["trained_exits"]),
                devices=tuple(DeviceTotals.from_fields(device) for device in fields["devices"]),
                seconds=fields["seconds"],
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StorageError(f"Fleet state cannot be read: {error}. Start a new run in another folder.") from error

    def save(self, folder: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Write state and arrays; a reader, or a server killed meanwhile, finds the old file or the new one.

        Raises:
            StorageError: the folder cannot be written.
        """
        from safetensors.numpy import save_file

        temporary = folder / f".{STATE_FILE}.{os.getpid()}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # safetensors writes the memory as it lies: a view with strides would come back scrambled.
            contiguous = {name: np.asarray(array, order="C") for name, array in arrays.items()}
            save_file(contiguous, temporary, metadata={_METADATA_KEY: self.to_json()})
            _sync(temporary)
            temporary.replace(folder / STATE_FILE)
            _sync(folder)
        except Exception as error:
            temporary.unlink(missing_ok=True)
            raise StorageError(f"Fleet state cannot be written to {folder}: {error}.") from error

    @classmethod
    def load(cls, folder: Path) -> tuple[FleetState, dict[str, NDArray[Any]]] | None:
        """State and arrays as saved; None when the folder has none.

        Raises:
            StorageError: the file is damaged or of another format.
        """
        arrays: dict[str, NDArray[Any]] = {}
        text = _read(folder / STATE_FILE, arrays)
        return None if text is None else (cls.from_json(text), arrays)

    @classmethod
    def peek(cls, folder: Path) -> FleetState | None:
        """State as saved, without reading the arrays; None when the folder has none. Cheap while the file is the same.

        Raises:
            StorageError: the file is damaged or of another format.
        """
        path = folder / STATE_FILE
        try:
            status = path.stat()
        except OSError:
            return None
        return _peek(path, (status.st_ino, status.st_mtime_ns, status.st_size))


@lru_cache(maxsize=2)
def _peek(path: Path, version: tuple[int, int, int]) -> FleetState | None:
    """The state in a file that is never written to again: another ``version`` is another file of the same name."""
    text = _read(path, None)
    return None if text is None else FleetState.from_json(text)


def _read(path: Path, arrays: dict[str, NDArray[Any]] | None) -> str | None:
    """The state's text, and into ``arrays``, where given, the arrays; None when there is no such file."""
    from safetensors import SafetensorError, safe_open

    if not path.exists():
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            if arrays is not None:
                arrays |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            text: str = (file.metadata() or {}).get(_METADATA_KEY, "")
            return text
    except (OSError, SafetensorError) as error:
        raise StorageError(f"{path} cannot be read: {error}. Start a new run in another folder.") from error


def task_counts(history: Sequence[RoundRecord]) -> dict[str, int]:
    """Where every task went: ``sent`` is the sum of all others but ``resent``."""
    sent = sum(record.tasks for record in history)
    failed = sum(record.failed for record in history)
    missing = sum(record.missing for record in history)
    late_used = sum(record.late_used for record in history)
    late_dropped = sum(record.late_dropped for record in history)
    return {
        "sent": sent,
        "answered": sent - failed - missing,
        "failed": failed,
        "late_used": late_used,
        "late_dropped": late_dropped,
        "never_answered": missing - late_used - late_dropped,
        "resent": sum(record.resent for record in history),
    }


def _record_from_fields(fields: dict[str, Any]) -> RoundRecord:
    # JSON has made texts of the unit numbers.
    by_unit = ("exits", "test", "contributors")
    numbered = {name: {int(unit): value for unit, value in fields[name].items()} for name in by_unit}
    return RoundRecord(**{**fields, **numbered})


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
