"""The command that does a run again: what differs from the defaults, and nothing else."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from neuroflux_fl.run_config import RunConfig

_OF_THE_PLACE = {"out", "resume", "run-name"}
_OF_THE_SIMULATION = {"poll-seconds"}
_OF_REAL_DEVICES = {"budgets", "image-shape", "class-names", "mean", "std"}
"""Settings that the server fills in, or that real devices have of their own."""


def repeat_command(config: Mapping[str, Any], *, devices: int, simulated: bool) -> str:
    """One line for a POSIX shell.

    Args:
        config: flat configuration of the run.
        devices: number of devices that took part.
        simulated: as ``neuroflux-fl simulate`` does; else a server for real devices.
    """
    defaults = RunConfig().to_flat()
    left_out = _OF_THE_PLACE | (_OF_THE_SIMULATION if simulated else _OF_REAL_DEVICES)
    changed = [
        f"--set {shlex.quote(f'{key}={write_setting(value)}')}"
        for key, value in config.items()
        if key not in left_out and defaults.get(key) != value
    ]
    if simulated:
        return " ".join(["neuroflux-fl simulate", f"--devices {devices}", *changed, "--out NEW-FOLDER"])
    return " ".join(["neuroflux-fl server --certs CERTS --state NEW-FOLDER", *changed])


def write_setting(value: object) -> str:
    """A value as ``--set key=VALUE`` takes it, unquoted."""
    return str(value).lower() if isinstance(value, bool) else str(value)
