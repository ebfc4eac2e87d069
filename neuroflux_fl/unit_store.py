"""Weights on disk, one packed array a unit: only the units in training are in memory, and each of them once."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from tokenize import TokenError
from typing import BinaryIO

import numpy as np
import torch
from numpy.lib import format as npy
from numpy.typing import NDArray
from torch import Tensor, nn

from neuroflux_fl.errors import StorageError
from neuroflux_fl.local_network import LocalNetwork, UnitWithHead, prefix_version, stored_tensors, unit_digest

_UNREADABLE = (OSError, EOFError, ValueError, TypeError, SyntaxError, TokenError, MemoryError)
"""What NumPy raises on damaged files."""

_PIECE = 256 * 1024
"""Numbers that are read or written at a time: a late VGG unit may be half of a device's memory budget."""


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
        return next(self._pieces(unit, [self.network.layout(unit).size_with_head]))

    def write(self, unit: int, packed: NDArray[np.float32]) -> None:
        """Replace the weights of ``unit``; without a head in ``packed`` the stored head stays.

        Raises:
            StorageError: the folder cannot be written or the disk is full; the old weights are then untouched.
        """
        self._replace(unit, [packed], packed.size)

    def load(
        self,
        unit: int,
        device: torch.device,
        *,
        with_head: bool = True,
        prepare: Callable[[nn.Module], object] | None = None,
    ) -> UnitWithHead:
        """The unit as a module on ``device``, in training mode; see ``LocalNetwork.empty``.

        Raises:
            StorageError: the file is missing, or is not such an array.
        """
        pair = self.network.empty(unit, device, with_head=with_head, prepare=prepare)
        tensors = stored_tensors(pair)
        parts = [part for name, _ in self.network.layout(unit).entries(with_head) for part in _parts(tensors[name])]
        pieces = self._pieces(unit, [part.numel() for part in parts])
        for part, piece in zip(parts, pieces, strict=True):
            part.copy_(torch.from_numpy(piece).view(part.shape))
        return pair

    def save(self, unit: int, pair: UnitWithHead) -> None:
        """Store a trained unit; a head on the meta device (not trained) keeps its stored weights.

        Raises:
            StorageError: the folder cannot be written or the disk is full; the old weights are then untouched.
        """
        layout = self.network.layout(unit)
        tensors = stored_tensors(pair)
        has_head = any(name.startswith("head.") for name in tensors)
        parts = (part for name, _ in layout.entries(has_head) for part in _parts(tensors[name]))
        self._replace(unit, (part.contiguous().cpu().numpy() for part in parts), layout.size(has_head))

    def prefix_version(self, units: int) -> str:
        """A hash over the first ``units`` units, heads left out: equal prefixes have equal versions."""
        return prefix_version(self._digest(unit) for unit in range(units))

    def _digest(self, unit: int) -> str:
        if unit not in self._digests:
            size = self.network.layout(unit).size_without_head
            lengths = [min(_PIECE, size - start) for start in range(0, size, _PIECE)]
            self._digests[unit] = unit_digest(self._pieces(unit, lengths))
        return self._digests[unit]

    def _pieces(self, unit: int, lengths: Sequence[int], *, start: int = 0) -> Iterator[NDArray[np.float32]]:
        """Stored numbers from ``start`` on, in pieces of these lengths."""
        path = self._path(unit)
        size = self.network.layout(unit).size_with_head
        try:
            with path.open("rb") as file:
                found, dtype = _read_header(file)
                if dtype == np.float32 and found == (size,):
                    file.seek(start * dtype.itemsize, os.SEEK_CUR)
                    for length in lengths:
                        piece = np.fromfile(file, np.float32, length)
                        if piece.size < length:
                            raise EOFError
                        yield piece
                    return
        except FileNotFoundError as error:
            raise StorageError(f"Weights of unit {unit} are missing at {path}: train or receive them first.") from error
        except _UNREADABLE as error:
            raise StorageError(f"Weights of unit {unit} at {path} cannot be read: delete the folder.") from error
        raise StorageError(
            f"Weights of unit {unit} at {path} hold {found} {dtype}; this model needs "
            f"({size},) float32. Delete the folder or use the model that wrote it."
        )

    def _replace(self, unit: int, pieces: Iterable[NDArray[np.float32]], count: int) -> None:
        """Write ``count`` numbers, and after them the stored head where they are without one."""
        layout = self.network.layout(unit)
        head = layout.size_with_head - layout.size_without_head
        if count == layout.size_without_head and head:
            count += head
            pieces = chain(pieces, self._pieces(unit, [head], start=layout.size_without_head))
        self._digests.pop(unit, None)
        write_atomically(self._path(unit), pieces, count)

    def _path(self, unit: int) -> Path:
        return self.folder / f"unit-{unit:03d}.npy"


def write_atomically(path: Path, pieces: Iterable[NDArray[np.float32]], count: int) -> None:
    """Write ``pieces`` of ``count`` numbers as one ``.npy`` under a temporary name, sync it and rename it: whole or
    not at all.

    Raises:
        StorageError: the folder cannot be written, or the disk is full.
    """
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            npy.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (count,)})
            for piece in pieces:
                file.write(np.ascontiguousarray(piece, "<f4").data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise StorageError(
            f"Cannot write {path}: {error.strerror or error}. Free some space or choose another folder."
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _read_header(file: BinaryIO) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    version = npy.read_magic(file)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(file)
    return shape, dtype


def _parts(tensor: Tensor) -> list[Tensor]:
    """Views of a few of its rows each, in order: together the whole tensor."""
    rows = tensor if tensor.dim() else tensor[None]
    at_once = max(1, _PIECE // max(1, math.prod(rows.shape[1:])))
    return list(torch.split(rows, at_once)) if rows.numel() else []
