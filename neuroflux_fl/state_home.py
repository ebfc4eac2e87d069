"""Folders that hold a server's or a device's state: where they are, private, and for one process at a time."""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from neuroflux_fl.errors import StorageError

_SECRET_BYTES = 48


def default_state_folder(role: str) -> Path:
    """``neuroflux-fl/ROLE`` in the user's state folder (``XDG_STATE_HOME``, else ``~/.local/state``)."""
    home = os.environ.get("XDG_STATE_HOME", "")
    # An unset or relative path is to be ignored, says the XDG specification.
    base = Path(home) if os.path.isabs(home) else Path.home() / ".local" / "state"
    return base / "neuroflux-fl" / role


def prepare_private_folder(folder: Path) -> None:
    """Make a folder that only its owner can read; one that is there keeps its mode.

    Raises:
        StorageError: that is not possible.
    """
    try:
        if not folder.is_dir():
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir(mode=0o700)
    except OSError as error:
        raise StorageError(
            f"State folder {folder} cannot be made: {error.strerror}. Choose another with --state."
        ) from error


def keep_secret(path: Path) -> None:
    """Make a file of random bytes that only its owner can read, unless it is there.

    Raises:
        StorageError: it cannot be written, or others can read the one that is there.
    """
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secrets.token_bytes(_SECRET_BYTES))
    except FileExistsError:
        if path.stat().st_mode & 0o077:
            raise StorageError(
                f"Secret {path} can be read by others: run chmod 600 on it, or delete it and start again."
            ) from None
    except OSError as error:
        raise StorageError(f"Secret {path} cannot be written: {error.strerror}.") from error


@contextmanager
def locked(path: Path, who: str) -> Iterator[None]:
    """Hold the lock file at ``path`` for the block; the kernel lets go of it however this process ends.

    Args:
        path: the lock file; it holds the process id of its holder.
        who: what must run only once, for the message, for example "Server".

    Raises:
        StorageError: another process holds it, or it cannot be opened.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise StorageError(f"Lock {path} cannot be opened: {error.strerror}. Choose another --state.") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
            raise StorageError(
                f"{who} with state folder {path.parent} runs already as process {holder}: stop it, or choose another "
                "folder with --state."
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)
