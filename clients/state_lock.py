"""One process at a time works in a device's state folder."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from neuroflux_fl.errors import StorageError

_LEFT_OVERS = ("*.tmp", "*/*.tmp")


@contextmanager
def state_folder_in_use(folder: Path) -> Iterator[None]:
    """Have ``folder`` alone while the ``with`` lasts; waits while another process has it, and dies with this one.

    An agent may still be at a task whose ClientApp is gone, while another process is given the same task. Files that
    killed processes were writing under temporary names are removed.

    Raises:
        StorageError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("w")
    except OSError as error:
        raise StorageError(
            f"State folder {folder} cannot be written: {error.strerror}. Choose another state-folder."
        ) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for pattern in _LEFT_OVERS:
            for path in folder.glob(pattern):
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)
        yield
