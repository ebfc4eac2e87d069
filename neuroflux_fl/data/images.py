"""What every data source yields: images with labels, split into train and test, with the statistics to normalise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from neuroflux_fl.errors import DataError

_STATISTICS_CHUNK = 1024


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LabelledImages:
    """Images and their labels, index by index. May be empty, as a device's share can be.

    Raises:
        DataError: the arrays have other shapes or types than stated below, or disagree in length.
    """

    images: NDArray[np.uint8]
    """(n, channels, height, width), 0 to 255."""
    labels: NDArray[np.int64]
    """(n,), class numbers from 0."""

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype != np.uint8:
            raise DataError(
                f"Images have shape {self.images.shape} and type {self.images.dtype}: "
                "give uint8 of shape (n, channels, height, width)."
            )
        if self.labels.ndim != 1 or self.labels.dtype != np.int64:
            raise DataError(
                f"Labels have shape {self.labels.shape} and type {self.labels.dtype}: give int64 of shape (n,)."
            )
        if len(self.images) != len(self.labels):
            raise DataError(f"{len(self.images)} images come with {len(self.labels)} labels: give one label an image.")

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, indices: NDArray[np.int64]) -> LabelledImages:
        """Copy the images and labels at ``indices`` (m,), in that order."""
        return LabelledImages(images=self.images[indices], labels=self.labels[indices])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ImageData:
    """A named data set, ready for training.

    Raises:
        DataError: a split is empty, a label is outside the classes, or shapes disagree.
    """

    name: str
    class_names: tuple[str, ...]
    train: LabelledImages
    test: LabelledImages
    mean: tuple[float, ...]
    """Per channel, of the train pixels scaled to 0..1."""
    std: tuple[float, ...]
    """Per channel, of the train pixels scaled to 0..1; never 0: a channel of one value has 1."""
    horizontal_flip: bool
    """Whether a mirrored image still belongs to its class, so that ``augment`` may flip."""

    def __post_init__(self) -> None:
        for split, examples in (("train", self.train), ("test", self.test)):
            if len(examples) == 0:
                raise DataError(f"Data set {self.name!r} has no {split} images: give at least one.")
            check_labels(examples.labels, self.classes, f"Data set {self.name!r}, {split} split")
        train_shape, test_shape = self.train.images.shape[1:], self.test.images.shape[1:]
        if train_shape != test_shape:
            raise DataError(
                f"Data set {self.name!r} has train images of shape {train_shape} and test images of shape "
                f"{test_shape}: both must be the same; give an image side to resize them."
            )
        if not len(self.mean) == len(self.std) == train_shape[0] or 0 in self.std:
            raise DataError(
                f"Data set {self.name!r} with {train_shape[0]} channels has mean {self.mean} and std {self.std}: "
                "give one number a channel, and no std of 0."
            )

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        _, channels, height, width = self.train.images.shape
        return channels, height, width


def check_labels(labels: NDArray[np.int64], classes: int, where: str) -> None:
    """Raise DataError, naming ``where`` and the first bad index, if a label is not in 0..classes-1."""
    bad = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(bad):
        raise DataError(
            f"{where}: label {labels[bad[0]]} at index {bad[0]} is out of range for {classes} classes "
            f"(0 to {classes - 1}): mend the labels or leave those rows out."
        )


def assemble(
    name: str, class_names: tuple[str, ...], train: LabelledImages, test: LabelledImages, *, horizontal_flip: bool
) -> ImageData:
    """Make a data set of its two splits; mean and std are taken from ``train``.

    Raises:
        DataError: as ``ImageData`` does.
    """
    if len(train) == 0:
        raise DataError(f"Data set {name!r} has no train images: give at least one.")
    mean, std = channel_statistics(train.images)
    return ImageData(
        name=name,
        class_names=class_names,
        train=train,
        test=test,
        mean=mean,
        std=std,
        horizontal_flip=horizontal_flip,
    )


def channel_statistics(images: NDArray[np.uint8]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of ``images`` (n, channels, height, width) scaled to 0..1.

    Counted in a histogram of the 256 values, a chunk at a time: exact, and without a float copy of the images.
    """
    channels = images.shape[1]
    counts = np.zeros((channels, 256))
    for start in range(0, len(images), _STATISTICS_CHUNK):
        for channel in range(channels):
            values = images[start : start + _STATISTICS_CHUNK, channel].ravel()
            counts[channel] += np.bincount(values, minlength=256)
    shares = counts / counts.sum(axis=1, keepdims=True)
    values01 = np.arange(256) / 255
    mean = shares @ values01
    std = np.sqrt((shares * (values01 - mean[:, None]) ** 2).sum(axis=1))
    constant = (counts > 0).sum(axis=1) == 1
    return tuple(mean.tolist()), tuple(np.where(constant, 1.0, std).tolist())
