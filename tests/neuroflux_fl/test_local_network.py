"""Units with heads as packed arrays, and where their start weights come from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from neuroflux_fl.compute import ComputeSettings
from neuroflux_fl.heads import HeadSettings
from neuroflux_fl.local_network import (
    LocalNetwork,
    build_network,
    head_parameters,
    prefix_version,
    stored_tensors,
    unit_digest,
    unit_parameters,
)
from neuroflux_fl.unit_chain import chain_from_modules
from neuroflux_fl.unit_store import UnitStore

CPU = torch.device("cpu")


def test_layout_by_hand(small_network: LocalNetwork) -> None:
    layout = small_network.layout(0)

    # Unit: 3x3 convolution 1 to 8 with bias, norm of 8. Head: 3x3 8 to 8, norm of 8, linear 8*2*2 to 3.
    assert unit_parameters(layout) == 8 * 9 + 8 + 2 * 8
    assert head_parameters(layout) == 8 * 8 * 9 + 2 * 8 + 3 * 32 + 3
    assert layout.sizes[1] == layout.sizes[3] == 2 * 8, "running mean and variance, without the counter"


def test_head_left_out_takes_no_memory(small_network: LocalNetwork) -> None:
    pair = small_network.empty(1, CPU, with_head=False)

    assert all(value.is_meta for value in pair.head.state_dict().values())
    assert not any(value.is_meta for value in pair.unit.state_dict().values())
    assert {name.partition(".")[0] for name in stored_tensors(pair)} == {"unit"}
    assert pair.training


def test_layout_and_kind_of_layers_are_chosen_before_there_are_weights(small_network: LocalNetwork) -> None:
    seen: list[nn.Parameter] = []

    def prepare(pair: nn.Module) -> None:
        seen.extend(pair.parameters())
        ComputeSettings(channels_last=True).arrange(pair)

    pair = small_network.empty(1, CPU, prepare=prepare)

    assert seen
    assert all(parameter.is_meta for parameter in seen)
    assert pair.get_parameter("unit.0.weight").is_contiguous(memory_format=torch.channels_last)


def test_start_weights_are_a_function_of_seed_and_unit(small_network: LocalNetwork) -> None:
    torch.manual_seed(1)
    first = small_network.initial(1, seed=3)
    state = torch.get_rng_state()
    second = small_network.initial(1, seed=3)

    np.testing.assert_array_equal(first, second)
    assert torch.equal(torch.get_rng_state(), state), "the caller's random numbers go on undisturbed"
    assert not np.array_equal(first, small_network.initial(1, seed=4))


def test_weights_that_the_user_gave_are_the_start() -> None:
    unit = nn.Conv2d(1, 4, 3)
    network = build_network(chain_from_modules([unit], image_shape=(1, 8, 8), classes=2), HeadSettings())

    packed = network.initial(0, seed=0)

    np.testing.assert_array_equal(packed[:36], unit.weight.detach().numpy().ravel())


def test_buffers_outside_the_state_dict_are_stored(tmp_path: Path) -> None:
    class Shift(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 3)
            self.shift: Tensor
            self.register_buffer("shift", torch.tensor([7.0]), persistent=False)

        def forward(self, value: Tensor) -> Tensor:
            return torch.as_tensor(self.get_submodule("conv")(value) + self.shift)

    network = build_network(chain_from_modules([Shift()], image_shape=(1, 8, 8), classes=2), HeadSettings())

    store = UnitStore(tmp_path, network)
    store.initialise(seed=0)
    pair = store.load(0, CPU)

    assert pair.get_buffer("unit.shift").tolist() == [7.0]


def test_version_depends_on_every_unit_and_on_the_order() -> None:
    first, second = np.zeros(3, np.float32), np.ones(3, np.float32)

    def version(*units: np.ndarray) -> str:
        return prefix_version(unit_digest([unit]) for unit in units)

    assert version(first, second) == version(first.copy(), second.copy())
    assert len({version(first), version(second), version(first, second), version(second, first)}) == 4
