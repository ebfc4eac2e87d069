"""Flower's processes get a folder of their own, report to nobody, install nothing, and find each other."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from neuroflux_fl import flower_environment as module
from neuroflux_fl.errors import DependencyError
from neuroflux_fl.flower_environment import flower_command, flower_environment


def test_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KEPT", "yes")
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "1")

    environment = flower_environment(tmp_path)

    assert environment["KEPT"] == "yes"
    assert {name: value for name, value in environment.items() if name.startswith("FLWR_")} == {
        "FLWR_HOME": str(tmp_path),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    }


def test_flowers_commands_are_those_of_this_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    fake = tmp_path / "flwr"
    fake.write_text("#!/bin/sh\nexit 1\n")
    fake.chmod(0o755)

    command = flower_command("flwr")

    assert Path(command) != fake
    assert os.access(command, os.X_OK)
    environment = flower_environment(tmp_path)
    assert Path(command).parent == Path(environment["PATH"].split(os.pathsep)[0])
    done = subprocess.run([command, "--version"], env=environment, capture_output=True, text=True, check=True)
    assert "1.41" in done.stdout


def test_a_command_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "_command_path", lambda: str(tmp_path))

    with pytest.raises(DependencyError, match="flower-superlink is not installed: pip install"):
        flower_command("flower-superlink")
