"""State folders are private, and one process at a time has them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from neuroflux_fl.errors import StorageError
from neuroflux_fl.state_home import default_state_folder, keep_secret, locked, prepare_private_folder

HOLD = """
import sys
from pathlib import Path
from neuroflux_fl.state_home import locked
with locked(Path(sys.argv[1]), "A server"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_the_default_is_in_the_users_state_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    assert default_state_folder("client") == tmp_path / ".local" / "state" / "neuroflux-fl" / "client"

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    assert default_state_folder("server") == tmp_path / "xdg" / "neuroflux-fl" / "server"


def test_a_new_folder_is_private(tmp_path: Path) -> None:
    prepare_private_folder(tmp_path / "a" / "b")
    prepare_private_folder(tmp_path / "a" / "b")

    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(StorageError, match="--state"):
        prepare_private_folder(tmp_path / "file" / "folder")


def test_a_secret_is_made_once_and_for_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    keep_secret(path)
    first = path.read_bytes()
    keep_secret(path)

    assert path.read_bytes() == first
    assert len(first) == 48
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_secret_that_others_can_read_is_none(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_bytes(b"x" * 48)
    path.chmod(0o640)

    with pytest.raises(StorageError, match="chmod 600"):
        keep_secret(path)


def test_a_lock_is_held_by_one_and_let_go_by_the_dead(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(StorageError, match=f"A server with state folder .* runs already as process {holder.pid}:"):
            locked(path, "A server").__enter__()
        holder.kill()
    with locked(path, "A server"):
        assert path.read_text() == f"{os.getpid()}\n"
    with locked(path, "A server"):
        pass
