"""``python -m neuroflux_fl``: which commands start anew with another allocator, and that the command line runs."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from neuroflux_fl import __main__ as entry
from neuroflux_fl import __version__


class _Replaced(Exception):
    """The process would be another now."""


@pytest.mark.parametrize(
    ("command", "added", "replaced"),
    [
        ("train", {"LD_PRELOAD": "one.so"}, True),
        ("simulate", {"LD_PRELOAD": "one.so"}, True),
        ("train", {"NEUROFLUX_TEST_PAGES": "1"}, False),
        ("plan", {"LD_PRELOAD": "one.so"}, True),
        ("report", {"LD_PRELOAD": "one.so"}, False),
    ],
)
def test_commands_that_train_start_anew_where_another_allocator_is_wanted(
    monkeypatch: pytest.MonkeyPatch, command: str, added: dict[str, str], replaced: bool
) -> None:
    def replace(path: str, arguments: list[str], environment: dict[str, str]) -> None:
        assert path == arguments[0] == sys.executable
        assert arguments[1:] == sys.orig_argv[1:]
        assert environment == {**os.environ, **added}
        raise _Replaced

    ran: list[bool] = []
    monkeypatch.setattr(sys, "argv", ["neuroflux-fl", command])
    monkeypatch.setattr(entry, "allocator_environment", lambda _environment: added)
    monkeypatch.setattr(os, "execve", replace)
    monkeypatch.setattr("neuroflux_fl.cli.main.main", lambda: ran.append(True))
    monkeypatch.delenv("NEUROFLUX_TEST_PAGES", raising=False)

    if replaced:
        with pytest.raises(_Replaced):
            entry.start()
    else:
        entry.start()
        assert os.environ.pop("NEUROFLUX_TEST_PAGES", None) == added.get("NEUROFLUX_TEST_PAGES")

    assert bool(ran) != replaced


def test_the_module_is_the_command_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "neuroflux_fl", "--version"], capture_output=True, text=True, check=True, timeout=60
    )

    assert done.stdout.strip() == __version__
