"""What a machine tells, from imitated files of the kernel and an imitated NVML."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from clients.sensors import MachineSensors, board_celsius, board_watts


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., None]:
    """``write("class/hwmon/hwmon0", power1_input=5)``: files of the kernel under ``tmp_path``."""

    def files(folder: str, **values: object) -> None:
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for name, value in values.items():
            (tmp_path / folder / name).write_text(f"{value}\n")

    return files


Write = Callable[..., None]


def test_the_hottest_zone(write: Write, tmp_path: Path) -> None:
    write("class/thermal/thermal_zone0", temp=41500)
    write("class/thermal/thermal_zone1", temp=63250)
    write("class/thermal/thermal_zone2", temp=-256000)  # not connected
    write("class/thermal/thermal_zone3", temp="")  # asleep
    write("class/thermal/cooling_device0", cur_state=3)
    write("class/hwmon/hwmon0", temp1_input=90000)

    assert board_celsius(tmp_path) == 63.25


def test_monitors_where_there_are_no_zones(write: Write, tmp_path: Path) -> None:
    assert board_celsius(tmp_path) is None
    write("class/hwmon/hwmon0", temp1_input=30000, temp2_input=44000)

    assert board_celsius(tmp_path) == 44


def test_power_that_is_measured_is_added_up(write: Write, tmp_path: Path) -> None:
    assert board_watts(tmp_path) is None
    write("class/hwmon/hwmon0", power1_input=2_500_000, in1_input=5000, in1_label="X", curr1_input=1000)
    write("class/hwmon/hwmon1", power1_input=1_000_000, power2_input=500_000)
    write("class/hwmon/hwmon2/device", type="Battery")
    write("class/hwmon/hwmon2", power1_input=9_000_000)

    assert board_watts(tmp_path) == 4


def test_a_jetson_has_voltages_and_currents(write: Write, tmp_path: Path) -> None:
    write(
        "class/hwmon/hwmon1",
        in1_input=5000, in1_label="VDD_GPU_SOC", curr1_input=800,
        in2_input=5000, in2_label="VDD_CPU_CV", curr2_input=400,
        in4_input=2, curr4_input=1200,  # of the shunts: no rail
    )  # fmt: skip
    assert board_watts(tmp_path) == pytest.approx(6)

    write("class/hwmon/hwmon1", in3_input=5000, in3_label="VDD_IN", curr3_input=1700)
    assert board_watts(tmp_path) == pytest.approx(8.5), "what goes in is all there is"


class _NvmlError(Exception):
    """What NVML raises."""


def nvml(**changes: Any) -> SimpleNamespace:
    functions: dict[str, Any] = {
        "NVMLError": _NvmlError,
        "NVML_TEMPERATURE_GPU": 0,
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetMemoryInfo": lambda _: SimpleNamespace(free=6, used=2, total=8),
        "nvmlDeviceGetUtilizationRates": lambda _: SimpleNamespace(gpu=75, memory=10),
        "nvmlDeviceGetTemperature": lambda _, sensor: 61 + sensor,
        "nvmlDeviceGetPowerUsage": lambda _: 43_500,
    }
    return SimpleNamespace(**functions | changes)


def fail(*_: object) -> Any:
    raise _NvmlError


def test_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml())
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    reading = MachineSensors(tmp_path, root=tmp_path).read(resident_bytes=5)

    assert (reading.gpu_bytes, reading.gpu_size_bytes, reading.gpu_utilisation) == (2, 8, 0.75)
    assert (reading.gpu_celsius, reading.gpu_watts) == (61, 43.5)
    assert reading.resident_bytes == 5
    assert reading.disk_size_bytes is not None
    assert 0 < (reading.disk_free_bytes or 0) <= reading.disk_size_bytes
    assert (reading.available_bytes or 0) > 0


def test_a_gpu_that_does_not_tell_everything(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml(nvmlDeviceGetPowerUsage=fail, nvmlDeviceGetUtilizationRates=fail))

    reading = MachineSensors(tmp_path, root=tmp_path).read()

    assert (reading.gpu_watts, reading.gpu_utilisation, reading.gpu_celsius) == (None, None, 61)


def test_a_machine_that_tells_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml(nvmlInit=fail))

    reading = MachineSensors(tmp_path / "absent", root=tmp_path / "absent").read()

    assert reading.gpu_size_bytes is reading.disk_size_bytes is reading.board_celsius is reading.board_watts is None
