"""What a later block trains from is what the frozen prefix would say, sample by sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from neuroflux_fl.activation_cache import ActivationCache
from neuroflux_fl.activation_flow import ActivationFlow, split_in_order
from neuroflux_fl.local_network import UnitWithHead
from neuroflux_fl.sample_source import CachedSource, ImageSource, RecomputedSource
from neuroflux_fl.unit_store import UnitStore

CPU = torch.device("cpu")
COUNT = 23
Flow = Callable[..., tuple[ActivationFlow, ActivationCache]]


def unsettle_statistics(store: UnitStore) -> None:
    """Running statistics unlike any batch's, so that train and eval mode give different outputs."""
    for unit in range(len(store.network)):
        packed = store.read(unit)
        buffers = store.network.layout(unit).unit_buffer_slice
        packed[buffers] = np.linspace(0.2, 1.5, len(packed[buffers]))
        store.write(unit, packed)


def fresh_prefix(store: UnitStore, cut: int) -> Callable[[Tensor], Tensor]:
    """One image alone, in eval mode, all units held at once: another way than the flow's."""
    units = nn.Sequential(*(store.load(unit, CPU).unit for unit in range(cut))).eval()

    def forward(image: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.as_tensor(units(image[None]))[0]

    return forward


@pytest.mark.parametrize("precision", ["float16", "float32"])
@pytest.mark.parametrize("cut", [1, 2])
def test_cached_activations_are_a_fresh_eval_mode_forward_of_every_view(
    small_store: UnitStore, make_flow: Flow, image_source: Callable[..., ImageSource], precision: str, cut: int
) -> None:
    unsettle_statistics(small_store)
    flow, _ = make_flow(COUNT, views=3, precision=precision)
    images = image_source(COUNT)

    source = flow.source_at(cut)

    assert isinstance(source, CachedSource)
    np.testing.assert_array_equal(source.labels, images.labels)
    forward = fresh_prefix(small_store, cut)
    tolerance = {"float16": 1e-3, "float32": 1e-6}[precision]
    for view in range(3):
        for index in np.random.default_rng(view).permutation(COUNT):
            one = np.array([index])
            expected = forward(images.read(one, view)[0])
            torch.testing.assert_close(source.read(one, view)[0], expected, rtol=tolerance, atol=tolerance)


def test_only_wanted_views_are_written(small_store: UnitStore, make_flow: Flow) -> None:
    flow, cache = make_flow(COUNT, views=4)
    everything = np.arange(COUNT)

    source = flow.source_at(2, wanted={1, 3})

    assert [cache.find(key) is not None for key in flow.keys(2)] == [False, True, False, True]
    whole = flow.source_at(2)
    for view in (1, 3, 5):
        assert torch.equal(source.read(everything, view), whole.read(everything, view))


def test_running_the_prefix_leaves_the_store_as_it_was(small_store: UnitStore, make_flow: Flow) -> None:
    before = [small_store.read(unit) for unit in range(3)]

    make_flow(COUNT, views=2)[0].source_at(2)

    for unit in range(3):
        np.testing.assert_array_equal(small_store.read(unit), before[unit])


def test_without_room_the_prefix_is_run_again_with_the_same_numbers(small_store: UnitStore, make_flow: Flow) -> None:
    unsettle_statistics(small_store)
    cached = make_flow(COUNT, views=2)[0].source_at(2)
    expected = [cached.read(np.arange(COUNT), view) for view in range(2)]
    flow, cache = make_flow(COUNT, views=2, quota_bytes=1000)
    cache.keep_only([])

    source = flow.source_at(2)

    assert isinstance(source, RecomputedSource)
    assert "quota" in cache.refusals[0]
    indices = np.array([5, 22, 0])
    for view in range(2):
        torch.testing.assert_close(source.read(indices, view), expected[view][torch.from_numpy(indices)])


def test_in_little_memory_units_go_one_by_one_in_small_pieces_with_the_same_result(
    small_store: UnitStore, make_flow: Flow
) -> None:
    roomy, cache = make_flow(COUNT)
    expected = roomy.source_at(3).read(np.arange(COUNT), 0)
    cache.keep_only([])
    tight, cache = make_flow(COUNT, memory_bytes=10_000)

    assert roomy.groups(0, 3) == [[0, 1, 2]]
    assert tight.groups(0, 3) == [[0], [1], [2]]
    assert roomy.piece([0]) == 256
    assert tight.piece([0]) == 1
    torch.testing.assert_close(tight.source_at(3).read(np.arange(COUNT), 0), expected)
    assert [cache.find(key) is not None for cut in (1, 2, 3) for key in tight.keys(cut)] == [False, False, True]


def test_a_known_cut_is_where_running_starts(
    small_store: UnitStore, make_flow: Flow, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow, _ = make_flow(COUNT)
    flow.source_at(1)
    loaded: list[int] = []
    load = UnitStore.load

    def watched(self: UnitStore, unit: int, device: torch.device, **options: Any) -> UnitWithHead:
        loaded.append(unit)
        return load(self, unit, device, **options)

    monkeypatch.setattr(UnitStore, "load", watched)

    flow.source_at(1)
    flow.source_at(2, known=1)
    flow.source_at(2)

    assert loaded == [1]


def test_new_prefix_weights_make_old_entries_unknown(small_store: UnitStore, make_flow: Flow) -> None:
    flow, cache = make_flow(COUNT)
    old = flow.source_at(1).read(np.arange(COUNT), 0)

    small_store.write(0, small_store.read(0) * 2)

    assert cache.find(flow.keys(1)[0]) is None
    assert not torch.equal(flow.source_at(1).read(np.arange(COUNT), 0), old)


def test_split_in_order() -> None:
    assert [piece.tolist() for piece in split_in_order(5, 2)] == [[0, 1], [2, 3], [4]]
    assert list(split_in_order(0, 2)) == []
