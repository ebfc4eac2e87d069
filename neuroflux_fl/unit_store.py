"""Weights on disk, one packed array a unit: only the units in training are in memory."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from tokenize import TokenError

import numpy as np
import torch
from numpy.typing import NDArray

from neuroflux_fl.errors import StorageError
from neuroflux_fl.local_network import LocalNetwork, UnitWithHead, prefix_version, unit_digest

_UNREADABLE = (OSError, EOFError, ValueError, TypeError, SyntaxError, TokenError, MemoryError)
"""What NumPy raises on damaged files."""


@dataclass(frozen=True, slots=True)
class UnitStore:
    """A folder with ``unit-000.npy``, ``unit-001.npy``, ...: packed float32 arrays with head. Never pickled.

    One store at a time writes to a folder: it remembers a digest of each unit until it writes that unit.
    """

    folder: Path
    network: LocalNetwork
    _digests: dict[int, str] = field(default_factory=dict, compare=False, repr=False)

    def initialise(self, seed: int) -> None:
        """Write start weights for every unit: a function of the seed alone."""
        for unit in range(len(self.network)):
            self.write(unit, self.network.initial(unit, seed))

    def holds(self, unit: int) -> bool:
        """Whether weights of ``unit`` are stored."""
        return self._path(unit).exists()

    def read(self, unit: int) -> NDArray[np.float32]:
        """Packed array of ``unit`` with its head.

        Raises:
            StorageError: the file is missing, or is not such an array.
        """
        path = self._path(unit)
        try:
            with path.open("rb") as file:
                packed = np.lib.format.read_array(file, allow_pickle=False)
        except FileNotFoundError as error:
            raise StorageError(f"Weights of unit {unit} are missing at {path}: train or receive them first.") from error
        except _UNREADABLE as error:
            raise StorageError(f"Weights of unit {unit} at {path} cannot be read: delete the folder.") from error
        size = self.network.layout(unit).size_with_head
        if packed.dtype != np.float32 or packed.shape != (size,):
            raise StorageError(
                f"Weights of unit {unit} at {path} hold {packed.shape} {packed.dtype}; this model needs "
                f"({size},) float32. Delete the folder or use the model that wrote it."
            )
        return np.asarray(packed)

    def write(self, unit: int, packed: NDArray[np.float32]) -> None:
        """Replace the weights of ``unit``; without a head in ``packed`` the stored head stays.

        Raises:
            StorageError: the folder cannot be written or the disk is full; the old weights are then untouched.
        """
        layout = self.network.layout(unit)
        if packed.size == layout.size_without_head != layout.size_with_head:
            packed = np.concatenate([packed, self.read(unit)[layout.size_without_head :]])
        self._digests.pop(unit, None)
        write_atomically(self._path(unit), packed)

    def load(self, unit: int, device: torch.device, *, with_head: bool = True) -> UnitWithHead:
        """The unit as a module on ``device``."""
        return self.network.load(unit, self.read(unit), device, with_head=with_head)

    def save(self, unit: int, pair: UnitWithHead) -> None:
        """Store a trained unit; a head on the meta device (not trained) keeps its stored weights."""
        self.write(unit, self.network.pack(unit, pair))

    def prefix_version(self, units: int) -> str:
        """A hash over the first ``units`` units, heads left out: equal prefixes have equal versions."""
        return prefix_version(self._digest(unit) for unit in range(units))

    def _digest(self, unit: int) -> str:
        if unit not in self._digests:
            size = self.network.layout(unit).size_without_head
            self._digests[unit] = unit_digest(self.read(unit)[:size])
        return self._digests[unit]

    def _path(self, unit: int) -> Path:
        return self.folder / f"unit-{unit:03d}.npy"


def write_atomically(path: Path, array: NDArray[np.generic]) -> None:
    """Write ``array`` as ``.npy`` under a temporary name, sync it and rename it: whole or not at all.

    Raises:
        StorageError: the folder cannot be written, or the disk is full.
    """
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            np.save(file, array, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StorageError(
            f"Cannot write {path}: {error.strerror or error}. Free some space or choose another folder."
        ) from error
