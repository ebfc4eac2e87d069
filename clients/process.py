"""What a process that trains does once at its start."""

from __future__ import annotations

from functools import cache

from neuroflux_fl.device_memory import warm_up_kernels
from neuroflux_fl.memory_allocator import return_freed_memory_at_once


@cache
def prepare_process() -> None:
    """Make memory figures exact and bring the libraries' code into memory; a second call does nothing."""
    return_freed_memory_at_once()
    warm_up_kernels()
