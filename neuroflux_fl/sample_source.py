"""Where a block's inputs come from: images, cached activations, or a prefix that is run again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neuroflux_fl.activation_cache import CachedActivations
from neuroflux_fl.data.images import LabelledImages
from neuroflux_fl.data.transform import augment, draw_crops, normalise

PLAIN_VIEW = 0
"""The view without augmentation; every other number is one fixed augmentation of the whole data set."""


class SampleSource(Protocol):
    """Inputs of one cut of the network, by index and view."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """``(n,)`` class numbers."""
        ...

    def read(self, indices: NDArray[np.int64], view: int) -> Tensor:
        """float32 ``(len(indices), channels, height, width)`` on the training device."""
        ...


class ImageSource:
    """Images with normalisation and, in any view but the plain one, a crop and a flip fixed by (seed, view, index)."""

    def __init__(
        self,
        data: LabelledImages,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        horizontal_flip: bool,
        padding: int,
        seed: int,
        device: torch.device,
    ) -> None:
        self._data = data
        self._mean, self._std = tuple(mean), tuple(std)
        self._flip, self._padding = horizontal_flip, padding
        self._seed = seed
        self._device = device
        self._draws_view = PLAIN_VIEW
        self._draws: tuple[Tensor, Tensor] | None = None

    @property
    def labels(self) -> NDArray[np.int64]:
        """``(n,)`` class numbers."""
        return self._data.labels

    def __len__(self) -> int:
        return len(self._data)

    def version(self) -> str:
        """A hash of pixels, labels, normalisation and augmentation."""
        digest = hashlib.sha256(repr((self._mean, self._std, self._flip, self._padding, self._seed)).encode())
        digest.update(np.ascontiguousarray(self._data.images).data)
        digest.update(np.ascontiguousarray(self._data.labels).data)
        return digest.hexdigest()

    def read(self, indices: NDArray[np.int64], view: int) -> Tensor:
        """Normalised images, augmented in any view but the plain one."""
        images = torch.from_numpy(self._data.images[indices]).to(self._device)
        if view != PLAIN_VIEW:
            if self._draws is None or self._draws_view != view:
                self._draws = draw_crops(
                    len(self._data), (self._seed, view), padding=self._padding, horizontal_flip=self._flip
                )
                self._draws_view = view
            offsets, mirrored = self._draws
            rows = torch.from_numpy(indices)
            images = augment(images, offsets[:, rows], mirrored[rows], padding=self._padding)
        return normalise(images, self._mean, self._std)


class TensorSource:
    """Samples that are already in memory; every view is the same."""

    def __init__(self, values: Tensor, labels: NDArray[np.int64]) -> None:
        self._values = values
        self._labels = labels

    @property
    def labels(self) -> NDArray[np.int64]:
        """``(n,)`` class numbers."""
        return self._labels

    def read(self, indices: NDArray[np.int64], view: int) -> Tensor:
        """The values at ``indices``, on the device that holds them."""
        return self._values[torch.from_numpy(indices)]


class CachedSource:
    """Activations of a frozen prefix, read from disk; view ``v`` is stored view ``v`` modulo ``views``."""

    def __init__(
        self, stored: Mapping[int, CachedActivations], views: int, labels: NDArray[np.int64], device: torch.device
    ) -> None:
        self._stored = dict(stored)
        self._views = views
        self._labels = labels
        self._device = device

    @property
    def labels(self) -> NDArray[np.int64]:
        """``(n,)`` class numbers."""
        return self._labels

    def read(self, indices: NDArray[np.int64], view: int) -> Tensor:
        """Stored activations, widened to float32."""
        return self._stored[view % self._views].read(indices).to(self._device)


class RecomputedSource:
    """The prefix run again for every batch: slow, and takes no room on the disk."""

    def __init__(self, images: SampleSource, views: int, forward: Callable[[Tensor], Tensor]) -> None:
        self._images = images
        self._views = views
        self._forward = forward

    @property
    def labels(self) -> NDArray[np.int64]:
        """``(n,)`` class numbers."""
        return self._images.labels

    def read(self, indices: NDArray[np.int64], view: int) -> Tensor:
        """The prefix's eval-mode output for the images of that view."""
        return self._forward(self._images.read(indices, view % self._views))
