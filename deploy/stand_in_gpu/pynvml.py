"""A stand-in for NVIDIA's ``pynvml``, with a made-up GPU: for ``deploy/check_monitoring.py`` on machines without one.

A device finds it where its ``PYTHONPATH`` names this folder, and nowhere else. Its figures mean nothing.
"""

from __future__ import annotations

import time
from types import SimpleNamespace

NVML_TEMPERATURE_GPU = 0
_SIZE = 4 * 1024**3
_HANDLE = object()


class NVMLError(Exception):
    """Never raised: everything that is asked for is there."""


def nvmlInit() -> None:
    """There is nothing to open."""


def nvmlShutdown() -> None:
    """There is nothing to close."""


def nvmlDeviceGetHandleByIndex(index: int) -> object:
    """The one GPU, whatever the index."""
    return _HANDLE


def nvmlDeviceGetMemoryInfo(handle: object) -> SimpleNamespace:
    """A quarter is in use, and a little more now and then."""
    used = _SIZE // 4 + int(_wave() * 64 * 1024**2)
    return SimpleNamespace(total=_SIZE, used=used, free=_SIZE - used)


def nvmlDeviceGetUtilizationRates(handle: object) -> SimpleNamespace:
    """Percent."""
    return SimpleNamespace(gpu=int(50 + 40 * _wave()), memory=25)


def nvmlDeviceGetTemperature(handle: object, sensor: int) -> int:
    """Degrees Celsius."""
    return int(60 + 5 * _wave())


def nvmlDeviceGetPowerUsage(handle: object) -> int:
    """Milliwatts."""
    return int(9000 + 3000 * _wave())


def _wave() -> float:
    """From 0 to 1 and back in two minutes, so that a line is not flat."""
    return abs(time.monotonic() % 120 - 60) / 60
