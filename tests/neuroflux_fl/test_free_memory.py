"""Free memory, read from imitations of the kernel's files."""

from __future__ import annotations

from pathlib import Path

import pytest

from neuroflux_fl import free_memory
from neuroflux_fl.free_memory import available_memory_bytes, cgroup_free_bytes, host_free_bytes
from neuroflux_fl.sizes import MIB


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


def test_the_tighter_of_machine_and_group_is_available(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MIB < available_memory_bytes() < 2**50
    for host, group, smaller in ((5, 3, 3), (3, 5, 3), (4, None, 4), (None, 6, 6)):
        monkeypatch.setattr(free_memory, "host_free_bytes", lambda value=host: value)
        monkeypatch.setattr(free_memory, "cgroup_free_bytes", lambda value=group: value)
        assert available_memory_bytes() == smaller
