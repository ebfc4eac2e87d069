"""The meter against allocations of known size, and predictions against a real block in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import weakref
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from neuroflux_fl.device_memory import PeakMeter, forget_failed_backward, is_out_of_memory, limit_cuda_memory
from neuroflux_fl.memory_allocator import allocator_environment
from neuroflux_fl.sizes import MIB

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[2]
on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peaks are read from /proc, Linux only")

# A fresh process: the peak of this one would hold what other tests left behind.
TRAIN_ONE_BLOCK = """
import json, sys, tempfile
from pathlib import Path
import numpy as np, torch
from neuroflux_fl.block_training import TrainSettings, train_block
from neuroflux_fl.device_memory import warm_up_kernels
from neuroflux_fl.memory_allocator import return_freed_memory_at_once
from neuroflux_fl.heads import HeadSettings
from neuroflux_fl.local_network import build_network
from neuroflux_fl.machine_speed import MachineSpeed
from neuroflux_fl.planning import PlannerSettings, plan_units
from neuroflux_fl.profiling import profile_network
from neuroflux_fl.sample_source import TensorSource
from neuroflux_fl.unit_chain import chain_from_modules
from neuroflux_fl.unit_store import UnitStore

exact = return_freed_memory_at_once()
torch.set_num_threads(1)
warm_up_kernels()
def unit(inputs, outputs):
    norm, relu = torch.nn.BatchNorm2d(outputs), torch.nn.ReLU(inplace=True)
    return torch.nn.Sequential(torch.nn.Conv2d(inputs, outputs, 3, padding=1), norm, relu, torch.nn.MaxPool2d(2))
chain = chain_from_modules([unit(3, 64), unit(64, 128)], image_shape=(3, 32, 32), classes=10)
network = build_network(chain, HeadSettings())
profile = profile_network(network, speed=MachineSpeed())
budget, memory = (int(size) * 2**20 for size in sys.argv[2:4])
planner = PlannerSettings(batch_tolerance=0)  # as close to the budget as it comes
plan = plan_units(profile, budget, planner)
block = plan.blocks[0]
store = UnitStore(Path(sys.argv[1]), network)
for unit in block.units:
    store.write(unit, network.initial(unit, seed=0))
count = 3 * block.batch_size
data = TensorSource(torch.randn(count, 3, 32, 32), np.zeros(count, np.int64))
result = train_block(
    store, block, data, TrainSettings(epochs=1, views=1), validation=data, device=torch.device("cpu"),
    base_learning_rate=0.05, memory_bytes=memory,
)
needed = planner.budget_of(block)
print(json.dumps([exact, block.predicted_peak_bytes, needed, result.measured_peak_bytes, block.batch_size]))
"""

MEASURE_FIRST_WINDOW = """
import json
import torch
from neuroflux_fl.device_memory import PeakMeter, warm_up_kernels
from neuroflux_fl.heads import HeadSettings
from neuroflux_fl.local_network import build_network
from neuroflux_fl.memory_allocator import return_freed_memory_at_once
from neuroflux_fl.models import build_chain
from neuroflux_fl.plan import Window
from neuroflux_fl.planning import PlannerSettings
from neuroflux_fl.profiling import trace_window
from neuroflux_fl.window_step import WindowStep

exact = return_freed_memory_at_once()
torch.set_num_threads(1)
warm_up_kernels()
chain = build_chain("vgg11", image_shape=(3, 32, 32), classes=10, width=0.25)
step = WindowStep(network=build_network(chain, HeadSettings()), window=Window(first_unit=5, last_unit=5))
predicted = PlannerSettings().predicted_peak(trace_window(step).peak_bytes(26))
meter = PeakMeter(torch.device("cpu"))
meter.start()
run = step.timed(26, torch.device("cpu"))
run()
run()
print(json.dumps([exact, predicted, meter.peak_bytes()]))
"""


REFUSE_TWICE = """
import json
import torch
from neuroflux_fl.device_memory import PeakMeter, forget_failed_backward, warm_up_kernels
from neuroflux_fl.memory_allocator import return_freed_memory_at_once

def ask_for_too_much():
    try:
        torch.empty(2**60, dtype=torch.uint8)
    except RuntimeError:
        forget_failed_backward()

exact = return_freed_memory_at_once()
warm_up_kernels()
peaks = []
for _ in range(2):
    meter = PeakMeter(torch.device("cpu"))
    meter.start()
    ask_for_too_much()
    peaks.append(meter.peak_bytes())
print(json.dumps([exact, *peaks]))
"""


@on_linux
def test_the_meter_sees_an_allocation_and_forgets_the_one_before() -> None:
    meter = PeakMeter(CPU)
    meter.start()
    large = torch.ones(64 * MIB // 4)
    del large
    peak = meter.peak_bytes()
    if peak is None:
        pytest.skip("this kernel does not let a process reset its peak")

    assert abs(peak - 64 * MIB) < 4 * MIB
    meter.start()
    small = torch.ones(16 * MIB // 4)
    again = meter.peak_bytes()
    assert again is not None
    assert abs(again - 16 * MIB) < 4 * MIB
    held = meter.held_bytes()
    del small
    left = meter.held_bytes()
    assert held is not None
    assert left is not None
    assert abs(held - 16 * MIB) < 4 * MIB
    assert left < 4 * MIB, "what was freed is not held"


@on_linux
def test_what_was_held_before_does_not_count() -> None:
    held = torch.ones(32 * MIB // 4)
    meter = PeakMeter(CPU)
    meter.start()

    peak = meter.peak_bytes()

    if peak is None:
        pytest.skip("this kernel does not let a process reset its peak")
    assert peak < 2 * MIB
    del held


def test_without_proc_the_meter_says_that_it_cannot_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("neuroflux_fl.device_memory._CLEAR_REFS", tmp_path / "absent" / "clear_refs")
    meter = PeakMeter(CPU)

    meter.start()

    assert meter.peak_bytes() is meter.held_bytes() is None


@on_linux
@pytest.mark.parametrize("allocator", ["system", "tcmalloc"])
@pytest.mark.parametrize(("budget", "memory"), [(24, 24), (64, 64), (64, 256)])
def test_a_block_holds_what_its_plan_predicts_and_kept_memory_beside_it(
    tmp_path: Path, allocator: str, budget: int, memory: int
) -> None:
    environment = os.environ | {"NEUROFLUX_FL_ALLOCATOR": allocator}
    environment |= allocator_environment(environment)
    if allocator == "tcmalloc" and "LD_PRELOAD" not in environment:
        pytest.skip("tcmalloc is not installed (Debian: libtcmalloc-minimal4)")
    done = subprocess.run(
        [sys.executable, "-c", TRAIN_ONE_BLOCK, str(tmp_path), str(budget), str(memory)],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    exact, predicted, needed, measured, batch_size = json.loads(done.stdout)
    if not exact or measured is None:
        pytest.skip("this platform cannot measure exact peaks")
    assert batch_size >= 2
    assert predicted <= budget * MIB
    most = predicted
    if allocator == "tcmalloc" and memory > 32:
        most = needed if memory == budget else 1.1 * predicted
    assert 0.6 * predicted <= measured <= most
    assert measured <= memory * MIB


@on_linux
def test_what_a_process_needs_once_is_not_taken_for_the_first_windows_memory() -> None:
    """128 channels on 2x2 have kernels of their own on processors with AVX2, 4 MiB of code and buffers."""
    predicted, measured = _exact_peaks(MEASURE_FIRST_WINDOW)

    assert measured <= predicted


@on_linux
def test_the_first_refusal_of_memory_takes_no_more_than_the_next() -> None:
    first, second = _exact_peaks(REFUSE_TWICE)

    assert first <= second + MIB


def _exact_peaks(code: str) -> tuple[int, int]:
    """What a process of its own found, without tcmalloc."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT, env=os.environ | {"NEUROFLUX_FL_ALLOCATOR": "system"}, capture_output=True, text=True, check=False,
        timeout=100,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    exact, first, second = json.loads(done.stdout)
    if not exact or None in (first, second):
        pytest.skip("this platform cannot measure exact peaks")
    return first, second


def test_which_errors_mean_that_memory_ran_out() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert is_out_of_memory(RuntimeError("GET was unable to find an engine to execute this computation"))
    assert is_out_of_memory(RuntimeError("could not execute a primitive"))
    assert is_out_of_memory(RuntimeError("could not create a primitive"))
    assert not is_out_of_memory(RuntimeError("could not create a primitive descriptor"))
    assert not is_out_of_memory(RuntimeError("shapes differ"))
    assert not is_out_of_memory(ValueError("not enough memory"))
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**60)
    assert is_out_of_memory(raised.value)


def test_a_backward_pass_that_failed_holds_nothing_once_it_is_forgotten() -> None:
    kept = fail_backward()
    assert any(reference() is not None for reference in kept), "torch lets go by itself now: then so need we no more"

    with torch.no_grad():  # as while running forward
        forget_failed_backward()

    assert all(reference() is None for reference in kept)


def fail_backward() -> list[weakref.ref[Packed]]:
    """One of two branches fails while the other is due. Returns references to what their graphs hold."""
    kept: list[weakref.ref[Packed]] = []

    def pack(tensor: Tensor) -> Packed:
        packed = Packed(tensor)
        kept.append(weakref.ref(packed))
        return packed

    def fail(_gradient: Tensor) -> Tensor:
        raise MemoryError

    doubled = torch.zeros(2, 3, requires_grad=True) * 2
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda packed: packed.tensor):
        early, late = doubled.cos(), doubled.sin()
    late.register_hook(fail)  # type: ignore[no-untyped-call]
    with pytest.raises(MemoryError):
        (early.sum() + late.sum()).backward()  # type: ignore[no-untyped-call]
    return kept


@dataclass
class Packed:
    """What a graph saves for its backward pass."""

    tensor: Tensor


@on_linux
def test_a_peak_above_a_limit_is_told_once_and_stays_in_the_record() -> None:
    meter = PeakMeter(CPU)
    meter.start()
    assert not meter.overran(32 * MIB)

    torch.ones(64 * MIB // 4)
    assert not meter.overran(None)
    torch.ones(64 * MIB // 4)
    assert meter.overran(32 * MIB)
    assert not meter.overran(32 * MIB), "it is over now"
    peak = meter.peak_bytes()
    assert peak is not None
    assert 60 * MIB < peak < 80 * MIB


def test_limiting_a_cpu_is_no_error() -> None:
    limit_cuda_memory(CPU, 1)


@pytest.mark.parametrize(("name", "index"), [("cuda", 3), ("cuda:1", 1)])
def test_a_gpu_is_limited_whether_or_not_its_number_is_named(
    name: str, index: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[tuple[float, int]] = []
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=400 * MIB))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda.memory, "_lazy_init", lambda: None)
    monkeypatch.setattr(torch._C, "_cuda_setMemoryFraction", lambda *limit: limits.append(limit), raising=False)

    limit_cuda_memory(torch.device(name), 100 * MIB)

    assert limits == [(0.25, index)]
