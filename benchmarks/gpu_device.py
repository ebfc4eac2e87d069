"""What the benchmarks for a GPU share: its description and limit, their options, and a method tuned or refused."""

from __future__ import annotations

import argparse
import os
import subprocess
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.report import Worker, serve
from neuroflux_fl.arm_tuning import Refusal, TunedArm, tune
from neuroflux_fl.arms import Arm
from neuroflux_fl.device_memory import (
    is_out_of_memory,
    limit_cuda_memory,
    release_free_memory,
    warm_up_kernels,
)
from neuroflux_fl.errors import NeurofluxError
from neuroflux_fl.heads import HEAD_KINDS, HeadSettings
from neuroflux_fl.memory_allocator import return_freed_memory_at_once
from neuroflux_fl.planning import PlannerSettings
from neuroflux_fl.sizes import MIB

MODULE = "benchmarks.gpu_device"
ALLOCATOR = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True", "CUBLAS_WORKSPACE_CONFIG": ":4096:2:16:8"}
"""Of all methods alike, where the environment does not say otherwise: no segments of which only a part is used, and a
workspace of 8 MiB for matrix products, which takes 32 MiB on some GPUs if left alone. Both count in the limit."""


def add_device_options(parser: argparse.ArgumentParser) -> None:
    """Options that a benchmark of training shares with this one."""
    parser.add_argument("--head", choices=HEAD_KINDS, default=HeadSettings().kind, help="of NeuroFlux")
    parser.add_argument("--reach", type=int, default=PlannerSettings().reach, help="of NeuroFlux")
    parser.add_argument("--maximum-batch", type=int, default=256)
    parser.add_argument("--width", type=float, default=1.0, help="factor on the channels of a VGG")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, or cpu")
    parser.add_argument("--threads", type=int, default=0, help="of torch on the CPU; 0 leaves them alone")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE")


def start(device: str) -> dict[str, str]:
    """Set what CUDA's libraries read when they start, for the processes to come; returns a description of the device.

    This process keeps off the GPU: what it took there would be missing elsewhere.
    """
    for name, value in ALLOCATOR.items():
        os.environ.setdefault(name, value)
    if torch.device(device).type != "cuda":
        return describe_device(torch.device(device))
    with Worker(MODULE) as worker:
        described: dict[str, str] = worker.ask(do="describe", device=device)
    return described


def find_device(name: str) -> torch.device:
    """The device of that name; ends the benchmark where there is none."""
    device = torch.device(name)
    if device.type != "cuda":
        return device
    if not torch.cuda.is_available():
        raise SystemExit("No GPU is to be found by this torch: install its CUDA build and a driver, or --device cpu.")
    return torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)


def prepare_process(device: torch.device, threads: int) -> None:
    """Threads of the CPU; where that is the device, make its peaks exact as far as it can be done."""
    if threads:
        torch.set_num_threads(threads)
    if device.type == "cpu":
        return_freed_memory_at_once()
        warm_up_kernels()


def describe_device(device: torch.device) -> dict[str, str]:
    """Name, memory, driver and library versions, and what the numbers depend on."""
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    if device.type != "cuda":
        return {"date": when, "device": f"{device.type}: no GPU, and no budget is enforced"}
    properties = torch.cuda.get_device_properties(device)
    cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    tf32 = (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32)
    return {
        "date": when,
        "device": f"{properties.name}, {properties.total_memory / MIB:.0f} MiB, compute capability "
        f"{properties.major}.{properties.minor}, {properties.multi_processor_count} multiprocessors",
        "driver": _ask_driver(properties.name),
        "cuda": f"{torch.version.cuda}, cuDNN {cudnn}, TF32 in convolutions {tf32[0]}, in "
        f"matrix products {tf32[1]}, cuDNN benchmark {torch.backends.cudnn.benchmark}",
        "allocator": ", ".join(f"{name}={os.environ.get(name, '')}" for name in ALLOCATOR),
    }


def limit_memory(device: torch.device, budget_bytes: int | None) -> None:
    """Enforce a budget on a GPU from now on; None lifts it."""
    release_free_memory()
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        limit_cuda_memory(device, total if budget_bytes is None else budget_bytes)


def held_bytes(device: torch.device) -> int:
    """What is held on a GPU while nothing is trained: workspaces of the libraries. 0 on a CPU."""
    release_free_memory()
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def tune_arm(arm: Arm, budget_bytes: int | None, device: torch.device) -> tuple[TunedArm | None, dict[str, Any]]:
    """How the method runs under the budget, or why it does not."""
    row: dict[str, Any] = {"method": arm.name, "refused": "", "passes": [], "blocks": []}
    try:
        how = tune(arm, budget_bytes, device)
    except NeurofluxError as error:
        return None, {**row, "refused": str(error)}
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return None, {**row, "refused": "ran out of memory"}
    if isinstance(how, Refusal):
        return None, {**row, "refused": f"needs {how.needed_bytes / 1e6:.1f} MB"}
    return how, {
        **row,
        "blocks": [asdict(block) for block in how.plan.blocks],
        "untrained_units": list(how.plan.untrained_units),
        "channels_last": how.compute.channels_last,
        "predicted_peak_bytes": how.plan.predicted_peak_bytes,
        "tuning_seconds": how.tuning_seconds,
    }


def _ask_driver(name: str) -> str:
    """Version of the driver, by the tool that comes with it."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,power.limit,clocks.max.sm", "--format=csv,noheader"]
    try:
        lines = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return "unknown: no nvidia-smi"
    return next((line for line in lines if line.startswith(name)), "unknown")


if __name__ == "__main__":
    serve(lambda request: describe_device(find_device(request["device"])))
