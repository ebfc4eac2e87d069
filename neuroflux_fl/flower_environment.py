"""What every Flower process is started with, on a server and on a device alike. Flower itself is not imported."""

from __future__ import annotations

import os
import shutil
import sysconfig
from pathlib import Path

from neuroflux_fl.errors import DependencyError


def flower_environment(home: Path) -> dict[str, str]:
    """This process's environment for Flower's commands: ``home`` as their folder, no reports to Flower's makers, no
    check for updates, no packages installed at run time, and their own commands found first on the path."""
    return os.environ | {
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "PATH": _command_path(),
    }


def flower_command(name: str) -> str:
    """Path of one of Flower's commands, for example ``flower-superlink``.

    Raises:
        DependencyError: it is not installed beside this Python, nor anywhere on the path.
    """
    found = shutil.which(name, path=_command_path())
    if found is None:
        raise DependencyError(f"Command {name} is not installed: pip install 'flwr>=1.41,<1.42' into this environment.")
    return found


def _command_path() -> str:
    # Flower's processes start each other by bare name: theirs must be the ones of this environment.
    return os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])
