"""Labelled images check themselves, and their statistics are exact."""

from __future__ import annotations

import numpy as np
import pytest

from neuroflux_fl.data.images import ImageData, LabelledImages, assemble, channel_statistics
from neuroflux_fl.errors import DataError


def examples(labels: list[int], *, channels: int = 1, side: int = 2) -> LabelledImages:
    """Image i has the value i in every pixel."""
    values = np.arange(len(labels), dtype=np.uint8)[:, None, None, None]
    return LabelledImages(
        images=np.broadcast_to(values, (len(labels), channels, side, side)).copy(),
        labels=np.array(labels, dtype=np.int64),
    )


def data(train: LabelledImages, test: LabelledImages, classes: int = 2) -> ImageData:
    return assemble("tiny", tuple("abcdef"[:classes]), train, test, horizontal_flip=False)


def test_select_takes_images_and_labels_together() -> None:
    chosen = examples([3, 4, 5]).select(np.array([2, 0]))

    assert len(chosen) == 2
    assert chosen.labels.tolist() == [5, 3]
    assert chosen.images[:, 0, 0, 0].tolist() == [2, 0]


def test_shape_and_number_of_classes() -> None:
    tiny = data(examples([0, 1], channels=3, side=4), examples([1], channels=3, side=4))

    assert tiny.image_shape == (3, 4, 4)
    assert tiny.classes == 2


def test_statistics_of_two_channels_by_hand() -> None:
    images = np.zeros((2, 2, 1, 1), dtype=np.uint8)
    images[1, 0] = 255
    images[:, 1] = 51  # 0.2 everywhere: a spread of 0 would divide by 0

    mean, std = channel_statistics(images)

    assert mean == pytest.approx((0.5, 0.2))
    assert std == pytest.approx((0.5, 1.0))


def test_statistics_over_several_chunks_equal_numpys() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2500, 3, 4, 4), dtype=np.uint8)

    mean, std = channel_statistics(images)

    assert mean == pytest.approx((images / 255).mean(axis=(0, 2, 3)).tolist())
    assert std == pytest.approx((images / 255).std(axis=(0, 2, 3)).tolist())


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((2, 4, 4), dtype=np.uint8), np.zeros(2, dtype=np.int64), r"shape \(2, 4, 4\) .* give uint8"),
        (np.zeros((2, 1, 4, 4), dtype=np.float32), np.zeros(2, dtype=np.int64), "type float32: give uint8"),
        (np.zeros((2, 1, 4, 4), dtype=np.uint8), np.zeros(2, dtype=np.int32), "type int32: give int64"),
        (np.zeros((2, 1, 4, 4), dtype=np.uint8), np.zeros(3, dtype=np.int64), "2 images come with 3 labels"),
    ],
)
def test_arrays_that_disagree_are_refused(images: np.ndarray, labels: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        LabelledImages(images=images, labels=labels)


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (examples([]), examples([0]), "'tiny' has no train images"),
        (examples([0]), examples([]), "'tiny' has no test images"),
        (examples([0, 2]), examples([0]), "train split: label 2 at index 1 is out of range for 2 classes"),
        (examples([0]), examples([-1]), "test split: label -1 at index 0 is out of range"),
        (examples([0]), examples([0], side=3), r"train images of shape \(1, 2, 2\) and test images of shape \(1, 3"),
    ],
)
def test_splits_unfit_for_training_are_refused(train: LabelledImages, test: LabelledImages, message: str) -> None:
    with pytest.raises(DataError, match=message):
        data(train, test)
