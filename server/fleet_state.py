"""Everything the server must remember, as one value in one file: written beside, synced, and renamed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuroflux_fl.errors import StorageError
from server.device_totals import DeviceTotals
from server.schedule import ScheduleState

STATE_FILE = "fleet.safetensors"
_FORMAT = 3
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
        from safetensors import SafetensorError, safe_open

        path = folder / STATE_FILE
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="numpy") as file:
                text = (file.metadata() or {}).get(_METADATA_KEY, "")
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        except (OSError, SafetensorError) as error:
            raise StorageError(f"{path} cannot be read: {error}. Start a new run in another folder.") from error
        return cls.from_json(text), arrays


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
