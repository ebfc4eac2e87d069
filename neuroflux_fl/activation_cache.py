"""Outputs of finished blocks on disk, so that no block is ever run again: the reason why block training is fast."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neuroflux_fl.errors import StorageError, UsageError
from neuroflux_fl.training_monitor import TrainingMonitor
from neuroflux_fl.unit_chain import ImageShape

PRECISIONS: dict[str, np.dtype[np.generic]] = {"float16": np.dtype(np.float16), "float32": np.dtype(np.float32)}
_DESCRIPTION = "description.json"
_VALUES = "values.bin"


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheKey:
    """What cached activations depend on."""

    prefix_version: str
    data_version: str
    view: int

    def folder_name(self, precision: str) -> str:
        """Name of the entry's folder: a hash of everything that the values depend on."""
        return hashlib.sha256(repr((self, precision)).encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedActivations:
    """One written view: ``count`` samples of ``shape``, read by index without mapping the file into memory."""

    path: Path
    shape: ImageShape
    count: int
    dtype: np.dtype[np.generic]

    @property
    def row_bytes(self) -> int:
        """Bytes of one sample."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def total_bytes(self) -> int:
        """Bytes of all samples."""
        return self.row_bytes * self.count

    def read(self, indices: NDArray[np.int64]) -> Tensor:
        """float32 ``(len(indices), *shape)`` on the CPU.

        Plain reads, not a memory map: mapped pages would count as the process's memory.
        """
        rows = np.empty((len(indices), *self.shape), self.dtype)
        as_bytes = rows.reshape(len(indices), -1).view(np.uint8)
        with self.path.open("rb", buffering=0) as file:
            for position, index in enumerate(indices):
                if os.preadv(file.fileno(), [as_bytes[position]], int(index) * self.row_bytes) != self.row_bytes:
                    raise StorageError(f"Cache file {self.path} is shorter than its description says: delete it.")
        return torch.from_numpy(rows).to(torch.float32)


class ActivationCache:
    """A folder of cached activations with a quota.

    An entry is a folder, written under a temporary name and renamed: it is whole or absent. Where quota or disk do
    not suffice, ``write`` gives None, and the caller recomputes. ``reserve_bytes`` of the disk stay free: a cache can
    be computed again, and the weights that are written beside it cannot.
    """

    def __init__(
        self,
        folder: Path,
        *,
        quota_bytes: int | None = None,
        reserve_bytes: int = 0,
        precision: str = "float16",
        monitor: TrainingMonitor | None = None,
    ) -> None:
        if precision not in PRECISIONS:
            raise UsageError(f"Cache precision {precision!r} is unknown: choose one of {', '.join(PRECISIONS)}.")
        self._folder = folder
        self._quota_bytes = quota_bytes
        self._reserve_bytes = reserve_bytes
        self._precision = precision
        self._monitor = monitor or TrainingMonitor()
        self.hits = 0
        self.writes = 0
        self.written_bytes = 0
        self.refusals: list[str] = []
        """Why entries were not written, in order."""

    def find(self, key: CacheKey) -> CachedActivations | None:
        """The entry for ``key``, or None where there is none or where it is damaged."""
        folder = self._folder / key.folder_name(self._precision)
        try:
            description = json.loads((folder / _DESCRIPTION).read_text())
            entry = CachedActivations(
                path=folder / _VALUES,
                shape=tuple(description["shape"]),
                count=description["count"],
                dtype=PRECISIONS[description["precision"]],
            )
            whole = entry.path.stat().st_size == entry.total_bytes
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if not whole:
            return None
        self.hits += 1
        self._monitor.cache_hit()
        return entry

    def write(self, key: CacheKey, shape: ImageShape, count: int, pieces: Iterable[Tensor]) -> CachedActivations | None:
        """Store ``count`` samples that come in ``pieces`` of ``(some, *shape)``, in order.

        Returns None, with the reason in ``refusals``, where the quota or the disk is too small.
        """
        dtype = PRECISIONS[self._precision]
        name = key.folder_name(self._precision)
        target, temporary = self._folder / name, self._folder / f"{name}.{os.getpid()}.tmp"
        entry = CachedActivations(path=target / _VALUES, shape=shape, count=count, dtype=dtype)
        if self._quota_bytes is not None and self.used_bytes() + entry.total_bytes > self._quota_bytes:
            self._refuse(f"quota of {self._quota_bytes} bytes is too small for {entry.total_bytes} more")
            return None
        try:
            temporary.mkdir(parents=True, exist_ok=True)
            if shutil.disk_usage(temporary).free < entry.total_bytes + self._reserve_bytes:
                raise OSError(f"too little space is free beside {self._reserve_bytes} bytes for weights")
            with (temporary / _VALUES).open("wb") as file:
                for piece in pieces:
                    file.write(_as_stored(piece, dtype).data)
            description = {"shape": shape, "count": count, "precision": self._precision}
            (temporary / _DESCRIPTION).write_text(json.dumps(description))
            if target.exists():
                shutil.rmtree(target)
            temporary.replace(target)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            self._refuse(f"cannot write to {self._folder}: {error.strerror or error}")
            return None
        self.writes += 1
        self.written_bytes += entry.total_bytes
        self._monitor.cache_written(entry.total_bytes)
        return entry

    def used_bytes(self) -> int:
        """Bytes in all entries; for any thread."""
        total = 0
        for path in self._folder.glob(f"*/{_VALUES}"):
            with suppress(FileNotFoundError):  # removed since it was listed
                total += path.stat().st_size
        return total

    def remove_all(self, keys: Iterable[CacheKey]) -> None:
        """Remove these entries, where they are there."""
        for key in keys:
            shutil.rmtree(self._folder / key.folder_name(self._precision), ignore_errors=True)

    def keep_only(self, keys: Iterable[CacheKey]) -> None:
        """Remove every entry but these, left-overs of interrupted writes included."""
        names = {key.folder_name(self._precision) for key in keys}
        for path in self._folder.glob("*"):
            if path.name not in names:
                shutil.rmtree(path, ignore_errors=True)

    def _refuse(self, reason: str) -> None:
        self.refusals.append(reason)
        self._monitor.cache_refused()


def _as_stored(piece: Tensor, dtype: np.dtype[np.generic]) -> NDArray[np.generic]:
    if dtype == np.float16:
        largest = torch.finfo(torch.float16).max
        # Saturate: one infinite activation would make every later loss NaN.
        return piece.clamp(-largest, largest).to(torch.float16).cpu().contiguous().numpy()
    return piece.to(torch.float32).cpu().contiguous().numpy()
