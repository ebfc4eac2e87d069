"""A run's folder is found to be writable at once, and a file in it is whole or as it was."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from neuroflux_fl.errors import StorageError
from neuroflux_fl.output_folder import prepare_folder, write_text


def test_folder_is_made_and_left_empty(tmp_path: Path) -> None:
    prepare_folder(tmp_path / "runs" / "one")
    prepare_folder(tmp_path / "runs" / "one")

    assert list((tmp_path / "runs" / "one").iterdir()) == []


@pytest.mark.parametrize("below", ["", "runs"])
def test_file_in_place_of_the_folder_is_refused(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(StorageError, match=r"cannot be written: .*Choose another with --out"):
        prepare_folder(tmp_path / "file" / below)


def test_text_replaces_text(tmp_path: Path) -> None:
    write_text(tmp_path / "run.json", "one")
    write_text(tmp_path / "run.json", "two")

    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("run.json", "two")]


def test_full_disk_leaves_the_old_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path / "run.json", "one")

    def full(path: Path, text: str) -> int:
        path.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(StorageError, match="No space left on device"):
        write_text(tmp_path / "run.json", "two")

    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("run.json", "one")]
