"""Server and devices derive the same data, network and shares from one configuration."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from neuroflux_fl.data.description import DataDescription
from neuroflux_fl.device_training import DeviceData
from neuroflux_fl.errors import DataError
from neuroflux_fl.fleet_model import (
    data_description,
    describe_data,
    device_data,
    device_share,
    run_data,
    run_network,
)
from neuroflux_fl.run_config import RunConfig

CONFIG = RunConfig(model="vgg11", width=0.05, train_limit=160, test_limit=40, seed=5)
DEVICES = 4


def images_of(share: DeviceData) -> list[bytes]:
    return [image.tobytes() for part in (share.train, share.validation) for image in part.images]


@pytest.mark.parametrize("partition", ["iid", "dirichlet", "shards"])
def test_shares_are_disjoint_and_together_all(partition: str) -> None:
    config = replace(CONFIG, partition=partition)
    data = run_data(config)

    shares = [device_share(config, data, device, DEVICES) for device in range(DEVICES)]

    dealt = sorted(image for share in shares for image in images_of(share))
    assert dealt == sorted(image.tobytes() for image in data.train.images)
    for share in shares:
        count = len(share.train) + len(share.validation)
        # Each class is rounded by itself.
        assert len(share.validation) == pytest.approx(config.validation_fraction * count, abs=5)
        assert len(share.validation) > 0


def test_share_is_a_function_of_the_configuration_alone() -> None:
    data = run_data(CONFIG)

    first, again = (device_share(CONFIG, data, 2, DEVICES) for _ in range(2))
    other = device_share(replace(CONFIG, seed=6), data, 2, DEVICES)

    np.testing.assert_array_equal(first.train.images, again.train.images)
    np.testing.assert_array_equal(first.validation.labels, again.validation.labels)
    assert images_of(first) != images_of(other)


def test_small_alpha_makes_shares_uneven() -> None:
    data = run_data(CONFIG)

    def spread(alpha: float) -> float:
        config = replace(CONFIG, alpha=alpha)
        shares = [device_share(config, data, device, DEVICES) for device in range(DEVICES)]
        counts = np.array([np.bincount(share.train.labels, minlength=10) for share in shares])
        return float(counts.std(axis=0).mean())

    assert spread(0.3) > 2 * spread(100.0)


def test_all_classes_can_be_required() -> None:
    data = run_data(CONFIG)
    config = replace(CONFIG, partition="shards", require_all_classes=True)

    with pytest.raises(DataError, match=r"Device 1 has no image of class '\d'.*set require-all-classes to false"):
        device_share(config, data, 1, DEVICES)
    assert device_share(replace(config, partition="iid", validation_fraction=0.1), data, 0, 2)


@pytest.mark.parametrize("device", [-1, DEVICES])
def test_device_outside_the_fleet_is_refused(device: int) -> None:
    with pytest.raises(DataError, match=f"Device {device} is outside the fleet of 4"):
        device_share(CONFIG, run_data(CONFIG), device, DEVICES)


def test_network_fits_the_data() -> None:
    network = run_network(CONFIG)

    assert (network.chain.image_shape, network.chain.classes) == ((1, 32, 32), 10)
    assert run_network(replace(CONFIG, norm="group")).layout(0).unit_buffers == ()
    assert run_network(replace(CONFIG, head="pooled")).head_settings.kind == "pooled"


def test_described_run_needs_the_data_of_no_one_else(tmp_path: Path) -> None:
    described = describe_data(CONFIG)

    elsewhere = replace(RunConfig.from_flat(described.to_flat()), data=str(tmp_path / "not-here"))

    assert data_description(elsewhere) == DataDescription.of(run_data(CONFIG))
    assert run_network(elsewhere) is run_network(CONFIG)
    own = device_data(elsewhere, "digits", 1, DEVICES)
    shared = device_data(CONFIG, "", 1, DEVICES)
    assert images_of(own) == images_of(shared)
    assert (own.mean, own.std) == (shared.mean, shared.std)
