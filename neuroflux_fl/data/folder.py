"""Folders of pictures: one subfolder a class, with or without ``train/`` and ``test/`` above them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from neuroflux_fl.data.images import ImageData, LabelledImages, assemble
from neuroflux_fl.data.pictures import decode_pictures, keep_needed_channels
from neuroflux_fl.data.request import Request
from neuroflux_fl.data.subset import split_off_test
from neuroflux_fl.errors import DataError

_DEFAULT_SIDE = 32
_SUFFIXES = {".png", ".jpg", ".jpeg"}
_LAYOUT = "give one subfolder of PNG or JPEG pictures for each class"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Listing:
    """Picture files and the class of each; nothing decoded yet."""

    files: tuple[Path, ...]
    labels: NDArray[np.int64]

    def select(self, indices: NDArray[np.int64]) -> _Listing:
        return _Listing(files=tuple(self.files[index] for index in indices), labels=self.labels[indices])


def load_folder(folder: Path, request: Request) -> ImageData:
    """Load a folder of pictures scaled to side x side, 32 by default; grayscale only if all of them are.

    Without ``train/`` and ``test/`` a fixed stratified fifth is for testing. Only the pictures that the limits leave
    are decoded.

    Raises:
        DataError: the folder has another layout, a class has no pictures, or a picture is corrupt.
        DependencyError: Pillow is not installed.
    """
    train_folder, test_folder = folder / "train", folder / "test"
    if train_folder.is_dir() != test_folder.is_dir():
        there, missing = ("train", "test") if train_folder.is_dir() else ("test", "train")
        raise DataError(
            f"Folder {folder} has {there}/ but no {missing}/: add it, or put the class folders directly into it, "
            "so that a fifth of each class is split off for testing."
        )
    if train_folder.is_dir():
        class_names = _class_names(train_folder)
        strangers = set(_class_names(test_folder)) - set(class_names)
        if strangers:
            raise DataError(
                f"Folder {test_folder} has class {min(strangers)!r}, which {train_folder} does not have: "
                "both must have the same classes."
            )
        train, test = _list(train_folder, class_names), _list(test_folder, class_names)
    else:
        class_names = _class_names(folder)
        everything = _list(folder, class_names)
        train_indices, test_indices = split_off_test(everything.labels)
        train, test = everything.select(train_indices), everything.select(test_indices)
    train = train.select(request.choose_train(train.labels))
    test = test.select(request.choose_test(test.labels))
    side = request.image_side or _DEFAULT_SIDE
    train_images, test_images = keep_needed_channels(_decode(train, side), _decode(test, side))
    return assemble(
        folder.resolve().name,
        class_names,
        LabelledImages(images=train_images, labels=train.labels),
        LabelledImages(images=test_images, labels=test.labels),
        horizontal_flip=True,
    )


def _class_names(folder: Path) -> tuple[str, ...]:
    names = tuple(sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")))
    if not names:
        raise DataError(f"Folder {folder} has no class folders: {_LAYOUT}, or Parquet files.")
    return names


def _list(folder: Path, class_names: tuple[str, ...]) -> _Listing:
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(class_names):
        class_folder = folder / name
        if not class_folder.is_dir():
            continue  # a class without test pictures
        found = sorted(path for path in class_folder.iterdir() if path.suffix.lower() in _SUFFIXES)
        if not found:
            raise DataError(f"Class folder {class_folder} has no PNG or JPEG pictures: add some or remove the folder.")
        files += found
        labels += [label] * len(found)
    return _Listing(files=tuple(files), labels=np.array(labels, dtype=np.int64))


def _decode(listing: _Listing, side: int) -> tuple[NDArray[np.uint8], bool]:
    return decode_pictures(((str(file), file) for file in listing.files), len(listing.files), side)
