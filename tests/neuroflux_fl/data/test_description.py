"""A device's own data is brought to the run's classes, channels and statistics, or refused in one line."""

from __future__ import annotations

import numpy as np
import pytest

from neuroflux_fl.data.description import DataDescription, fit_data
from neuroflux_fl.data.images import ImageData, LabelledImages, assemble
from neuroflux_fl.errors import DataError

RUN = DataDescription(image_shape=(3, 4, 4), class_names=("cat", "dog", "emu"), mean=(0.5, 0.4, 0.3), std=(1, 1, 2))


def make_data(class_names: tuple[str, ...], shape: tuple[int, int, int]) -> ImageData:
    count = 6
    images = np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8)
    split = LabelledImages(images=images, labels=np.arange(count, dtype=np.int64) % len(class_names))
    return assemble("own", class_names, split, split, horizontal_flip=True)


def test_labels_are_renumbered_by_name_and_statistics_are_the_runs() -> None:
    own = make_data(("emu", "cat"), (3, 4, 4))

    fitted = fit_data(own, RUN)

    assert fitted.train.labels.tolist() == [2, 0, 2, 0, 2, 0]
    assert fitted.test.labels.tolist() == [2, 0, 2, 0, 2, 0]
    assert (fitted.class_names, fitted.mean, fitted.std) == (RUN.class_names, RUN.mean, RUN.std)
    np.testing.assert_array_equal(fitted.train.images, own.train.images)


def test_grey_images_get_the_runs_channels() -> None:
    own = make_data(("cat", "dog", "emu"), (1, 4, 4))

    fitted = fit_data(own, RUN)

    assert fitted.image_shape == (3, 4, 4)
    for channel in range(3):
        np.testing.assert_array_equal(fitted.train.images[:, channel], own.train.images[:, 0])


@pytest.mark.parametrize(
    ("class_names", "shape", "message"),
    [
        (("cat", "cow"), (3, 4, 4), "has class 'cow'; the run has cat, dog, emu"),
        (("cat", "dog"), (3, 4, 5), "has images of 3x4x5; the run needs 3x4x4"),
        (("cat", "dog"), (2, 4, 4), "has images of 2x4x4; the run needs 3x4x4"),
    ],
)
def test_data_that_does_not_fit_is_refused(
    class_names: tuple[str, ...], shape: tuple[int, int, int], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        fit_data(make_data(class_names, shape), RUN)
