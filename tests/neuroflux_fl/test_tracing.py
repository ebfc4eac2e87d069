"""The tracer against PyTorch's own memory tracker, and arithmetic by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker

from neuroflux_fl.heads import HeadSettings
from neuroflux_fl.local_network import LocalNetwork, build_network
from neuroflux_fl.local_step import OptimizerSettings, make_optimizer, train_window
from neuroflux_fl.models import build_chain
from neuroflux_fl.tracing import Trace, trace_step, workspace_bytes
from neuroflux_fl.unit_chain import empty_copy

Build = Callable[[], tuple[nn.Module, Callable[[], None]]]


def step_of(
    network: LocalNetwork, unit: int, batch: int
) -> tuple[nn.ModuleList, torch.optim.Optimizer, Callable[[], None]]:
    modules = nn.ModuleList(empty_copy(module, "cpu") for module in (network.chain.units[unit], network.heads[unit]))
    optimizer = make_optimizer(modules.parameters(), OptimizerSettings(), 0.1)

    def step() -> None:
        inputs = torch.zeros((batch, *network.chain.input_shapes[unit]))
        train_window([modules[0]], modules[1], optimizer, inputs, torch.zeros(batch, dtype=torch.long))

    return modules, optimizer, step


def traced(network: LocalNetwork, unit: int, batch: int) -> Trace:
    def build() -> tuple[nn.Module, Callable[[], None]]:
        modules, _, step = step_of(network, unit, batch)
        return modules, step

    return trace_step(build)


def peak_by_mem_tracker(network: LocalNetwork, unit: int, batch: int) -> int:
    with FakeTensorMode():
        modules, optimizer, step = step_of(network, unit, batch)
        tracker = MemTracker()
        tracker.track_external(modules, optimizer)
        with tracker:
            step()
            tracker.reset_mod_stats()
            step()
        peak = tracker.get_tracker_snapshot("peak")
    return int(next(iter(peak.values()))["Total"])


@pytest.mark.parametrize(
    ("model", "unit", "kind", "batch"),
    [("vgg16", 0, "conv", 16), ("vgg16", 3, "pooled", 16), ("vgg16", 9, "conv", 4), ("resnet18", 4, "conv", 8)],
)
def test_tensor_peak_is_that_of_pytorchs_own_tracker(model: str, unit: int, kind: str, batch: int) -> None:
    network = build_network(build_chain(model, image_shape=(3, 32, 32), classes=10), HeadSettings(kind=kind))

    ours = max(traced(network, unit, batch).tensor_bytes)

    assert ours == pytest.approx(peak_by_mem_tracker(network, unit, batch), rel=0.02)


def test_arithmetic_of_a_convolution_by_hand(small_network: LocalNetwork) -> None:
    batch = 4
    # Unit 0: 3x3, 1 to 8, on 8x8. Head: 3x3, 8 to 8, on 2x2; linear 32 to 3. Two operations a product. Backward
    # computes gradients of weights and inputs, but the images need none.
    unit = 2 * 9 * 8 * 64
    head = 2 * 9 * 8 * 8 * 4 + 2 * 32 * 3

    flops = traced(small_network, 0, batch).flops

    assert flops == batch * (2 * unit + 3 * head)


def test_nothing_of_a_trace_is_allocated() -> None:
    network = build_network(build_chain("vgg16", image_shape=(3, 224, 224), classes=10), HeadSettings())

    trace = traced(network, 0, 4096)

    assert max(trace.live_bytes) > 100 * 2**30, "more than this machine has"
    assert len(trace.live_bytes) == 2 * len(trace.tensor_bytes)
    assert 20 < trace.operators < len(trace.tensor_bytes), "views are no work"


def test_a_convolutions_workspace_is_a_copy_of_weights_or_images() -> None:
    images, weights, outputs = torch.zeros(2, 3, 8, 8), torch.zeros(4, 3, 3, 3), torch.zeros(2, 4, 8, 8)
    aten = torch.ops.aten

    assert workspace_bytes(aten.convolution.default, (images, weights), outputs) == (4 * 108, 4 * (384 + 512))
    assert workspace_bytes(aten.relu.default, (images,), images) == (0, 0)


def test_buffers_of_matrix_products_stay_and_so_count_at_every_moment() -> None:
    def build() -> tuple[nn.Module, Callable[[], None]]:
        def step() -> None:
            total = torch.empty(8, 16)
            torch.mm(torch.ones(8, 4), torch.ones(4, 16), out=total)
            del total
            torch.ones(1000)  # the peak, after the product

        return nn.Identity(), step

    trace = trace_step(build)

    assert max(trace.tensor_bytes) == 4000
    assert max(trace.live_bytes) == 4000 + 512 * 1024 + 768 * 16 * torch.get_num_threads()
