"""Views are fixed pictures of the data: the same for the same (seed, view, index), however they are read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from neuroflux_fl.activation_cache import ActivationCache, CacheKey
from neuroflux_fl.data.images import LabelledImages
from neuroflux_fl.sample_source import PLAIN_VIEW, CachedSource, ImageSource, RecomputedSource, TensorSource


def test_a_view_is_a_function_of_index_and_view(image_source: Callable[..., ImageSource]) -> None:
    source = image_source(20)
    order = np.random.default_rng(1).permutation(20)
    whole = source.read(np.arange(20), 2)
    source.read(order[:3], 1)

    for index in order:
        assert torch.equal(source.read(np.array([index]), 2)[0], whole[index])
    assert torch.equal(image_source(20).read(order, 2), whole[torch.from_numpy(order)])
    assert not torch.equal(source.read(np.arange(20), 1), whole)


def test_the_plain_view_is_normalised_and_nothing_else(
    image_source: Callable[..., ImageSource], class_images: Callable[..., LabelledImages]
) -> None:
    images = class_images(6).images

    values = image_source(6).read(np.array([4, 2]), PLAIN_VIEW)

    np.testing.assert_allclose(values.numpy(), (images[[4, 2]] / 255 - 0.3) / 0.25, rtol=1e-5, atol=1e-6)


def test_version_is_of_pixels_and_labels(image_source: Callable[..., ImageSource]) -> None:
    changed_pixel, changed_label = image_source(6), image_source(6)
    changed_pixel._data.images[3, 0, 0, 0] ^= 1
    changed_label._data.labels[3] ^= 1

    assert image_source(6).version() == image_source(6).version()
    assert len({source.version() for source in (image_source(6), changed_pixel, changed_label)}) == 3


def test_cached_and_recomputed_sources_go_round_their_views(
    tmp_path: Path, image_source: Callable[..., ImageSource]
) -> None:
    images = image_source(5)
    cache = ActivationCache(tmp_path / "cache", precision="float32")
    everything = np.arange(5)
    stored = []
    for view in range(2):
        key = CacheKey(prefix_version="p", data_version="d", view=view)
        entry = cache.write(key, (1, 8, 8), 5, [2 * images.read(everything, view)])
        assert entry is not None
        stored.append(entry)
    cached = CachedSource(dict(enumerate(stored)), len(stored), images.labels, torch.device("cpu"))
    recomputed = RecomputedSource(images, 2, lambda value: 2 * value)
    indices = np.array([3, 0, 3])

    for view in range(5):
        expected = 2 * images.read(indices, view % 2)
        assert torch.equal(cached.read(indices, view), expected)
        assert torch.equal(recomputed.read(indices, view), expected)
    np.testing.assert_array_equal(cached.labels, recomputed.labels)


def test_tensor_source_gives_rows() -> None:
    source = TensorSource(torch.arange(6.0).view(3, 2, 1, 1), np.array([0, 1, 2]))

    assert source.read(np.array([2, 0]), 7).flatten().tolist() == [4, 5, 0, 1]
    assert source.labels.tolist() == [0, 1, 2]
