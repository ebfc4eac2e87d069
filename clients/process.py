"""What a process that trains does once at its start."""

from __future__ import annotations

import gc
from functools import cache

from neuroflux_fl.device_memory import return_freed_memory_at_once, warm_up_kernels


@cache
def prepare_process() -> None:
    """Make memory figures exact and bring the libraries' code into memory; a second call does nothing."""
    return_freed_memory_at_once()
    warm_up_kernels()
    # What the libraries made while importing never dies: without it a collection takes 1 ms instead of 250.
    gc.collect()
    gc.freeze()
