"""Accuracy on the server's own images, against a plain forward pass."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from neuroflux_fl.data import ImageData, normalise
from neuroflux_fl.fleet_model import run_data, run_network
from neuroflux_fl.local_network import LocalNetwork, stored_tensors
from neuroflux_fl.run_config import RunConfig
from server.central_test import CentralTest

CONFIG = RunConfig(model="vgg11", width=0.05, train_limit=80, test_limit=300)


@pytest.fixture
def data() -> ImageData:
    """Classes of very unequal sizes: networks that always give one class then have unequal accuracies."""
    data = run_data(CONFIG)
    rows = [np.flatnonzero(data.test.labels == label)[: 2 * label + 1] for label in range(10)]
    return replace(data, test=data.test.select(np.concatenate(rows)))


@pytest.fixture
def network(data: ImageData) -> LocalNetwork:
    return run_network(CONFIG)


def plain_accuracy(
    network: LocalNetwork, arrays: dict[int, NDArray[np.float32]], data: ImageData, exit_unit: int
) -> float:
    device = torch.device("cpu")
    values = normalise(torch.from_numpy(data.test.images), data.mean, data.std)
    with torch.no_grad():
        for unit in range(exit_unit + 1):
            pair = network.empty(unit, device).eval()
            for name, value in network.layout(unit).unpack(arrays[unit], has_head=True).items():
                stored_tensors(pair)[name].copy_(torch.from_numpy(value))
            values = pair.unit(values)
        scores = pair.head(values)
    return float((scores.argmax(1).numpy() == data.test.labels).mean())


def test_accuracy_is_that_of_a_plain_forward_pass(network: LocalNetwork, data: ImageData) -> None:
    tester = CentralTest(network, data)
    # Two sets of weights with the same prefix of three units, as two rounds of a stage have.
    first = {unit: network.initial(unit, seed=1) for unit in range(5)}
    second = {unit: first[unit] if unit < 3 else network.initial(unit, seed=2) for unit in range(5)}

    expected = [{unit: plain_accuracy(network, arrays, data, unit) for unit in (3, 4)} for arrays in (first, second)]
    assert expected[0] != expected[1]

    for arrays, accuracies in zip((first, second), expected, strict=True):
        assert tester(arrays, 3, 4) == pytest.approx(accuracies)
    assert tester(second, 0, 1) == pytest.approx({unit: plain_accuracy(network, second, data, unit) for unit in (0, 1)})
    tester.close()
