"""The folder that a run writes to: found to be writable before any work is done, its files whole or absent."""

from __future__ import annotations

import tempfile
from pathlib import Path

from neuroflux_fl.errors import StorageError


def prepare_folder(folder: Path, option: str = "--out") -> None:
    """Create the folder, which was given by ``option``, and try to write in it.

    Raises:
        StorageError: that is not possible.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise StorageError(
            f"Folder {folder} cannot be written: {error.strerror}. Choose another with {option}."
        ) from error


def write_text(path: Path, text: str) -> None:
    """Write a text file under a temporary name and rename it.

    Raises:
        StorageError: that is not possible; an older file of that name is then untouched.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_text(text)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StorageError(
            f"Cannot write {path}: {error.strerror}. Free some space or choose another folder."
        ) from error
