"""Bring images in memory to another size."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

_CHUNK = 256


def resize(images: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Scale ``images`` (n, channels, height, width) to (n, channels, side, side), bilinear with antialiasing.

    Images that have that size already are returned as they are. The float copy is one chunk large, not n.
    """
    if images.shape[2:] == (side, side):
        return images
    resized = np.empty((*images.shape[:2], side, side), dtype=np.uint8)
    for start in range(0, len(images), _CHUNK):
        chunk = torch.from_numpy(images[start : start + _CHUNK]).float()
        scaled = functional.interpolate(chunk, size=(side, side), mode="bilinear", antialias=True)
        resized[start : start + _CHUNK] = scaled.round_().clamp_(0, 255).to(torch.uint8).numpy()
    return resized


def pad(images: NDArray[np.uint8], margin: int) -> NDArray[np.uint8]:
    """Add ``margin`` zero pixels on all four sides of ``images`` (n, channels, height, width)."""
    return np.pad(images, ((0, 0), (0, 0), (margin, margin), (margin, margin)))
