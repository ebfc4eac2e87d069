"""Small inputs that many tests build upon: a chain of three units, three classes that can be learned, a flow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from neuroflux_fl.activation_cache import ActivationCache
from neuroflux_fl.activation_flow import ActivationFlow
from neuroflux_fl.data.images import LabelledImages
from neuroflux_fl.heads import HeadSettings
from neuroflux_fl.local_network import LocalNetwork, build_network
from neuroflux_fl.sample_source import ImageSource
from neuroflux_fl.unit_chain import chain_from_modules
from neuroflux_fl.unit_store import UnitStore

CPU = torch.device("cpu")

# Small tensors gain nothing from threads, and threads that wait for a busy machine cost much.
torch.set_num_threads(1)


@pytest.fixture
def small_network() -> LocalNetwork:
    """Three units on images of 1x8x8: 8x4x4, 8x4x4, 16x2x2; batch norm everywhere, heads of 8 filters."""
    with torch.device("meta"):
        units = [
            nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
            nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True)),
            nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
        ]
    chain = chain_from_modules(units, image_shape=(1, 8, 8), classes=3)
    return build_network(chain, HeadSettings(rule="fixed", filters=8))


@pytest.fixture
def small_store(tmp_path: Path, small_network: LocalNetwork) -> UnitStore:
    store = UnitStore(tmp_path / "store", small_network)
    store.initialise(seed=0)
    return store


@pytest.fixture
def class_images() -> Callable[..., LabelledImages]:
    """``class_images(count, seed=0)``: 1x8x8, noise with one bright row; the row tells the class."""

    def build(count: int, seed: int = 0) -> LabelledImages:
        generator = np.random.default_rng(seed)
        labels = generator.integers(0, 3, count)
        images = generator.integers(0, 120, (count, 1, 8, 8)).astype(np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[0, 2 * label + 1] += 130
        return LabelledImages(images=images, labels=labels.astype(np.int64))

    return build


@pytest.fixture
def image_source(class_images: Callable[..., LabelledImages]) -> Callable[..., ImageSource]:
    """``image_source(count, seed=0)``: normalised, and shifted by up to one pixel in augmented views."""

    def build(count: int, seed: int = 0) -> ImageSource:
        return ImageSource(
            class_images(count, seed),
            mean=(0.3,), std=(0.25,), horizontal_flip=True, padding=1, seed=5, device=CPU,
        )  # fmt: skip

    return build


@pytest.fixture
def make_flow(
    tmp_path: Path, small_store: UnitStore, image_source: Callable[..., ImageSource]
) -> Callable[..., tuple[ActivationFlow, ActivationCache]]:
    """``make_flow(count, views=1, memory_bytes=None, **cache options)`` over ``small_store``."""

    def build(
        count: int, views: int = 1, memory_bytes: int | None = None, precision: str = "float32",
        quota_bytes: int | None = None,
    ) -> tuple[ActivationFlow, ActivationCache]:  # fmt: skip
        cache = ActivationCache(tmp_path / "cache", quota_bytes=quota_bytes, precision=precision)
        flow = ActivationFlow(
            image_source(count), small_store, cache, views=views, memory_bytes=memory_bytes, device=CPU
        )
        return flow, cache

    return build
