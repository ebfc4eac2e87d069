"""The 1,797 handwritten digits that come with scikit-learn: the default data set, which needs no download."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from neuroflux_fl.data.images import ImageData, LabelledImages
from neuroflux_fl.data.request import Request, fulfil
from neuroflux_fl.data.subset import split_off_test
from neuroflux_fl.errors import DependencyError

_DEFAULT_SIDE = 32
_BRIGHTEST = 16


def load_digits(request: Request) -> ImageData:
    """Load the digits as (1, side, side) images, side 32 by default; a fixed stratified fifth of them is for testing.

    Raises:
        DependencyError: scikit-learn is not installed.
    """
    try:
        from sklearn import datasets
    except ModuleNotFoundError as error:
        raise DependencyError(
            "Data set 'digits' comes with scikit-learn, which is not installed: "
            'pip install "neuroflux-fl[simulation]".'
        ) from error
    source = datasets.load_digits()
    pixels = np.rint(source.images * (255 / _BRIGHTEST)).astype(np.uint8)
    everything = LabelledImages(images=pixels[:, None], labels=source.target.astype(np.int64))
    train, test = split_off_test(everything.labels)
    return fulfil(
        request if request.image_side is not None else replace(request, image_side=_DEFAULT_SIDE),
        name="digits",
        class_names=tuple(str(digit) for digit in range(10)),
        train=everything.select(train),
        test=everything.select(test),
        horizontal_flip=False,
    )
