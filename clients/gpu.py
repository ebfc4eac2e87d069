"""The GPU that torch would use, as NVML tells it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuReading:
    """What NVML tells at one moment; None where it does not."""

    used_bytes: int | None = None
    """By everyone."""
    size_bytes: int | None = None
    utilisation: float | None = None
    """0 to 1."""
    celsius: float | None = None
    watts: float | None = None


def open_gpu() -> Gpu | None:
    """The first visible GPU; None without NVML, as on boards whose GPU shares the host's memory."""
    try:
        import pynvml
    except ImportError:
        return None
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip()
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        if visible and not visible.isdigit():
            return Gpu(pynvml, pynvml.nvmlDeviceGetHandleByUUID(visible))
        return Gpu(pynvml, pynvml.nvmlDeviceGetHandleByIndex(int(visible or 0)))
    except pynvml.NVMLError:
        pynvml.nvmlShutdown()
        return None


class Gpu:
    """One GPU; every reading may fail by itself."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        """Get one from ``open_gpu``."""
        self._nvml = nvml
        self._handle = handle

    def free_bytes(self) -> int | None:
        """Memory that nobody uses."""
        memory = self._ask("nvmlDeviceGetMemoryInfo")
        return None if memory is None else int(memory.free)

    def read(self) -> GpuReading:
        """Everything at once."""
        memory = self._ask("nvmlDeviceGetMemoryInfo")
        rates = self._ask("nvmlDeviceGetUtilizationRates")
        celsius = self._ask("nvmlDeviceGetTemperature", self._nvml.NVML_TEMPERATURE_GPU)
        milliwatts = self._ask("nvmlDeviceGetPowerUsage")
        return GpuReading(
            used_bytes=None if memory is None else int(memory.used),
            size_bytes=None if memory is None else int(memory.total),
            utilisation=None if rates is None else min(1.0, rates.gpu / 100),
            celsius=None if celsius is None else float(celsius),
            watts=None if milliwatts is None else milliwatts / 1000,
        )

    def close(self) -> None:
        """Give NVML back."""
        self._nvml.nvmlShutdown()

    def _ask(self, name: str, *arguments: Any) -> Any:
        try:
            return getattr(self._nvml, name)(self._handle, *arguments)
        except self._nvml.NVMLError:
            return None
