"""A budget from what is free, with the numbers made up and the files of the kernel imitated."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from clients.budget import (
    CUDA_RESERVE_BYTES,
    HOST_RESERVE_BYTES,
    LEAST_BYTES,
    MemoryReadings,
    find_budget,
    read_memory,
)
from neuroflux_fl.errors import BudgetError
from neuroflux_fl.sizes import GIB, MIB


def test_the_tighter_of_machine_and_control_group() -> None:
    machine = find_budget(MemoryReadings(host=2 * GIB, cgroup=3 * GIB))
    group = find_budget(MemoryReadings(host=3 * GIB, cgroup=2 * GIB))

    assert machine.budget_bytes == group.budget_bytes == 2 * GIB - HOST_RESERVE_BYTES
    assert machine.reason == "the machine has 2.0 GiB free, less 768.0 MiB for Flower and the libraries"
    assert group.reason.startswith("the control group has 2.0 GiB free")


def test_a_gpu_counts_alone() -> None:
    found = find_budget(MemoryReadings(cuda=8 * GIB, host=1, cgroup=1))

    assert found.budget_bytes == 8 * GIB - CUDA_RESERVE_BYTES
    assert "the GPU has 8.0 GiB free" in found.reason


def test_another_reserve() -> None:
    assert find_budget(MemoryReadings(host=100 * MIB), reserve_bytes=36 * MIB).budget_bytes == 64 * MIB


def test_nothing_left() -> None:
    just_enough = HOST_RESERVE_BYTES + LEAST_BYTES
    assert find_budget(MemoryReadings(host=just_enough)).budget_bytes == LEAST_BYTES

    with pytest.raises(BudgetError, match=r"machine has 7.* MiB free and 768\.0 MiB are kept .* give --budget"):
        find_budget(MemoryReadings(host=just_enough - 1))


def test_no_reading_at_all() -> None:
    with pytest.raises(BudgetError, match="give --budget"):
        find_budget(MemoryReadings())


def test_this_machine() -> None:
    readings = read_memory(cuda=False)

    assert readings.cuda is None
    assert readings.host is None or readings.host > 1 * MIB


class _NvmlError(Exception):
    """What NVML raises."""


def nvml(asked: list[object]) -> SimpleNamespace:
    def handle(which: object) -> object:
        asked.append(which)
        return which

    return SimpleNamespace(
        NVMLError=_NvmlError,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: asked.append("shutdown"),
        nvmlDeviceGetHandleByIndex=handle,
        nvmlDeviceGetHandleByUUID=handle,
        nvmlDeviceGetMemoryInfo=lambda _: SimpleNamespace(free=5 * GIB),
    )


@pytest.mark.parametrize(("visible", "which"), [("", 0), ("2,0", 2), ("GPU-8f", "GPU-8f")])
def test_the_gpu_that_torch_would_use(monkeypatch: pytest.MonkeyPatch, visible: str, which: object) -> None:
    asked: list[object] = []
    monkeypatch.setitem(sys.modules, "pynvml", nvml(asked))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    assert read_memory(cuda=True).cuda == 5 * GIB
    assert asked == [which, "shutdown"]


def test_a_board_without_nvml_uses_its_hosts_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = nvml([])
    broken.nvmlInit = lambda: (_ for _ in ()).throw(_NvmlError())
    monkeypatch.setitem(sys.modules, "pynvml", broken)
    assert read_memory(cuda=True).cuda is None

    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert read_memory(cuda=True).cuda is None
