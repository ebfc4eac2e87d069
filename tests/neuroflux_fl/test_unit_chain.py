"""Cutting a network into units, and units that leave their input alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from neuroflux_fl.errors import UsageError
from neuroflux_fl.unit_chain import chain_from_modules, empty_copy


def conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def test_sequential_is_cut_before_every_child_with_a_convolution() -> None:
    residual_free = nn.Sequential(conv(4, 6), nn.ReLU())
    network = nn.Sequential(
        nn.BatchNorm2d(3), conv(3, 4), nn.ReLU(), nn.MaxPool2d(2),
        residual_free, nn.BatchNorm2d(6),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(6, 5),
    ).eval()  # fmt: skip

    chain = chain_from_modules(network, image_shape=(3, 8, 8), classes=5)

    kinds = [[type(part).__name__ for part in unit.children()] for unit in chain.units]
    assert kinds == [["BatchNorm2d", "Conv2d", "ReLU", "MaxPool2d"], ["Sequential", "BatchNorm2d"]]
    assert chain.output_shapes == ((4, 4, 4), (6, 4, 4))
    assert chain.input_shapes == ((3, 8, 8), (4, 4, 4))
    assert chain.unit_names == ("unit0", "unit1")
    images = torch.randn(2, 3, 8, 8)
    value = images
    for unit in chain.units:
        value = unit(value)
    torch.testing.assert_close(chain.classifier(value), network(images))


def test_sequential_without_a_linear_tail_gets_a_pooling_classifier() -> None:
    chain = chain_from_modules(nn.Sequential(conv(1, 4), nn.ReLU()), image_shape=(1, 8, 8), classes=7)

    assert len(chain) == 1
    assert empty_copy(chain.classifier, "cpu")(torch.zeros(2, 4, 8, 8)).shape == (2, 7)


def test_list_is_taken_as_it_is_and_keeps_its_weights() -> None:
    units = [conv(1, 4), nn.Sequential(nn.ReLU(), conv(4, 4), conv(4, 2))]

    chain = chain_from_modules(units, image_shape=(1, 8, 8), classes=2, names=["first", "second"])

    assert chain.units == tuple(units)
    assert chain.unit_names == ("first", "second")


@pytest.mark.parametrize("first", [nn.ReLU(inplace=True), nn.LeakyReLU(inplace=True), nn.Dropout(0.5, inplace=True)])
@pytest.mark.parametrize("training", [True, False])
def test_unit_that_starts_in_place_leaves_its_input_alone(first: nn.Module, training: bool) -> None:
    second = nn.Sequential(first, conv(4, 4), nn.ReLU(inplace=True))

    chain = chain_from_modules([conv(1, 4), second], image_shape=(1, 8, 8), classes=2)

    kept = torch.randn(2, 4, 8, 8)
    before = kept.clone()
    chain.units[1].train(training)(kept)
    assert torch.equal(kept, before)
    assert vars(first)["inplace"], "the caller's own module is not touched"


def test_in_place_activation_after_a_convolution_stays_in_place() -> None:
    unit = nn.Sequential(conv(1, 4), nn.ReLU(inplace=True))

    assert chain_from_modules([unit], image_shape=(1, 8, 8), classes=2).units[0] is unit


def test_unit_that_writes_into_its_input_by_hand_is_refused() -> None:
    class Doubles(nn.Module):
        def forward(self, value: Tensor) -> Tensor:
            return value.mul_(2)

    with pytest.raises(UsageError, match="Doubles overwrites its own input"):
        chain_from_modules([conv(1, 4), Doubles()], image_shape=(1, 8, 8), classes=2)


@pytest.mark.parametrize(
    ("modules", "names", "message"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), None, "no unit"),
        ([], None, "no unit"),
        ([conv(1, 4)], ["one", "two"], "1 units but 2 names"),
        ([conv(1, 4), conv(3, 4)], None, r"'unit1' does not accept its input of shape \(4, 8, 8\)"),
        ([nn.Sequential(conv(1, 4), nn.Flatten())], None, r"'unit0' gives \(256,\)"),
        ([nn.Sequential(conv(1, 4), nn.MaxPool2d(16))], None, "Unit 'unit0'"),
    ],
)
def test_networks_that_are_no_chain_are_refused(modules: nn.Sequential, names: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        chain_from_modules(modules, image_shape=(1, 8, 8), classes=2, names=names)


def test_empty_copy_takes_no_memory_and_shares_nothing() -> None:
    unit = nn.Sequential(conv(1, 4), nn.BatchNorm2d(4))
    unit[0].bias.requires_grad_(False)

    copy = empty_copy(unit)

    assert all(value.is_meta for value in copy.state_dict().values())
    assert [p.requires_grad for p in copy.parameters()] == [True, False, True, True]
    assert not any(value.is_meta for value in unit.state_dict().values())
