"""One unit's weights as one float32 array: one array a unit crosses Flower many times faster than one a tensor."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from neuroflux_fl.errors import WireError

Entry = tuple[str, tuple[int, ...]]
"""A tensor's name and shape."""


def unit_key(unit: int) -> str:
    """Key of a unit's packed array in a Flower ArrayRecord: ``unit_key(3) == "unit-003"``."""
    return f"unit-{unit:03d}"


@dataclass(frozen=True, slots=True, kw_only=True)
class PackLayout:
    """Order of a unit's tensors in its packed array: unit parameters, unit buffers, head parameters, head buffers.

    Names start with ``unit.`` or ``head.``. An array packed without the head ends after the unit's buffers.
    Batch-norm counters (``num_batches_tracked``) are not part of a layout: counters are not averaged.
    """

    unit_parameters: tuple[Entry, ...]
    unit_buffers: tuple[Entry, ...] = ()
    head_parameters: tuple[Entry, ...] = ()
    head_buffers: tuple[Entry, ...] = ()

    def __post_init__(self) -> None:
        """Check every field; raises WireError."""
        seen: set[str] = set()
        for prefix, entries in (("unit.", self._unit_entries), ("head.", self._head_entries)):
            for name, shape in entries:
                if not name.startswith(prefix) or name in seen or name.endswith("num_batches_tracked"):
                    raise WireError(f"Layout entry {name!r} must be a {prefix}* tensor, listed once and no counter.")
                if any(length < 0 for length in shape):
                    raise WireError(f"Layout entry {name!r} has the impossible shape {shape}.")
                seen.add(name)

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """Numbers of values in the four segments, in order."""
        segments = (self.unit_parameters, self.unit_buffers, self.head_parameters, self.head_buffers)
        first, second, third, fourth = (sum(math.prod(shape) for _, shape in segment) for segment in segments)
        return first, second, third, fourth

    @property
    def unit_parameter_slice(self) -> slice:
        """Where the unit's parameters stand."""
        return self._slices[0]

    @property
    def unit_buffer_slice(self) -> slice:
        """Where the unit's buffers stand."""
        return self._slices[1]

    @property
    def head_parameter_slice(self) -> slice:
        """Where the head's parameters stand."""
        return self._slices[2]

    @property
    def head_buffer_slice(self) -> slice:
        """Where the head's buffers stand."""
        return self._slices[3]

    @property
    def size_without_head(self) -> int:
        """Length of an array that ends after the unit's buffers."""
        return sum(self.sizes[:2])

    @property
    def size_with_head(self) -> int:
        """Length of an array that holds unit and head."""
        return sum(self.sizes)

    def size(self, has_head: bool) -> int:
        """Length of an array packed with or without the head."""
        return self.size_with_head if has_head else self.size_without_head

    def pack(self, tensors: Mapping[str, NDArray[np.generic]]) -> NDArray[np.float32]:
        """Copy tensors into one new array; without any head tensor given, the array has no head.

        Names that the layout does not list are left out.

        Raises:
            WireError: a tensor is missing (a head given in part included) or has another shape than the layout's.
        """
        has_head = any(name in tensors for name, _ in self._head_entries)
        packed = np.empty(self.size(has_head), np.float32)
        start = 0
        for name, shape in self.entries(has_head):
            if name not in tensors:
                raise WireError(f"Tensor {name!r} is missing: the layout packs it.")
            tensor = tensors[name]
            if tensor.shape != shape:
                raise WireError(f"Tensor {name!r} has shape {tensor.shape}; the layout says {shape}.")
            packed[start : start + tensor.size] = tensor.reshape(-1)
            start += tensor.size
        return packed

    def unpack(self, array: NDArray[np.float32], has_head: bool) -> dict[str, NDArray[np.float32]]:
        """Views of ``array`` by tensor name; nothing is copied.

        Raises:
            WireError: the array is not float32, not flat, or not as long as the layout says.
        """
        if array.dtype != np.float32 or array.shape != (self.size(has_head),):
            raise WireError(
                f"Packed array is {array.dtype} of shape {array.shape}; "
                f"the layout needs float32 of shape ({self.size(has_head)},)."
            )
        tensors: dict[str, NDArray[np.float32]] = {}
        start = 0
        for name, shape in self.entries(has_head):
            stop = start + math.prod(shape)
            tensors[name] = array[start:stop].reshape(shape)
            start = stop
        return tensors

    def entries(self, has_head: bool) -> tuple[Entry, ...]:
        """Tensors in the order in which they are packed, with or without the head's."""
        return self._unit_entries + (self._head_entries if has_head else ())

    @property
    def _unit_entries(self) -> tuple[Entry, ...]:
        return self.unit_parameters + self.unit_buffers

    @property
    def _head_entries(self) -> tuple[Entry, ...]:
        return self.head_parameters + self.head_buffers

    @property
    def _slices(self) -> tuple[slice, ...]:
        stops = tuple(accumulate(self.sizes))
        return tuple(slice(start, stop) for start, stop in zip((0, *stops), stops, strict=False))
