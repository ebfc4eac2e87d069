"""Scaling and margins."""

from __future__ import annotations

import numpy as np

from neuroflux_fl.data.resize import pad, resize


def test_halving_averages_with_antialiasing() -> None:
    # The triangle filter reaches over the neighbours: 1/8 3/8 3/8 1/8, cut and renormalised to 3/7 3/7 1/7 at the edge.
    row = np.array([0, 70, 140, 210], dtype=np.uint8)
    image = np.tile(row, (4, 1))[None, None]

    halved = resize(image, 2)

    assert halved.dtype == np.uint8
    assert halved[0, 0].tolist() == [[50, 160], [50, 160]]


def test_chunks_are_all_scaled() -> None:
    values = np.arange(300, dtype=np.uint16).astype(np.uint8)
    images = np.broadcast_to(values[:, None, None, None], (300, 3, 2, 2)).copy()

    scaled = resize(images, 5)

    assert scaled.shape == (300, 3, 5, 5)
    assert (scaled == values[:, None, None, None]).all()


def test_the_right_size_is_not_copied() -> None:
    images = np.zeros((2, 1, 4, 4), dtype=np.uint8)

    assert resize(images, 4) is images


def test_a_margin_of_zeros() -> None:
    padded = pad(np.full((1, 1, 1, 1), 9, dtype=np.uint8), 1)

    assert padded[0, 0].tolist() == [[0, 0, 0], [0, 9, 0], [0, 0, 0]]
