"""Convolutions as matrix products: which can be one, and patches of images for a slice of the channels at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Geometry = tuple[tuple[int, int], tuple[int, int]]  # stride, padding

SMALLEST_BYTES = 1024 * 1024
"""Smaller weights stay as they are: they are not what a unit's memory goes to."""

SLICE_BYTES = 512 * 1024
"""Weights, and their change, that are worked on at a time."""


def can_be_product(convolution: nn.Conv2d, smallest_bytes: int = SMALLEST_BYTES) -> bool:
    """Whether a convolution is large, and plain enough to be a product of its weight with patches of its images."""
    return (
        convolution.weight.nbytes >= smallest_bytes
        and convolution.weight.dtype == torch.float32
        and convolution.groups == 1
        and tuple(convolution.dilation) == (1, 1)
        and convolution.padding_mode == "zeros"
        and not isinstance(convolution.padding, str)
    )


@dataclass(frozen=True, slots=True)
class Slice:
    """Some input channels, and the columns of the weight matrix that belong to them."""

    channels: slice
    columns: slice


class Patches:
    """Patches of images as a matrix ``(channels * kernel, positions)``, for a slice of the channels at a time.

    The samples are innermost, so that copies run over long stretches and one product serves the whole batch. How the
    channels are sliced depends on the weight alone: a slice's patches are not larger than the larger of the images
    and the convolution's output, and a trace has the same operators at every batch size.
    """

    def __init__(self, images: Tensor, weight: Tensor, geometry: Geometry) -> None:
        self._images, (self._stride, padding) = images, geometry
        outputs, self._channels, *self._kernel = weight.shape
        self._area = self._kernel[0] * self._kernel[1]
        samples, _, *sides = images.shape
        padded = [side + 2 * pad for side, pad in zip(sides, padding, strict=True)]
        positions = [(p - k) // s + 1 for p, k, s in zip(padded, self._kernel, self._stride, strict=True)]
        self.output_shape = (outputs, *positions, samples)
        fitting = min(SLICE_BYTES // (weight.element_size() * outputs), max(outputs, self._channels)) // self._area
        step = math.ceil(self._channels / math.ceil(self._channels / max(1, fitting)))
        self._inside = tuple(slice(pad, pad + side) for pad, side in zip(padding, sides, strict=True))
        # Made once and used for every slice, views included; a last slice with fewer channels leaves a rest unread.
        self._padded = weight.new_zeros((step, *padded, samples))
        self._centre = self._padded[:, *self._inside]
        self._windows = self._windows_of(self._padded)
        self._patches = weight.new_empty(self._windows.shape)
        self._matrix = self._patches.view(step * self._area, -1)
        self._sums: Tensor | None = None
        self._taps: list[tuple[Tensor, Tensor]] = []

    def slices(self) -> Iterator[Slice]:
        """All input channels, piece by piece."""
        step = len(self._padded)
        for first in range(0, self._channels, step):
            last = min(first + step, self._channels)
            yield Slice(slice(first, last), slice(first * self._area, last * self._area))

    def buffer(self, part: Slice) -> Tensor:
        """The matrix of a slice, whatever is in it: ``(width of the slice, positions)``."""
        return self._matrix[: part.columns.stop - part.columns.start]

    def read(self, part: Slice) -> Tensor:
        """The matrix of a slice, filled with the images' patches."""
        chosen = self._images[:, part.channels].permute(1, 2, 3, 0)
        self._centre[: len(chosen)].copy_(chosen)
        self._patches.copy_(self._windows)
        return self.buffer(part)

    def add_up(self, part: Slice, gradient: Tensor) -> None:
        """Sum what the buffer holds for each pixel into ``gradient[:, channels]``, which is shaped like the images."""
        if self._sums is None:
            self._sums = torch.empty_like(self._padded)
            self._taps = [
                (sums, patches)
                for row, patch_row in zip(self._windows_of(self._sums).unbind(1), self._patches.unbind(1), strict=True)
                for sums, patches in zip(row.unbind(1), patch_row.unbind(1), strict=True)
            ]
        self._sums.zero_()
        for sums, patches in self._taps:
            sums.add_(patches)
        chosen = gradient[:, part.channels]
        chosen.copy_(self._sums[: chosen.shape[1], *self._inside].permute(3, 0, 1, 2))

    def _windows_of(self, padded: Tensor) -> Tensor:
        """A view ``(channels, *kernel, *positions, samples)`` of padded images; patches overlap."""
        windows = padded.unfold(1, self._kernel[0], self._stride[0]).unfold(2, self._kernel[1], self._stride[1])
        return windows.permute(0, 4, 5, 1, 2, 3)
