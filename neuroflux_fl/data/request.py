"""What a caller wants of a data set, in one checked value; and how it is met for data that is already in memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from neuroflux_fl.data.images import ImageData, LabelledImages, assemble
from neuroflux_fl.data.resize import resize
from neuroflux_fl.data.subset import stratified_sample
from neuroflux_fl.errors import DataError

_LONGEST_SIDE = 4096
"""Pixels that images may be resized to: beyond, not even a small data set fits into memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Options of ``load_data``. A limit of None stands for all, a side of None for the source's default.

    Raises:
        DataError: a limit or the side is below 1.
    """

    image_side: int | None = None
    """Height and width, in pixels."""
    train_limit: int | None = None
    test_limit: int | None = None
    seed: int = 0
    """Chooses the examples within the limits."""

    def __post_init__(self) -> None:
        for what, value in (
            ("image side", self.image_side),
            ("train limit", self.train_limit),
            ("test limit", self.test_limit),
        ):
            if value is not None and value < 1:
                raise DataError(f"The {what} is {value}: give 1 or more, or leave it out.")
        if self.image_side is not None and self.image_side > _LONGEST_SIDE:
            raise DataError(f"The image side is {self.image_side}: give {_LONGEST_SIDE} at most, or leave it out.")

    def choose_train(self, labels: NDArray[np.int64]) -> NDArray[np.int64]:
        """Indices of the train examples to keep, sorted."""
        return stratified_sample(labels, len(labels) if self.train_limit is None else self.train_limit, self.seed)

    def choose_test(self, labels: NDArray[np.int64]) -> NDArray[np.int64]:
        """Indices of the test examples to keep, sorted."""
        return stratified_sample(labels, len(labels) if self.test_limit is None else self.test_limit, self.seed)


def fulfil(
    request: Request,
    *,
    name: str,
    class_names: tuple[str, ...],
    train: LabelledImages,
    test: LabelledImages,
    horizontal_flip: bool,
) -> ImageData:
    """Cut ``train`` and ``test`` to the limits and resize what is left."""
    train, test = train.select(request.choose_train(train.labels)), test.select(request.choose_test(test.labels))
    if request.image_side is not None:
        train = LabelledImages(images=resize(train.images, request.image_side), labels=train.labels)
        test = LabelledImages(images=resize(test.images, request.image_side), labels=test.labels)
    return assemble(name, class_names, train, test, horizontal_flip=horizontal_flip)
