"""Files that hold secrets: theirs from the first byte on, never readable by others, whole or absent."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from neuroflux_fl.errors import StorageError


def make_private_folder(folder: Path) -> None:
    """Make a folder that only its owner can enter (mode 0700); one that is there must be empty.

    Raises:
        StorageError: it holds something, or cannot be made.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise StorageError(f"Folder {folder} is not empty: choose a new one, keys are not mixed with other files.")
        folder.chmod(0o700)
    except OSError as error:
        raise StorageError(f"Folder {folder} cannot be made: {error.strerror}. Choose another one.") from error


def write_private(path: Path, content: bytes) -> None:
    """Write a secret: mode 0600 from the moment it exists, under a temporary name that is then renamed.

    Raises:
        StorageError: that is not possible; an older file of that name is then untouched.
    """
    _write(path, content, 0o600)


def write_public(path: Path, content: bytes) -> None:
    """Write what others may read (mode 0644, less the umask), under a temporary name that is then renamed.

    Raises:
        StorageError: that is not possible; an older file of that name is then untouched.
    """
    _write(path, content, 0o644)


def read_private(path: Path) -> bytes:
    """Read a secret that nobody but its owner can read.

    Raises:
        StorageError: it is missing, cannot be read, or others can read it.
    """
    try:
        mode = path.stat().st_mode & 0o777
        if mode & 0o077:
            raise StorageError(f"File {path} can be read by others (mode {mode:04o}): run chmod 600 on it.")
        return path.read_bytes()
    except OSError as error:
        raise StorageError(f"File {path} cannot be read: {error.strerror}.") from error


def _write(path: Path, content: bytes, mode: int) -> None:
    temporary = path.with_name(path.name + ".tmp")
    try:
        # One that a killed process left behind would keep its own mode and owner.
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise StorageError(
            f"Cannot write {path}: {error.strerror}. Free some space or choose another folder."
        ) from error
