"""What server and devices build alike from the run's configuration: data, network and shares of the data."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import lru_cache

import numpy as np

from neuroflux_fl.data import ImageData, load_data, partition, split_validation
from neuroflux_fl.data.description import DataDescription, fit_data
from neuroflux_fl.device_training import DeviceData
from neuroflux_fl.errors import DataError
from neuroflux_fl.heads import HeadSettings
from neuroflux_fl.local_network import LocalNetwork, build_network
from neuroflux_fl.models import build_chain
from neuroflux_fl.run_config import RunConfig
from neuroflux_fl.unit_chain import ImageShape


@lru_cache(maxsize=2)
def load_run_data(data: str, image_side: int, train_limit: int, test_limit: int, seed: int) -> ImageData:
    """The run's data set, loaded once in each process."""
    return load_data(
        data,
        image_side=image_side or None,
        train_limit=train_limit or None,
        test_limit=test_limit or None,
        seed=seed,
    )


def run_data(config: RunConfig) -> ImageData:
    """The data set that the configuration names."""
    return load_run_data(config.data, config.image_side, config.train_limit, config.test_limit, config.seed)


def describe_data(config: RunConfig) -> RunConfig:
    """The configuration with the description of its data filled in, so that devices need only data of their own."""
    data = run_data(config)
    return replace(
        config,
        image_shape="x".join(str(size) for size in data.image_shape),
        class_names=json.dumps(data.class_names),
        mean=",".join(repr(value) for value in data.mean),
        std=",".join(repr(value) for value in data.std),
    )


def data_description(config: RunConfig) -> DataDescription:
    """The description that the configuration carries, or else that of its data set."""
    return config.data_description() or DataDescription.of(run_data(config))


def run_network(config: RunConfig) -> LocalNetwork:
    """The run's network: a description without weights, the same object wherever it is asked for again."""
    data = data_description(config)
    return _build_network(
        config.model, data.image_shape, data.classes, config.norm, config.width, config.head_settings()
    )


@lru_cache(maxsize=4)
def _build_network(
    model: str, image_shape: ImageShape, classes: int, norm: str, width: float, heads: HeadSettings
) -> LocalNetwork:
    chain = build_chain(model, image_shape=image_shape, classes=classes, norm=norm, width=width)
    return build_network(chain, heads, norm)


def device_data(config: RunConfig, source: str, partition_id: int, partitions: int) -> DeviceData:
    """One device's images: its own ``source`` (a name or a folder) where it has one, else its share of the run's data.

    Raises:
        DataError: as ``device_share`` does, or the device's data does not fit the run's.
    """
    if not source:
        return device_share(config, run_data(config), partition_id, partitions)
    return _own_share(config, source, partition_id, partitions)


@lru_cache(maxsize=2)
def _own_share(config: RunConfig, source: str, partition_id: int, partitions: int) -> DeviceData:
    wanted = data_description(config)
    _, height, width = wanted.image_shape
    data = load_data(
        source,
        image_side=config.image_side or (height if height == width else None),
        train_limit=config.train_limit or None,
        test_limit=config.test_limit or None,
        seed=config.seed,
    )
    return device_share(config, fit_data(data, wanted), partition_id, partitions)


def device_share(config: RunConfig, data: ImageData, partition_id: int, partitions: int) -> DeviceData:
    """One device's images, split into training and validation: a function of the configuration alone.

    Raises:
        DataError: the device number is outside the fleet, or (``require-all-classes``) a class has no image on it.
    """
    if not 0 <= partition_id < partitions:
        raise DataError(f"Device {partition_id} is outside the fleet of {partitions}: number devices from 0.")
    shares = partition(
        data.train.labels,
        partitions,
        config.partition,
        alpha=config.alpha,
        shards_per_device=config.shards_per_device,
        min_examples=8,
        seed=config.seed,
    )
    indices = shares[partition_id]
    if config.require_all_classes:
        counts = np.bincount(data.train.labels[indices], minlength=data.classes)
        if counts.min() == 0:
            raise DataError(
                f"Device {partition_id} has no image of class {data.class_names[int(counts.argmin())]!r}: raise alpha "
                f"(now {config.alpha}), use fewer devices (now {partitions}), or set require-all-classes to false."
            )
    train, validation = split_validation(indices, data.train.labels, config.validation_fraction, config.seed)
    return DeviceData.of(data, train, validation)
