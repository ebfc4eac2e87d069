"""How much memory training may have where nobody has said: what is free, less what the rest of the client needs."""

from __future__ import annotations

from dataclasses import dataclass

from clients.gpu import open_gpu
from neuroflux_fl.errors import BudgetError
from neuroflux_fl.free_memory import cgroup_free_bytes, host_free_bytes
from neuroflux_fl.sizes import MIB, format_bytes

HOST_RESERVE_BYTES = 768 * MIB
"""Kept free on a host: about 400 MiB for Flower's SuperNode, SuperExec and the ClientApp of a message, and about 350
for an agent's interpreter with torch. They are not part of the budget, and do not run yet when memory is read."""
CUDA_RESERVE_BYTES = 768 * MIB
"""Kept free on a GPU: the CUDA context with the kernels of torch and cuDNN."""
LEAST_BYTES = 4 * MIB
"""A budget below this trains nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryReadings:
    """Free bytes, each as one part of the system tells it; None where it does not."""

    cuda: int | None = None
    """Of the GPU that torch would use."""
    cgroup: int | None = None
    """What the tightest memory limit of this process's control groups leaves."""
    host: int | None = None
    """What the kernel believes could be had without swapping (``MemAvailable``)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundBudget:
    """A budget, and why it is that."""

    budget_bytes: int
    reason: str
    """For people: reading, reserve, and what is left."""


def find_budget(readings: MemoryReadings, *, reserve_bytes: int | None = None) -> FoundBudget:
    """The budget that readings leave: of the GPU where there is one, else of the host.

    Args:
        readings: taken before the client starts anything.
        reserve_bytes: to be kept free, instead of ``CUDA_RESERVE_BYTES`` or ``HOST_RESERVE_BYTES``.

    Raises:
        BudgetError: nothing useful is left, or there is no reading at all.
    """
    if readings.cuda is not None:
        free, source, reserve = readings.cuda, "GPU", CUDA_RESERVE_BYTES
    else:
        known = [
            (value, name)
            for value, name in ((readings.cgroup, "control group"), (readings.host, "machine"))
            if value is not None
        ]
        if not known:
            raise BudgetError("This platform does not tell how much memory is free: give --budget, for example 256MiB.")
        (free, source), reserve = min(known), HOST_RESERVE_BYTES
    if reserve_bytes is not None:
        reserve = reserve_bytes
    left = free - reserve
    if left < LEAST_BYTES:
        raise BudgetError(
            f"The {source} has {format_bytes(free)} free and {format_bytes(reserve)} are kept for Flower and the "
            "libraries: nothing is left to train in. End other programs, or give --budget (for example 64MiB) at your "
            "own risk."
        )
    return FoundBudget(
        budget_bytes=left,
        reason=f"the {source} has {format_bytes(free)} free, less {format_bytes(reserve)} for Flower and the libraries",
    )


def read_memory(*, cuda: bool) -> MemoryReadings:
    """Ask the system.

    Args:
        cuda: whether torch can use a GPU here. NVML also knows GPUs that it cannot use.
    """
    return MemoryReadings(cuda=_cuda_free_bytes() if cuda else None, cgroup=cgroup_free_bytes(), host=host_free_bytes())


def _cuda_free_bytes() -> int | None:
    gpu = open_gpu()
    if gpu is None:
        return None
    try:
        return gpu.free_bytes()
    finally:
        gpu.close()
