"""The truth about memory: what the process or the GPU really held, and when it said that there was no more."""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from neuroflux_fl.memory_allocator import FreedMemory, return_free_memory

_Result = TypeVar("_Result")

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"
_TOO_MANY = 2**60
_REFUSALS = (
    # torch's CPU allocator, where memory is mapped (Linux, macOS) and on Windows
    "can't allocate memory",
    "not enough memory",
    # oneDNN, whose kernels say no more when they cannot have their workspace
    "could not execute a primitive",
    "could not create a memory object",
    # CUDA's libraries, when they start in what a full GPU has left
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
    # a convolution, when the workspace of none of cuDNN's algorithms can be had
    "unable to find an engine to execute this computation",
)


def release_free_memory() -> None:
    """Collect garbage and return the heap's free pages to the kernel, so that a baseline is a true one."""
    forget_failed_backward()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return_free_memory()


def forget_failed_backward() -> None:
    """Let go of what a backward pass that failed on a CPU still holds.

    The part of its graph that was due next stays in the queue of torch's engine, activations and all, until another
    backward pass ends on the same thread: the next try would hold both graphs.
    """
    with torch.enable_grad():
        torch.zeros((), requires_grad=True).mul(1).backward()  # type: ignore[no-untyped-call]


def warm_up_kernels() -> None:
    """Run one tiny training step so that code pages and library tables are resident before any baseline is taken.

    What the libraries have made by then never dies, and garbage collections, one before every measurement, no longer
    walk through it: 1 ms each instead of 150.
    """
    _warm_up_small_maps()
    _warm_up_refusals()
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(16, 16, 3, padding=1), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 4),
    )  # fmt: skip
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    for _ in range(2):
        loss = nn.functional.cross_entropy(network(torch.zeros(8, 3, 16, 16)), torch.zeros(8, dtype=torch.long))
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    network.eval()
    with torch.no_grad():
        network(torch.zeros(8, 3, 16, 16))
    gc.collect()
    gc.freeze()


def _warm_up_small_maps() -> None:
    """oneDNN without AVX-512 has other kernels for many channels on few pixels, whose code and buffers are 4 MiB: the
    first unit to need them would look too large for a small budget."""
    for layout in (torch.contiguous_format, torch.channels_last):
        convolution = nn.Conv2d(128, 128, 3, padding=1).to(memory_format=layout)  # type: ignore[call-overload]
        images = torch.zeros(8, 128, 2, 2).to(memory_format=layout).requires_grad_()
        convolution(images).sum().backward()


def _warm_up_refusals() -> None:
    """The code that tells of memory that ran out is 4 MiB: the first block to need it would look too large."""
    start = torch.zeros((), requires_grad=True)
    middle = start.mul(1)
    middle.register_hook(lambda _: torch.empty(_TOO_MANY, dtype=torch.uint8))  # type: ignore[no-untyped-call]
    with suppress(RuntimeError):
        middle.mul(1).backward()  # type: ignore[no-untyped-call]
    forget_failed_backward()


@dataclass(slots=True)
class PeakMeter:
    """Peak bytes held since ``start``, over what was held then. On CUDA the allocator's own counter; on Linux the
    kernel's peak resident size (``VmHWM``), which counts everything: tensors, workspace, slack. Elsewhere None."""

    device: torch.device
    _baseline: int = 0
    _highest: int = 0
    _usable: bool = False

    def start(self) -> None:
        """Begin a new measurement; frees what can be freed first."""
        release_free_memory()
        self._highest = 0
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self._usable = self._reset()
        if self._usable:
            self._baseline = self._held()

    def peak_bytes(self) -> int | None:
        """Peak since ``start`` in bytes, or None where the platform cannot tell."""
        return max(self._highest, self._latest()) if self._usable else None

    def overran(self, limit_bytes: int | None) -> bool:
        """Whether the peak since the last such question, or the start, was above a limit. None is never passed."""
        if not self._usable or limit_bytes is None:
            return False
        latest = self._latest()
        self._highest = max(self._highest, latest)
        self._reset()
        return latest > limit_bytes

    def held_bytes(self) -> int | None:
        """What is held now over what was held at the start; for any thread. None where the platform cannot tell."""
        return max(0, self._held() - self._baseline) if self._usable else None

    def _reset(self) -> bool:
        """Begin to look for the highest anew, if the platform can."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            return True
        try:
            _CLEAR_REFS.write_text(_RESET_PEAK)
        except OSError:
            return False
        return True

    def _held(self) -> int:
        return torch.cuda.memory_allocated(self.device) if self.device.type == "cuda" else _status_bytes("VmRSS")

    def _latest(self) -> int:
        cuda = self.device.type == "cuda"
        highest = torch.cuda.max_memory_allocated(self.device) if cuda else _status_bytes("VmHWM")
        return max(0, highest - self._baseline)


def limit_cuda_memory(device: torch.device, budget_bytes: int) -> None:
    """Make CUDA's allocator refuse more than the budget, so that a plan cannot overrun it. No effect on a CPU."""
    if device.type != "cuda":
        return
    total = torch.cuda.get_device_properties(device).total_memory
    # Of all of torch's functions this one wants an index.
    index = torch.cuda.current_device() if device.index is None else device.index
    torch.cuda.set_per_process_memory_fraction(min(1.0, budget_bytes / total), index)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on a GPU or on a CPU."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    if not isinstance(error, RuntimeError):
        return False
    # With "descriptor" after it, it is an operator that oneDNN does not have.
    return any(refusal in str(error) for refusal in _REFUSALS) or str(error).endswith("could not create a primitive")


def run_keeping(freed: FreedMemory, work: Callable[[], _Result]) -> _Result:
    """Do work with freed memory kept, and again where memory ran out: under the wider limit, at last with none kept."""
    while True:
        try:
            with freed.kept():
                return work()
        except (RuntimeError, MemoryError) as error:
            if not (is_out_of_memory(error) and freed.widen()):
                raise
        forget_failed_backward()


def _status_bytes(field: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{_STATUS} has no field {field}")
