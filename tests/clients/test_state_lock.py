"""One process at a time has a device's folder."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from clients.state_lock import state_folder_in_use
from neuroflux_fl.errors import StorageError


def is_free(folder: Path) -> bool:
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def test_folder_is_locked_while_it_is_in_use(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "there"

    with state_folder_in_use(folder):
        free_inside = is_free(folder)

    assert (free_inside, is_free(folder)) == (False, True)


def test_left_overs_are_removed_and_nothing_else(tmp_path: Path) -> None:
    gone = ["task.json.tmp", "weights/unit-001.77.tmp", "cache/abc.77.tmp/values.bin"]
    kept = ["task.json", "weights/unit-001.npy", "cache/abc/values.bin"]
    for name in gone + kept:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")

    with state_folder_in_use(tmp_path):
        found = [name for name in gone + kept if (tmp_path / name).exists()]

    assert found == kept


def test_folder_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(StorageError, match=r"cannot be written: Not a directory\. Choose another state-folder"):
        state_folder_in_use(tmp_path / "file" / "state").__enter__()
