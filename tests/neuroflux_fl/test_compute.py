"""Precision and layout: levers that change how numbers are computed, never what is computed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from neuroflux_fl.block_training import TrainSettings, train_block
from neuroflux_fl.compute import ComputeSettings
from neuroflux_fl.errors import UsageError
from neuroflux_fl.local_network import LocalNetwork
from neuroflux_fl.plan import Block, Window
from neuroflux_fl.sample_source import TensorSource
from neuroflux_fl.unit_store import UnitStore

CPU = torch.device("cpu")
SETTINGS = TrainSettings(epochs=2, views=1, patience=None)


def trained(folder: Path, network: LocalNetwork, compute: ComputeSettings) -> list[np.ndarray]:
    store = UnitStore(folder, network)
    store.initialise(3)
    windows = tuple(Window(first_unit=unit, last_unit=unit) for unit in range(len(network)))
    block = Block(
        windows=windows, batch_size=8, learning_rate=0.05, predicted_peak_bytes=0, predicted_seconds_per_sample=0.0
    )
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(32, *network.chain.image_shape, generator=generator)
    labels = np.arange(32) % network.chain.classes
    result = train_block(
        store, block, TensorSource(inputs, labels), replace(SETTINGS, compute=compute), device=CPU,
        base_learning_rate=0.05,
    )  # fmt: skip
    assert result.finished
    return [store.read(unit) for unit in range(len(network))]


def test_channels_last_changes_nothing_but_rounding(tmp_path: Path, small_network: LocalNetwork) -> None:
    plain = trained(tmp_path / "a", small_network, ComputeSettings())
    last = trained(tmp_path / "b", small_network, ComputeSettings(channels_last=True))

    for one, other in zip(plain, last, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-4)


def test_bfloat16_trains_float32_weights_to_about_the_same(tmp_path: Path, small_network: LocalNetwork) -> None:
    plain = trained(tmp_path / "a", small_network, ComputeSettings())
    narrow = trained(tmp_path / "b", small_network, ComputeSettings(precision="bfloat16"))
    start = UnitStore(tmp_path / "c", small_network)
    start.initialise(3)

    for unit, (one, other) in enumerate(zip(plain, narrow, strict=True)):
        assert other.dtype == np.float32
        moved = np.abs(one - start.read(unit)).mean()
        assert 0 < np.abs(one - other).mean() < 0.2 * moved


def test_values_are_placed_once() -> None:
    compute = ComputeSettings(precision="bfloat16", channels_last=True)
    values = torch.randn(2, 3, 4, 4)

    placed = compute.place(values)

    assert placed.dtype == torch.bfloat16
    assert placed.is_contiguous(memory_format=torch.channels_last)
    assert compute.place(placed) is placed
    assert ComputeSettings().place(values) is values
    convolution = compute.arrange(nn.Conv2d(3, 8, 3))
    assert next(convolution.parameters()).is_contiguous(memory_format=torch.channels_last)


def test_what_cannot_be_computed_in_is_refused() -> None:
    with pytest.raises(UsageError, match="float32, bfloat16, float16"):
        ComputeSettings(precision="float8")
    with pytest.raises(UsageError, match="for GPUs"):
        ComputeSettings(precision="float16").running(CPU)
