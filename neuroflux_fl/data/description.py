"""What a run must know of its data before it has any: image shape, classes, and the statistics to normalise with."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from neuroflux_fl.data.images import ImageData, LabelledImages
from neuroflux_fl.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class DataDescription:
    """Equal on all devices of a fleet, whatever images each of them has."""

    image_shape: tuple[int, int, int]
    """(channels, height, width)."""
    class_names: tuple[str, ...]
    """In the order of their numbers."""
    mean: tuple[float, ...]
    """Per channel, of pixels scaled to 0..1."""
    std: tuple[float, ...]

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @classmethod
    def of(cls, data: ImageData) -> DataDescription:
        """The description of a data set."""
        return cls(image_shape=data.image_shape, class_names=data.class_names, mean=data.mean, std=data.std)


def fit_data(data: ImageData, wanted: DataDescription) -> ImageData:
    """A device's own data as the run needs it: labels renumbered by class name, and the run's mean and std.

    A device may lack classes. Grey images become images with three equal channels where the run has three.

    Raises:
        DataError: a class that the run does not have, or images of another size or number of channels.
    """
    strangers = [name for name in data.class_names if name not in wanted.class_names]
    if strangers:
        raise DataError(
            f"Data set {data.name!r} has class {strangers[0]!r}; the run has {', '.join(wanted.class_names)}: "
            "rename the class, or leave its images out."
        )
    numbers = np.array([wanted.class_names.index(name) for name in data.class_names], dtype=np.int64)
    channels, *size = wanted.image_shape
    own_channels, *own_size = data.image_shape
    if own_size != size or own_channels not in (channels, 1):
        own, needed = ("x".join(map(str, shape)) for shape in (data.image_shape, wanted.image_shape))
        raise DataError(f"Data set {data.name!r} has images of {own}; the run needs {needed}: convert them.")

    def fitted(split: LabelledImages) -> LabelledImages:
        images = np.repeat(split.images, channels, axis=1) if own_channels != channels else split.images
        return LabelledImages(images=images, labels=numbers[split.labels])

    return replace(
        data,
        class_names=wanted.class_names,
        train=fitted(data.train),
        test=fitted(data.test),
        mean=wanted.mean,
        std=wanted.std,
    )
