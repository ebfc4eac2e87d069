"""Checkpointed units compute the same, hold less, and move batch statistics once."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from neuroflux_fl.checkpointing import run_units
from neuroflux_fl.heads import HeadSettings
from neuroflux_fl.local_network import build_network
from neuroflux_fl.local_step import OptimizerSettings, make_optimizer, train_window
from neuroflux_fl.models import build_chain
from neuroflux_fl.plan import Window
from neuroflux_fl.profiling import trace_window
from neuroflux_fl.window_step import WindowStep


def units(count: int) -> list[nn.Module]:
    torch.manual_seed(0)
    sizes = [3, *([8] * count)]
    return [
        nn.Sequential(nn.Conv2d(sizes[index], sizes[index + 1], 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        for index in range(count)
    ]


@pytest.mark.parametrize("checkpoints", [(2,), (1, 2, 3), (1, 4)])
def test_a_step_with_checkpoints_equals_one_without(checkpoints: tuple[int, ...]) -> None:
    ours = units(5)
    plain = copy.deepcopy(ours)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    other = copy.deepcopy(head)
    settings = OptimizerSettings()
    optimizers = [
        make_optimizer([p for m in (*body, end) for p in m.parameters()], settings, 0.1)
        for body, end in ((ours, head), (plain, other))
    ]
    for _ in range(3):
        inputs, labels = torch.randn(6, 3, 8, 8), torch.randint(0, 3, (6,))
        outputs, loss = train_window(ours, head, optimizers[0], inputs, labels, checkpoints=checkpoints)
        expected, expected_loss = train_window(plain, other, optimizers[1], inputs, labels)
        torch.testing.assert_close(outputs, expected)
        torch.testing.assert_close(loss, expected_loss)

    expected_tensors = nn.ModuleList(plain).state_dict()
    for name, tensor in nn.ModuleList(ours).state_dict().items():
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(tensor, expected_tensors[name], msg=f"{name}: moved by the second pass too?")


def test_batch_norm_keeps_its_momentum() -> None:
    modules = units(3)
    run_units(modules, torch.randn(4, 3, 8, 8), (1, 2)).sum().backward()  # type: ignore[no-untyped-call]

    assert [module[1].momentum for module in modules] == [0.1, 0.1, 0.1]  # type: ignore[index]


def test_checkpoints_lower_the_peak_and_cost_a_forward_pass() -> None:
    network = build_network(build_chain("vgg11", image_shape=(3, 32, 32), classes=10, width=0.25), HeadSettings())
    whole = Window(first_unit=0, last_unit=7)
    plain = trace_window(WindowStep(network=network, window=whole))

    kept = trace_window(WindowStep(network=network, window=Window(first_unit=0, last_unit=7, checkpoints=(1, 2, 4))))

    assert kept.peak_bytes(64) < 0.8 * plain.peak_bytes(64)
    # Units 0 to 3 are run once more: a third of their share of the arithmetic of forward, input and weight gradients.
    assert 1.1 < kept.flops.per_sample / plain.flops.per_sample < 4 / 3
