"""Normalisation and augmentation, against a plain loop over images."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from neuroflux_fl.data.transform import augment, draw_crops, normalise
from neuroflux_fl.errors import DataError


def random_images(batch: int = 16) -> torch.Tensor:
    return torch.randint(1, 256, (batch, 3, 6, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(7))


def augmented(images: torch.Tensor, seed: int = 0, *, padding: int = 4, horizontal_flip: bool) -> torch.Tensor:
    offsets, mirrored = draw_crops(len(images), (seed, 1), padding=padding, horizontal_flip=horizontal_flip)
    return augment(images, offsets, mirrored, padding=padding)


def test_normalise_by_hand() -> None:
    images = torch.tensor([0, 255], dtype=torch.uint8).view(1, 2, 1, 1)

    result = normalise(images, (0.5, 0.2), (0.25, 0.4))

    assert result.dtype == torch.float32
    assert result.flatten().tolist() == pytest.approx([-2.0, 2.0])
    assert images.flatten().tolist() == [0, 255]


def test_crops_lie_within_the_padded_image() -> None:
    images = random_images()

    result = augmented(images, padding=2, horizontal_flip=False)

    assert (result.dtype, result.shape) == (images.dtype, images.shape)
    found = []
    for image, crop in zip(images, result, strict=True):
        padded = functional.pad(image, (2, 2, 2, 2))
        places = [(y, x) for y in range(5) for x in range(5) if torch.equal(padded[:, y : y + 6, x : x + 5], crop)]
        assert len(places) == 1
        found += places
    assert len(set(found)) > 5, "images of one batch are cropped alike"


def test_flips_mirror_some_images_and_leave_the_others() -> None:
    images = random_images(64)

    result = augmented(images, padding=0, horizontal_flip=True)

    mirrored = [torch.equal(crop, image.flip(2)) for image, crop in zip(images, result, strict=True)]
    kept = [torch.equal(crop, image) for image, crop in zip(images, result, strict=True)]
    assert all(a != b for a, b in zip(mirrored, kept, strict=True))
    assert 16 < sum(mirrored) < 48


def test_every_offset_occurs() -> None:
    images = torch.zeros((2000, 1, 3, 3), dtype=torch.uint8)
    images[:, :, 1, 1] = 255

    result = augmented(images, padding=1, horizontal_flip=False)

    share = (result > 0).float().mean(dim=(0, 1))
    assert share.sum() == 1  # the bright centre never leaves the image
    assert torch.allclose(share, torch.full((3, 3), 1 / 9), atol=0.04)


def test_the_seed_decides() -> None:
    images = random_images()

    first, again, other = (augmented(images, seed, horizontal_flip=True) for seed in (1, 1, 2))

    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_without_padding_and_flip_nothing_changes() -> None:
    images = random_images()

    assert torch.equal(augmented(images, padding=0, horizontal_flip=False), images)


def test_an_empty_batch_passes() -> None:
    assert augmented(random_images(0), horizontal_flip=True).shape == (0, 3, 6, 5)


def test_unfit_arguments_are_refused() -> None:
    with pytest.raises(DataError, match=r"type torch.float32: give uint8"):
        normalise(torch.zeros(1, 1, 2, 2), (0.5,), (0.5,))
    with pytest.raises(DataError, match="3 channels come with 1 means"):
        normalise(random_images(), (0.5,), (0.5,))
    with pytest.raises(DataError, match="Padding is -1"):
        augmented(random_images(), padding=-1, horizontal_flip=False)


def test_a_row_is_augmented_alike_in_any_batch() -> None:
    images = random_images(8)
    offsets, mirrored = draw_crops(8, (3, 1), horizontal_flip=True)

    whole = augment(images, offsets, mirrored, padding=4)
    rows = torch.tensor([6, 1])
    part = augment(images[rows], offsets[:, rows], mirrored[rows], padding=4)

    assert torch.equal(part, whole[rows])
