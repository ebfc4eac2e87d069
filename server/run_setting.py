"""What a run is about, written when it begins: the configuration, the data, and all that is needed to repeat it."""

from __future__ import annotations

import json
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuroflux_fl.errors import StorageError
from neuroflux_fl.output_folder import write_text

if TYPE_CHECKING:
    from neuroflux_fl.data import ImageData
    from neuroflux_fl.local_network import LocalNetwork
    from neuroflux_fl.run_config import RunConfig

SETTING_FILE = "setting.json"
_PACKAGES = ("neuroflux-fl", "torch", "torchvision", "flwr", "numpy", "protobuf")


def describe_run(config: RunConfig, data: ImageData) -> dict[str, Any]:
    """Configuration, data, versions and machine, ready for JSON."""
    return {
        "config": config.to_flat(),
        "data": {"name": data.name, "train": len(data.train), "test": len(data.test), "classes": data.classes},
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        "machine": platform.platform(),
    }


def write_setting(out: Path, config: RunConfig, data: ImageData, network: LocalNetwork, *, resumed: bool) -> None:
    """Write ``setting.json``; a ``resumed`` run keeps the time at which it started.

    Raises:
        StorageError: the folder cannot be written, or an earlier file is damaged.
    """
    # Who only reads a run's folder, as the telemetry gateway does, is spared torch.
    from neuroflux_fl.exits import exit_parameters

    before = read_setting(out) if resumed else None
    units = [{"unit": unit, "exit_parameters": exit_parameters(network, unit)} for unit in range(len(network))]
    setting = {
        "run": config.run_name,
        "started_at": time.time() if before is None else before["started_at"],
        **describe_run(config, data),
        "units": units,
    }
    write_text(out / SETTING_FILE, json.dumps(setting, indent=2) + "\n")


def read_setting(out: Path) -> dict[str, Any] | None:
    """What ``write_setting`` wrote; None where there is nothing.

    Raises:
        StorageError: the file cannot be read, or is not one of these.
    """
    path = out / SETTING_FILE
    try:
        setting: dict[str, Any] = json.loads(path.read_text())
        missing = {"run", "started_at", "config", "data", "versions", "machine", "units"} - setting.keys()
    except FileNotFoundError:
        return None
    except (OSError, ValueError, AttributeError) as error:
        raise StorageError(f"File {path} cannot be read: {error}.") from error
    if missing:
        raise StorageError(f"File {path} lacks {', '.join(sorted(missing))}: it was written by another release.")
    return setting


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
