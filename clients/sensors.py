"""What a machine tells of itself: memory, disk, GPU, temperature and power."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from clients.gpu import Gpu, GpuReading, open_gpu
from neuroflux_fl.device_report import MachineReading
from neuroflux_fl.free_memory import available_memory_bytes

_SYS = Path("/sys")
_TOTAL_RAIL = re.compile(r"(^|_)IN$")
_COLDEST, _HOTTEST = -40.0, 200.0
"""Outside of these a sensor is not connected."""


class MachineSensors:
    """Reads them; what is not there is None, and nothing is raised."""

    def __init__(self, folder: Path, *, root: Path = _SYS) -> None:
        """NVML is opened once.

        Args:
            folder: on the disk to watch.
            root: where the kernel shows its devices.
        """
        self._folder = folder
        self._root = root
        self._gpu: Gpu | None = open_gpu()

    def read(self, *, resident_bytes: int | None = None) -> MachineReading:
        """One moment; ``resident_bytes`` is of the process that trains, which tells itself."""
        disk_free, disk_size = _disk_bytes(self._folder)
        gpu = GpuReading() if self._gpu is None else self._gpu.read()
        return MachineReading(
            resident_bytes=resident_bytes,
            available_bytes=available_memory_bytes(),
            disk_free_bytes=disk_free,
            disk_size_bytes=disk_size,
            gpu_bytes=gpu.used_bytes,
            gpu_size_bytes=gpu.size_bytes,
            gpu_utilisation=gpu.utilisation,
            gpu_celsius=gpu.celsius,
            gpu_watts=gpu.watts,
            board_celsius=board_celsius(self._root),
            board_watts=board_watts(self._root),
        )


def board_celsius(root: Path = _SYS) -> float | None:
    """The hottest thermal zone, or else the hottest sensor of the hardware monitors."""
    zones = _celsius(root, "class/thermal/thermal_zone*/temp") or _celsius(root, "class/hwmon/hwmon*/temp*_input")
    return max(zones, default=None)


def board_watts(root: Path = _SYS) -> float | None:
    """Power that the board draws: the rail that is its input, or else the sum of all rails that are measured."""
    rails = [rail for monitor in sorted(root.glob("class/hwmon/hwmon*")) for rail in _rails(monitor)]
    totals = [watts for label, watts in rails if _TOTAL_RAIL.search(label)]
    if totals:
        return max(totals)
    return sum(watts for _, watts in rails) if rails else None


def _rails(monitor: Path) -> Iterator[tuple[str, float]]:
    """Label and watts of every rail: measured as power, or else as voltage (mV) and current (mA)."""
    if (monitor / "device" / "type").exists():
        return  # a battery or its charger: what flows there is not what the board draws
    watts = {path: value for path in sorted(monitor.glob("power*_input")) if (value := _number(path)) is not None}
    for path, microwatts in watts.items():
        yield _text(path.with_name(path.name.replace("_input", "_label"))), max(0.0, microwatts) / 1e6
    if watts:
        return
    for path in sorted(monitor.glob("curr*_input")):
        number = path.name.removeprefix("curr").removesuffix("_input")
        # Only a labelled voltage belongs to the current of its number; others are of shunts, or of anything.
        label = _text(monitor / f"in{number}_label")
        millivolts, milliamperes = _number(monitor / f"in{number}_input"), _number(path)
        if label and millivolts is not None and milliamperes is not None:
            yield label, max(0.0, millivolts * milliamperes) / 1e6


def _celsius(root: Path, pattern: str) -> list[float]:
    values = (_number(path) for path in sorted(root.glob(pattern)))
    return [value / 1000 for value in values if value is not None and _COLDEST < value / 1000 < _HOTTEST]


def _disk_bytes(folder: Path) -> tuple[int | None, int | None]:
    try:
        usage = shutil.disk_usage(folder)
    except OSError:
        return None, None
    return usage.free, usage.total


def _number(path: Path) -> float | None:
    try:
        return float(path.read_text())
    except (OSError, ValueError):
        return None


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, ValueError):
        return ""
