"""Convolutions that move their weights during backward: the same steps as torch's optimizer, far fewer bytes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from neuroflux_fl.convolution_patches import SLICE_BYTES
from neuroflux_fl.frugal_convolution import (
    FrugalConv2d,
    WeightUpdate,
    make_frugal,
    weight_updates,
)
from neuroflux_fl.local_step import OptimizerSettings, make_optimizer, train_window
from neuroflux_fl.tracing import trace_step
from neuroflux_fl.unit_chain import empty_copy

RATE = 0.05
SETTINGS = OptimizerSettings(momentum=0.9, weight_decay=0.1)


def train(network: nn.Module, updates: list[WeightUpdate], settings: OptimizerSettings, batches: list[Any]) -> float:
    """Returns the last loss."""
    optimizer = make_optimizer(network.parameters(), settings, RATE)
    loss = torch.zeros(())
    for images, labels in batches:
        for update in updates:
            update.learning_rate = RATE
        _, loss = train_window([network], nn.Identity(), optimizer, images, labels)
    if settings.momentum:
        holds = len(list(network.parameters())) - len(updates)
        assert len(optimizer.state) == holds, "the optimizer holds state for a frugal weight"
    return loss.item()


def random_batches(shape: tuple[int, ...], count: int = 4) -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(shape), torch.randint(0, 3, shape[:1])) for _ in range(count)]


def classifier(convolution: nn.Conv2d, shape: tuple[int, ...], first: nn.Module | None = None) -> nn.Sequential:
    network = nn.Sequential(first or nn.Identity(), convolution, nn.ReLU(inplace=True), nn.Flatten(), nn.LazyLinear(3))
    network(torch.zeros(shape))
    return network


def made_frugal(module: nn.Module, settings: OptimizerSettings, **options: Any) -> list[WeightUpdate]:
    make_frugal(module, settings, **options)
    return weight_updates([module])


@pytest.mark.parametrize("momentum", [0.9, 0.0])
@pytest.mark.parametrize(
    ("build", "shape"),
    [
        pytest.param(partial(nn.Conv2d, 9, 8, 3, padding=1), (5, 9, 4, 4), id="3x3"),
        pytest.param(
            partial(nn.Conv2d, 9, 8, 3, stride=2, padding=1, bias=False), (5, 9, 7, 6), id="stride leaves rest"
        ),
        pytest.param(partial(nn.Conv2d, 9, 8, 1, stride=2), (3, 9, 5, 4), id="1x1 shortcut"),
        pytest.param(partial(nn.Conv2d, 9, 8, (2, 3), stride=(1, 2), padding=(0, 1)), (2, 9, 4, 5), id="oblong"),
        pytest.param(partial(nn.Conv2d, 200, 400, 3, padding=1), (3, 200, 3, 2), id="several slices, the last smaller"),
    ],
)
def test_steps_equal_those_of_torch(build: Callable[[], nn.Conv2d], shape: tuple[int, ...], momentum: float) -> None:
    torch.manual_seed(0)
    settings = OptimizerSettings(momentum=momentum, weight_decay=0.1)
    # A layer before it, so that the gradient by the input is tested through what it moves there.
    network = classifier(build(), shape, first=nn.Conv2d(shape[1], shape[1], 1))
    plain = copy.deepcopy(network)
    updates = made_frugal(network[1], settings, smallest_bytes=0)
    batches = random_batches(shape)

    loss = train(network, updates, settings, batches)

    assert loss == pytest.approx(train(plain, [], settings, batches), rel=1e-5)
    for (name, mine), theirs in zip(network.state_dict().items(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6, msg=name)


def test_a_first_layer_without_bias_moves_too() -> None:
    """Nothing else in its part of the graph asks for a gradient."""
    torch.manual_seed(0)
    network = classifier(nn.Conv2d(4, 8, 3, bias=False), (2, 4, 4, 4))
    plain = copy.deepcopy(network)
    batches = random_batches((2, 4, 4, 4))

    train(network, made_frugal(network, SETTINGS, smallest_bytes=0), SETTINGS, batches)
    train(plain, [], SETTINGS, batches)

    torch.testing.assert_close(network[1].weight, plain[1].weight)


def test_under_autocast_images_are_narrow_and_products_are_not() -> None:
    torch.manual_seed(0)
    shape = (6, 64, 4, 4)
    network = classifier(nn.Conv2d(64, 32, 3, padding=1), shape, first=nn.Conv2d(64, 64, 1))
    plain, weight = copy.deepcopy(network), cast(nn.Conv2d, network[1]).weight
    before = weight.detach().clone()
    updates = made_frugal(network[1], SETTINGS, smallest_bytes=0)
    images, labels = random_batches(shape, 1)[0]
    moves = []
    for net in (network, plain):
        optimizer = make_optimizer(net.parameters(), SETTINGS, RATE)
        for update in updates:
            update.learning_rate = RATE
        with torch.autocast("cpu", dtype=torch.bfloat16):
            outputs = net(images)
            assert outputs.dtype == torch.bfloat16
            loss = nn.functional.cross_entropy(outputs, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        convolution, first = cast(nn.Conv2d, net[1]), cast(nn.Conv2d, net[0])
        moves.append((convolution.weight.detach() - before, cast(Tensor, first.weight.grad)))

    assert weight.dtype == torch.float32
    assert weight.grad is None
    for mine, theirs in zip(*moves, strict=True):
        assert (mine - theirs).norm() < 0.1 * theirs.norm()


def test_channels_last_gives_the_same_steps_and_stays() -> None:
    torch.manual_seed(0)
    shape = (2, 16, 4, 4)
    network = classifier(nn.Conv2d(16, 8, 3, padding=1), shape)
    plain, batches = copy.deepcopy(network), random_batches(shape)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    updates = made_frugal(network, SETTINGS, smallest_bytes=0)
    last = [(images.to(memory_format=torch.channels_last), labels) for images, labels in batches]

    train(network, updates, SETTINGS, last)
    train(plain, [], SETTINGS, batches)

    assert network[1](last[0][0]).is_contiguous(memory_format=torch.channels_last)
    for mine, theirs in zip(network.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_bfloat16_momentum_trains_as_well_as_float32() -> None:
    digits = load_digits()
    order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(digits.images, dtype=torch.float32)[order, None] / 8 - 1
    labels = torch.tensor(digits.target)[order]
    correct = {}
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(inplace=True), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(inplace=True), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(128, 10),
        )  # fmt: skip
        settings = OptimizerSettings()
        updates = made_frugal(network, settings, smallest_bytes=0, momentum_dtype=dtype)
        batches = [*zip(torch.split(images[:1200], 30), torch.split(labels[:1200], 30), strict=True)] * 2
        train(network, updates, settings, batches)
        network.eval()
        with torch.no_grad():
            correct[dtype] = (network(images[1200:]).argmax(1) == labels[1200:]).float().mean().item()
        assert all(cast(Tensor, update.velocity).dtype == dtype for update in updates)

    assert correct[torch.float32] > 0.93
    assert correct[torch.bfloat16] > correct[torch.float32] - 0.02


@pytest.mark.parametrize(("dtype", "state"), [(torch.float32, 1.0), (torch.bfloat16, 0.5)])
def test_a_traced_step_holds_weights_momentum_and_one_slice(dtype: torch.dtype, state: float) -> None:
    weight_bytes = 4 * 512 * 512 * 9
    with torch.device("meta"):
        unit = nn.Sequential(nn.Conv2d(512, 512, 3, padding=1), nn.BatchNorm2d(512), nn.ReLU(inplace=True))
        head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))

    def build() -> tuple[nn.Module, Callable[[], None]]:
        modules = [empty_copy(unit, "cpu"), empty_copy(head, "cpu")]
        make_frugal(modules[0], OptimizerSettings(), momentum_dtype=dtype)
        both = nn.ModuleList(modules)
        optimizer = make_optimizer(both.parameters(), OptimizerSettings(), RATE)

        def step() -> None:
            train_window(
                modules[:1], modules[1], optimizer, torch.zeros(2, 512, 4, 4), torch.zeros(2, dtype=torch.long)
            )

        return both, step

    trace = trace_step(build)

    slices = SLICE_BYTES if dtype == torch.bfloat16 else 0
    activations = 10 * 2 * 512 * 4 * 4 * 4
    assert weight_bytes * (1 + state) + slices <= max(trace.tensor_bytes)
    assert max(trace.tensor_bytes) <= weight_bytes * (1 + state) + slices + activations
    assert trace.flops == pytest.approx(2 * 2 * 2 * 16 * weight_bytes / 4, rel=0.02)  # forward and gradient by weight


def test_what_is_not_supported_or_small_is_left_alone() -> None:
    module = nn.ModuleList(
        [
            nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 8, 3, dilation=2), nn.Conv2d(8, 8, 3, padding="same"),
            nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3),
        ]
    )  # fmt: skip
    names, parameters = list(module.state_dict()), list(module.parameters())

    updates = made_frugal(module, SETTINGS, smallest_bytes=4 * 8 * 8 * 9)

    assert [type(part) for part in module] == [nn.Conv2d] * 5 + [FrugalConv2d]
    assert len(updates) == 1
    assert list(module.state_dict()) == names
    assert all(now is before for now, before in zip(module.parameters(), parameters, strict=True))


def test_a_weight_used_twice_in_a_step_is_refused() -> None:
    convolution = nn.Conv2d(8, 8, 3, padding=1)
    make_frugal(convolution, SETTINGS, smallest_bytes=0)

    with pytest.raises(RuntimeError, match="inplace operation"):
        convolution(convolution(torch.randn(2, 8, 4, 4))).sum().backward()
