"""What a server remembers of its run between two starts, so that the second goes on where the first ended."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from neuroflux_fl.errors import StorageError, UsageError
from neuroflux_fl.output_folder import write_text
from neuroflux_fl.toml_text import Value
from server.state_folder import ServerState

_FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """One run, which may be several runs in Flower's eyes: it gets a new id when it is resumed."""

    asked: dict[str, Value]
    """Configuration as its user gave it, all keys filled."""
    config: dict[str, Value]
    """The same with the description of the data and the folder for the results."""
    run_ids: tuple[int, ...] = ()
    """Flower's ids, the latest last."""
    finished: bool = False

    def submitted(self, run_id: int) -> RunRecord:
        """With one more start in Flower."""
        return replace(self, run_ids=(*self.run_ids, run_id))

    def save(self, path: Path) -> None:
        """Write it, whole or not at all.

        Raises:
            StorageError: that is not possible.
        """
        write_text(path, json.dumps({"format": _FORMAT, **asdict(self)}, indent=2) + "\n")

    @classmethod
    def load(cls, path: Path) -> RunRecord | None:
        """The record as saved; None where there is none.

        Raises:
            StorageError: the file is damaged or of another release.
        """
        try:
            fields = json.loads(path.read_text())
            if fields.pop("format") != _FORMAT:
                raise ValueError("written by another release")
            return cls(**{**fields, "run_ids": tuple(fields["run_ids"])})
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(f"File {path} cannot be read: {error.strerror}.") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StorageError(
                f"File {path} is damaged ({error}): delete it to start a new run; results in out/ are then replaced."
            ) from error


def require_same_settings(record: RunRecord, given: Mapping[str, Value], root: Path) -> None:
    """Refuse to go on with a run under other settings than it began with.

    Args:
        record: of the run.
        given: flat settings, all keys filled; those that the record does not know yet are not compared.
        root: the state folder, for the message.

    Raises:
        UsageError: the two differ; the first difference is named.
    """
    for key, value in record.asked.items():
        if given.get(key) != value:
            kind = "finished" if record.finished else "unfinished"
            raise UsageError(
                f"State folder {root} holds a {kind} run with {key} {value!r}, now {given.get(key)!r}: leave settings "
                "as they were to go on with it, or start another with --new-run (its results move to out-1, ...)."
            )


def set_aside_results(state: ServerState) -> Path | None:
    """Rename the results of the last run to the first free ``out-N``; returns the new name, None without results.

    Raises:
        StorageError: they cannot be renamed.
    """
    if not state.out.exists():
        return None
    number = 1
    while (target := state.root / f"out-{number}").exists():
        number += 1
    try:
        state.out.rename(target)
    except OSError as error:
        raise StorageError(f"Folder {state.out} cannot be renamed to {target.name}: {error.strerror}.") from error
    return target
