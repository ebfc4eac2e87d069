"""How much memory this process could still take, as the kernel and its control groups tell it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

_NO_LIMIT = 2**62
"""Version 1 of control groups writes a number close to 2**63 where there is none."""
_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")


def available_memory_bytes() -> int:
    """The smaller of what the machine and what the control groups leave; all of its memory where neither is told."""
    known = [value for value in (host_free_bytes(), cgroup_free_bytes()) if value is not None]
    return min(known) if known else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def host_free_bytes(proc: Path = _PROC) -> int | None:
    """``MemAvailable`` of ``/proc/meminfo``; None where there is none."""
    try:
        lines = (proc / "meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def cgroup_free_bytes(proc: Path = _PROC, root: Path = _CGROUPS) -> int | None:
    """What the limits of this process's own control group and of all above it leave; None without a limit.

    Version 2, and the memory controller of version 1. Files that the kernel has cached and can drop count as free.
    """
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return None
    free = [
        value
        for line in lines
        for folder, limit, usage, cached in _groups(line, root)
        if (value := _group_free_bytes(folder, limit, usage, cached)) is not None
    ]
    return min(free, default=None)


def _groups(line: str, root: Path) -> Iterable[tuple[Path, str, str, str]]:
    """The group of a line of ``/proc/self/cgroup`` and all above it, with the names of its files."""
    hierarchy, _, rest = line.partition(":")
    controllers, _, path = rest.partition(":")
    if hierarchy == "0":
        base, names = root, ("memory.max", "memory.current", "inactive_file")
    elif "memory" in controllers.split(","):
        base, names = root / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    else:
        return
    # Seen from inside a container, a path may begin with "/..": what is above the root is not to be seen.
    parts = [part for part in path.split("/") if part not in ("", "..")]
    for depth in range(len(parts), -1, -1):
        yield (base.joinpath(*parts[:depth]), *names)


def _group_free_bytes(folder: Path, limit_name: str, usage_name: str, cached_name: str) -> int | None:
    try:
        limit = int((folder / limit_name).read_text())  # version 2 writes "max" where there is none
        usage = int((folder / usage_name).read_text())
    except (OSError, ValueError):
        return None
    if limit >= _NO_LIMIT:
        return None
    cached = 0
    try:
        for line in (folder / "memory.stat").read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == cached_name:
                cached = int(value)
    except (OSError, ValueError):
        cached = 0
    return max(0, limit - max(0, usage - cached))
