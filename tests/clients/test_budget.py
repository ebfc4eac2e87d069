"""A budget from what is free, with the numbers made up and the files of the kernel imitated."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from clients.budget import (
    CUDA_RESERVE_BYTES,
    HOST_RESERVE_BYTES,
    LEAST_BYTES,
    MemoryReadings,
    cgroup_free_bytes,
    find_budget,
    host_free_bytes,
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


def test_memory_of_the_host(tmp_path: Path) -> None:
    assert host_free_bytes(tmp_path) is None
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemFree: 1 kB\nMemAvailable:    2048 kB\n")

    assert host_free_bytes(tmp_path) == 2 * MIB


def group(folder: Path, limit: str, usage: int, cached: int = 0, version: int = 2) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{usage}\n")
    prefix = "" if version == 2 else "total_"
    (folder / "memory.stat").write_text(f"anon 5\n{prefix}inactive_file {cached}\n")


def of_process(proc: Path, text: str) -> Path:
    (proc / "self").mkdir(parents=True)
    (proc / "self" / "cgroup").write_text(text)
    return proc


def test_the_tightest_group_above_the_process(tmp_path: Path) -> None:
    root, proc = tmp_path / "cgroup", of_process(tmp_path / "proc", "0::/user.slice/app.scope\n")
    group(root / "user.slice" / "app.scope", "max", 10 * MIB)
    group(root / "user.slice", str(300 * MIB), 120 * MIB, cached=20 * MIB)
    group(root, str(250 * MIB), 20 * MIB)

    # 300 - (120 - 20) = 200 in the slice, 250 - 20 = 230 at the root, no limit on the process's own group.
    assert cgroup_free_bytes(proc, root) == 200 * MIB


def test_a_limit_at_the_root_of_a_container(tmp_path: Path) -> None:
    root, proc = tmp_path / "cgroup", of_process(tmp_path / "proc", "0::/../elsewhere\n")
    group(root, str(100 * MIB), 40 * MIB)

    assert cgroup_free_bytes(proc, root) == 60 * MIB


def test_the_first_version_of_control_groups(tmp_path: Path) -> None:
    root = tmp_path / "cgroup"
    proc = of_process(tmp_path / "proc", "5:devices:/\n4:cpu,memory:/docker/abc\n0::/\n")
    group(root / "memory" / "docker" / "abc", str(64 * MIB), 10 * MIB, cached=4 * MIB, version=1)
    group(root / "memory", "9223372036854771712", 10 * MIB, version=1)

    assert cgroup_free_bytes(proc, root) == 58 * MIB


def test_no_limit(tmp_path: Path) -> None:
    assert cgroup_free_bytes(tmp_path / "nothing", tmp_path) is None
    proc = of_process(tmp_path / "proc", "0::/\n")
    assert cgroup_free_bytes(proc, tmp_path / "cgroup") is None
    group(tmp_path / "cgroup", "max", 1)
    assert cgroup_free_bytes(proc, tmp_path / "cgroup") is None


def test_an_overdrawn_group_has_nothing(tmp_path: Path) -> None:
    root, proc = tmp_path / "cgroup", of_process(tmp_path / "proc", "0::/\n")
    group(root, "100", 120)

    assert cgroup_free_bytes(proc, root) == 0


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
