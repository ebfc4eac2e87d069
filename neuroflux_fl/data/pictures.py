"""Decode encoded pictures (PNG, JPEG, ...) into one array."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from neuroflux_fl.errors import DataError, DependencyError

if TYPE_CHECKING:
    from PIL import Image

# Pillow also knows formats that start other programs (EPS); data from strangers gets only these.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")


def decode_pictures(
    pictures: Iterable[tuple[str, Path | bytes]], count: int, side: int | None
) -> tuple[NDArray[np.uint8], bool]:
    """Decode ``count`` pictures, each given as (name for messages, file or its content).

    Returns:
        RGB pixels (count, 3, height, width), and whether all pictures are grayscale: by their pixels, for
        WebP has no other way to store that. Pictures are scaled to ``side`` x ``side`` (antialiased bilinear), or
        keep their size if ``side`` is None.

    Raises:
        DataError: a picture cannot be decoded, or sizes differ while ``side`` is None.
        DependencyError: Pillow is not installed.
    """
    pixels = np.empty((0, 3, 0, 0), dtype=np.uint8)
    all_grayscale = True
    for index, (name, source) in enumerate(pictures):
        picture = _decode(name, source, side)
        if index == 0:
            pixels = np.empty((count, 3, picture.shape[0], picture.shape[1]), dtype=np.uint8)
        if picture.shape[:2] != pixels.shape[2:]:
            raise DataError(
                f"{name} is {picture.shape[1]}x{picture.shape[0]} pixels, others are "
                f"{pixels.shape[3]}x{pixels.shape[2]}: give an image side, so that all are scaled to it."
            )
        pixels[index] = picture if picture.ndim == 2 else picture.transpose(2, 0, 1)
        all_grayscale = all_grayscale and bool((pixels[index] == pixels[index, :1]).all())
    return pixels, all_grayscale


def keep_needed_channels(
    train: tuple[NDArray[np.uint8], bool], test: tuple[NDArray[np.uint8], bool]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Reduce two results of ``decode_pictures`` to one channel if every picture of both is grayscale."""
    if train[1] and test[1]:
        return np.ascontiguousarray(train[0][:, :1]), np.ascontiguousarray(test[0][:, :1])
    return train[0], test[0]


def _decode(name: str, source: Path | bytes, side: int | None) -> NDArray[np.uint8]:
    """Pixels of one picture: (height, width) if it is grayscale, else (height, width, 3)."""
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise DependencyError(
            'Reading pictures needs Pillow, which is not installed: pip install "neuroflux-fl[parquet]".'
        ) from error
    try:
        with Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=_FORMATS) as picture:
            if side is not None and picture.format == "JPEG":
                picture.draft(None, (side, side))  # decodes a large JPEG at a fraction of its size
            plain = _to_grayscale_or_rgb(picture)
            if side is not None and plain.size != (side, side):
                plain = plain.resize((side, side), Image.Resampling.BILINEAR)
            return np.asarray(plain)
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{name} is not a readable picture ({reason}): replace it or remove it.") from error


def _to_grayscale_or_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):
        # Pillow clips 16-bit values at 255 where it converts them, which would make nearly every picture white.
        from PIL import Image

        return Image.fromarray((np.asarray(picture) >> 8).clip(0, 255).astype(np.uint8))
    return picture.convert("L" if picture.mode in ("1", "L", "LA") else "RGB")
