"""What happens to a batch of images before training: random crops and flips, then normalisation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from neuroflux_fl.errors import DataError


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Scale uint8 ``images`` (batch, channels, height, width) to 0..1, subtract ``mean`` and divide by ``std``.

    Returns:
        float32, same shape and device; the only allocation of that size.

    Raises:
        DataError: the images are not uint8, or ``mean`` and ``std`` do not have one number a channel.
    """
    _check_images(images)
    if not len(mean) == len(std) == images.shape[1]:
        raise DataError(
            f"Images with {images.shape[1]} channels come with {len(mean)} means and {len(std)} standard deviations: "
            "give one of each a channel."
        )
    shape = (1, -1, 1, 1)
    centre = torch.tensor(mean, dtype=torch.float32, device=images.device).view(shape)
    spread = torch.tensor(std, dtype=torch.float32, device=images.device).view(shape)
    return images.to(torch.float32).div_(255).sub_(centre).div_(spread)


def draw_crops(count: int, seed: Sequence[int], *, padding: int = 4, horizontal_flip: bool) -> tuple[Tensor, Tensor]:
    """Draw a crop and a flip for each of ``count`` images: a function of the seed, so that a view can be made again.

    Returns:
        Offsets, int64 of shape (2, count), each in 0..2*padding; and whether to mirror, bool of shape (count,).

    Raises:
        DataError: the padding is negative.
    """
    if padding < 0:
        raise DataError(f"Padding is {padding}: give 0 or more.")
    generator = np.random.default_rng(list(seed))
    offsets = torch.from_numpy(generator.integers(0, 2 * padding + 1, (2, count)))
    mirrored = torch.from_numpy(generator.integers(0, 2, count).astype(bool))
    return offsets, mirrored if horizontal_flip else torch.zeros(count, dtype=torch.bool)


def augment(images: Tensor, offsets: Tensor, mirrored: Tensor, *, padding: int) -> Tensor:
    """Crop each image out of a zero margin at its own place, and mirror some.

    Args:
        images: uint8, (batch, channels, height, width).
        offsets: rows and columns of the crops, (2, batch), from ``draw_crops``.
        mirrored: bool, (batch,).
        padding: width of the margin, in pixels, the one that the offsets were drawn for.

    Returns:
        uint8, same shape and device.

    Raises:
        DataError: the images are not uint8 of four dimensions.
    """
    _check_images(images)
    batch, _, height, width = images.shape
    offsets, mirrored = offsets.to(images.device), mirrored.to(images.device)
    padded = functional.pad(images, (padding, padding, padding, padding))
    # A view of every possible crop: (batch, channels, 2 padding + 1, 2 padding + 1, height, width), copied only
    # where indexed.
    crops = padded.unfold(2, height, 1).unfold(3, width, 1)
    cropped = crops[torch.arange(batch, device=images.device), :, offsets[0], offsets[1]]
    return torch.where(mirrored.view(-1, 1, 1, 1), cropped.flip(3), cropped)


def _check_images(images: Tensor) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise DataError(
            f"Images have shape {tuple(images.shape)} and type {images.dtype}: "
            "give uint8 of shape (batch, channels, height, width)."
        )
