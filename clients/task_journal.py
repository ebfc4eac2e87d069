"""What a device has finished of its present training task, on disk: it survives a kill of every process."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.json_format import MessageToDict, ParseDict, ParseError
from numpy.typing import NDArray

from neuroflux_fl.errors import StorageError, WireError
from neuroflux_fl.local_network import unit_digest
from neuroflux_fl.unit_store import UnitStore
from neuroflux_fl.wire import TrainReport
from neuroflux_fl.wire import neuroflux_pb2 as pb

logger = logging.getLogger(__name__)

_FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskProgress:
    """How far a task is."""

    report: TrainReport
    """The answer if the task ended here: plan, scores, finished blocks in the plan's order, costs so far."""
    digests: Mapping[int, str] = field(default_factory=dict)
    """Of the stored weights, head included, of each unit of the finished blocks."""
    started_at: float = field(default_factory=time.time)
    """Unix time at which the task came first: its deadline counts from there."""
    finished: bool = False
    """Nothing is left to train, or the deadline is over."""

    @property
    def elapsed_seconds(self) -> float:
        """Since the task came first. A clock that was set back in between counts as no time."""
        return max(0.0, time.time() - self.started_at)


@dataclass(frozen=True, slots=True)
class TaskJournal:
    """The journal in one file, for one task: what the file says of another is of no use and is replaced.

    Nothing in it is believed by itself. A finished block counts only while the store holds the very weights, by digest,
    that it ended with, so the order in which files reach the disk does not matter. After a kill the same task finds:

    - while arrays were being stored or exits scored: no journal of it. All arrays are stored again.
    - while a block trained, when some of its units were stored and others not, or all of them but the block not yet in
      the journal: a journal without the block. Its units are stored again from the arrays that came with the task.
    - later: the block in the journal. Its units are neither overwritten nor trained again.
    - when another task has stored other weights in between: other digests. The block is trained again.

    Args:
        path: of the file.
        key: see ``task_key``.
    """

    path: Path
    key: str

    def read(self, store: UnitStore) -> TaskProgress | None:
        """What was finished of this task and is still in ``store``; None where nothing is known of it."""
        try:
            values = json.loads(self.path.read_text())
            if values["format"] != _FORMAT or values["key"] != self.key:
                return None
            report = ParseDict(values["report"], pb.TrainReport())
            progress = TaskProgress(
                report=TrainReport.from_bytes(report.SerializeToString()),
                digests={int(unit): str(digest) for unit, digest in values["digests"].items()},
                started_at=float(values["started_at"]),
                finished=bool(values["finished"]),
            )
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ParseError, WireError) as error:
            logger.warning("Journal %s cannot be read, so the task starts anew: %s", self.path, error)
            return None
        return _still_stored(progress, store)

    def write(self, progress: TaskProgress) -> None:
        """Replace the file: temporary name, sync, rename.

        Raises:
            StorageError: that is not possible.
        """
        values = {
            "format": _FORMAT,
            "key": self.key,
            "started_at": progress.started_at,
            "finished": progress.finished,
            "digests": progress.digests,
            "report": MessageToDict(pb.TrainReport.FromString(progress.report.to_bytes())),
        }
        temporary = self.path.with_name(self.path.name + ".tmp")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("w") as file:
                json.dump(values, file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise StorageError(
                f"Cannot write {self.path}: {error.strerror or error}. Free some space or choose another folder."
            ) from error


def task_key(settings: object, task: bytes, arrays: Mapping[str, NDArray[Any]]) -> str:
    """Digest of all that a task's answer is a function of.

    Args:
        settings: configuration and identity of the device, told apart by ``repr``.
        task: the encoded task.
        arrays: what came with it.
    """
    digest = hashlib.sha256(repr((settings, task)).encode())
    for key, array in sorted(arrays.items()):
        digest.update(repr((key, array.dtype.str, array.shape)).encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _still_stored(progress: TaskProgress, store: UnitStore) -> TaskProgress:
    """The same up to the first block whose weights are no longer those that it ended with."""
    report = progress.report
    if len(report.blocks) > len(report.plan.blocks):
        return replace(progress, report=replace(report, blocks=(), updates=()), digests={}, finished=False)
    good = 0
    for block in report.plan.blocks[: len(report.blocks)]:
        if any(progress.digests.get(unit) != stored_digest(store, unit) for unit in block.units):
            break
        good += 1
    if good == len(report.blocks):
        return progress
    units = {unit for block in report.plan.blocks[:good] for unit in block.units}
    return replace(
        progress,
        report=replace(
            report,
            blocks=report.blocks[:good],
            updates=tuple(update for update in report.updates if update.unit in units),
            deadline_reached=False,
        ),
        digests={unit: digest for unit, digest in progress.digests.items() if unit in units},
        finished=False,
    )


def stored_digest(store: UnitStore, unit: int) -> str:
    """Digest of the stored weights of ``unit``, head included; empty where there are none that can be read."""
    try:
        return unit_digest([store.read(unit)])
    except StorageError:
        return ""
