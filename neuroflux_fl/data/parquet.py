"""Parquet files in the layout of the Hugging Face hub: ``train-*.parquet`` and ``test-*.parquet`` in one folder.

A file has an image column, a struct of ``bytes`` (an encoded picture) and ``path``, and an integer label column.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuroflux_fl.data.images import ImageData, LabelledImages, assemble, check_labels
from neuroflux_fl.data.pictures import decode_pictures, keep_needed_channels
from neuroflux_fl.data.request import Request
from neuroflux_fl.errors import DataError, DependencyError

_LABEL_COLUMNS = ("label", "fine_label", "labels")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Split:
    """The files of one split with all their labels; pictures are read only for chosen rows."""

    files: tuple[Path, ...]
    labels: NDArray[np.int64]
    class_names: tuple[str, ...] | None
    """None where the files' metadata does not name the classes."""


def load_parquet(folder: Path, request: Request) -> ImageData:
    """Load a folder of Parquet files. Pictures keep their size unless the request has a side.

    Only the pictures that the limits leave are decoded, one row group at a time.

    Raises:
        DataError: a split, column or label is missing, or a file or picture is empty or corrupt.
        DependencyError: pyarrow or Pillow is not installed.
    """
    train, test = _open_split(folder, "train"), _open_split(folder, "test")
    class_names = train.class_names or test.class_names
    if class_names is None:
        class_names = tuple(str(label) for label in range(1 + int(max(train.labels.max(), test.labels.max()))))
    for name, split in (("train", train), ("test", test)):
        check_labels(split.labels, len(class_names), f"Parquet folder {folder}, {name} split")
    train_rows, test_rows = request.choose_train(train.labels), request.choose_test(test.labels)
    train_images, test_images = keep_needed_channels(
        decode_pictures(_read_pictures(train, train_rows), len(train_rows), request.image_side),
        decode_pictures(_read_pictures(test, test_rows), len(test_rows), request.image_side),
    )
    return assemble(
        folder.resolve().name,
        class_names,
        LabelledImages(images=train_images, labels=train.labels[train_rows]),
        LabelledImages(images=test_images, labels=test.labels[test_rows]),
        horizontal_flip=True,
    )


def _open_split(folder: Path, name: str) -> _Split:
    files = tuple(sorted(folder.glob(f"{name}*.parquet")))
    if not files:
        raise DataError(
            f"Folder {folder} has Parquet files, but none for the {name} split: name them {name}-*.parquet."
        )
    class_names: tuple[str, ...] | None = None
    labels = []
    for path in files:
        file = _open(path)
        column = _label_column(file.schema_arrow, path)
        class_names = class_names or _class_names(file.schema_arrow, column)
        _image_column(file.schema_arrow, path)
        values = _read(path, partial(file.read, columns=[column])).column(0)
        if values.null_count:
            raise DataError(f"{path} has {values.null_count} rows without a {column!r}: fill them or leave them out.")
        labels.append(values.to_numpy().astype(np.int64))
    if not sum(len(part) for part in labels):
        raise DataError(f"Folder {folder} has no rows in its {name}-*.parquet files: give at least one.")
    return _Split(files=files, labels=np.concatenate(labels), class_names=class_names)


def _read_pictures(split: _Split, rows: NDArray[np.int64]) -> Iterator[tuple[str, bytes]]:
    """Name and encoded content of the pictures at ``rows`` (sorted, counted over all files)."""
    first = 0
    for path in split.files:
        file = _open(path)
        column = _image_column(file.schema_arrow, path)
        start_of_file = first
        for group in range(file.num_row_groups):
            size = file.metadata.row_group(group).num_rows
            here = rows[np.searchsorted(rows, first) : np.searchsorted(rows, first + size)]
            if len(here):
                table = _read(path, partial(file.read_row_group, group, columns=[column]))
                pictures = table.column(0).combine_chunks().field("bytes")
                for row in here:
                    content = pictures[int(row) - first].as_py()
                    name = f"{path} row {row - start_of_file}"
                    if not content:
                        raise DataError(f"{name} has no picture: embed the bytes or leave the row out.")
                    yield name, content
            first += size


def _open(path: Path) -> Any:
    try:
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise DependencyError(
            'Reading Parquet files needs pyarrow, which is not installed: pip install "neuroflux-fl[parquet]".'
        ) from error
    return _read(path, partial(parquet.ParquetFile, path))


def _read(path: Path, action: Callable[[], Any]) -> Any:
    """Run a pyarrow call on ``path``; what fails there means a corrupt file (pyarrow's errors are of both kinds)."""
    try:
        return action()
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path} is not a readable Parquet file ({reason}): replace it.") from error


def _label_column(schema: Any, path: Path) -> str:
    from pyarrow import types

    for name in _LABEL_COLUMNS:
        if name in schema.names and types.is_integer(schema.field(name).type):
            return name
    raise DataError(
        f"{path} has columns {', '.join(schema.names)}, but no integer label column: "
        f"name it {' or '.join(_LABEL_COLUMNS)}."
    )


def _image_column(schema: Any, path: Path) -> str:
    from pyarrow import types

    for field in schema:
        if types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0:
            return str(field.name)
    raise DataError(
        f"{path} has columns {', '.join(schema.names)}, but no image column: "
        "it must be a struct of 'bytes' (an encoded picture) and 'path'."
    )


def _class_names(schema: Any, label_column: str) -> tuple[str, ...] | None:
    """Class names from the hub's metadata, if it names them."""
    try:
        info = json.loads((schema.metadata or {})[b"huggingface"])
        return tuple(str(name) for name in info["info"]["features"][label_column]["names"])
    except (KeyError, TypeError, ValueError):
        return None
