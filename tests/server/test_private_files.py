"""Secrets on disk: never readable by others, whole or absent."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from neuroflux_fl.errors import StorageError
from server.private_files import read_private, write_private


def test_a_file_is_private_before_it_has_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes = []

    def fsync(descriptor: int) -> None:
        modes.append(stat.S_IMODE(os.fstat(descriptor).st_mode))

    monkeypatch.setattr(os, "fsync", fsync)
    left = tmp_path / "key.tmp"
    left.touch(0o666)  # by a process that was killed
    before = os.umask(0)
    try:
        write_private(tmp_path / "key", b"secret")
    finally:
        os.umask(before)

    assert modes == [0o600]
    assert read_private(tmp_path / "key") == b"secret"
    assert os.listdir(tmp_path) == ["key"]


def test_a_failed_write_leaves_the_older_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_private(tmp_path / "key", b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left on device"):
        write_private(tmp_path / "key", b"new")

    assert (tmp_path / "key").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["key"]


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("kept")
    (tmp_path / "key").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "key.tmp").symlink_to(tmp_path / "elsewhere")
    write_private(tmp_path / "key", b"secret")

    assert (tmp_path / "elsewhere").read_text() == "kept"
    assert not (tmp_path / "key").is_symlink()


def test_what_others_can_read_is_no_secret(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("secret")
    (tmp_path / "key").chmod(0o644)

    with pytest.raises(StorageError, match="mode 0644") as told:
        read_private(tmp_path / "key")
    assert "secret" not in str(told.value)
