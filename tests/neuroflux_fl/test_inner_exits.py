"""Heads inside windows learn on frozen units, and nothing else moves."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from neuroflux_fl import inner_exits
from neuroflux_fl.block_training import TrainSettings
from neuroflux_fl.errors import UsageError
from neuroflux_fl.heads import HeadSettings
from neuroflux_fl.inner_exits import InnerExits, inner_units, train_inner_heads
from neuroflux_fl.local_network import LocalNetwork, build_network
from neuroflux_fl.local_step import train_window
from neuroflux_fl.models import build_chain
from neuroflux_fl.plan import Block, Window
from neuroflux_fl.sample_source import SampleSource, TensorSource
from neuroflux_fl.unit_store import UnitStore

CPU = torch.device("cpu")
SETTINGS = TrainSettings(epochs=8, head_passes=6, views=1, seed=3)


def block(*windows: tuple[int, int], **options: Any) -> Block:
    return Block(
        windows=tuple(Window(first_unit=first, last_unit=last) for first, last in windows),
        predicted_peak_bytes=0, predicted_seconds_per_sample=0.0,
        **{"batch_size": 16, "learning_rate": 0.1} | options,
    )  # fmt: skip


def features(count: int, seed: int = 0) -> TensorSource:
    """Images of 1x8x8 for the first unit: noise, and one bright row that tells the class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (count,), generator=generator)
    images = torch.rand((count, 1, 8, 8), generator=generator) * 0.3
    images[torch.arange(count), 0, 2 * labels] += 1.0
    return TensorSource(images, labels.numpy().astype(np.int64))


def train(store: UnitStore, trained: Block, inputs: SampleSource, **options: Any) -> InnerExits:
    given = {"validation": None, "settings": SETTINGS} | options
    return train_inner_heads(store, trained, inputs, device=CPU, **given)


def parts(store: UnitStore, unit: int) -> tuple[bytes, bytes]:
    """The unit and its head as they are stored."""
    packed, size = store.read(unit), store.network.layout(unit).size_without_head
    return packed[:size].tobytes(), packed[size:].tobytes()


def test_inner_units_are_those_at_no_windows_end() -> None:
    assert inner_units(block((0, 2))) == (0, 1)
    assert inner_units(block((1, 2), (3, 3), (4, 6))) == (1, 4, 5)
    assert inner_units(block((0, 0), (1, 1))) == ()


def test_heads_inside_a_window_learn_and_units_and_other_heads_stay_as_they_are(small_store: UnitStore) -> None:
    before = [parts(small_store, unit) for unit in range(3)]
    version = small_store.prefix_version(3)

    found = train(small_store, block((0, 2)), features(120), validation=features(60, seed=1))

    after = [parts(small_store, unit) for unit in range(3)]
    assert [one[0] for one in after] == [one[0] for one in before], "running statistics included"
    assert [one[1] != other[1] for one, other in zip(after, before, strict=True)] == [True, True, False]
    assert small_store.prefix_version(3) == version, "what is cached stays valid"
    assert found.units == (0, 1)
    assert found.validation.keys() == {0, 1}
    assert all(score.accuracy > 0.8 and score.total == 60 for score in found.validation.values())
    assert found.measured_peak_bytes is None or found.measured_peak_bytes >= 0


def test_a_head_learns_as_one_that_is_trained_by_hand(tmp_path: Path, small_network: LocalNetwork) -> None:
    store = UnitStore(tmp_path, small_network)
    store.initialise(seed=0)
    inputs, settings = features(32), replace(SETTINGS, head_passes=1)
    pair = store.load(0, CPU)
    pair.unit.eval()
    optimizer = torch.optim.SGD(pair.head.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    rates = [0.02, 0.05 + 0.95 * 0.5 * (1 + np.cos(np.pi * (0.5 - 0.1) / 0.9))]
    order = np.random.default_rng([3, 0, 0]).permutation(32)
    for rate, batch in zip(rates, (order[:16], order[16:]), strict=True):
        optimizer.param_groups[0]["lr"] = 0.1 * rate
        with torch.no_grad():
            values = pair.unit(inputs.read(batch, 0))
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(pair.head(values), torch.from_numpy(inputs.labels[batch]))
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    train(store, block((0, 1)), inputs, settings=settings)

    for name, value in store.load(0, CPU).head.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value, pair.head.state_dict()[name])


def test_every_window_of_a_block_gets_its_inner_heads(small_store: UnitStore) -> None:
    before = [parts(small_store, unit) for unit in range(3)]

    found = train(small_store, block((0, 0), (1, 2)), features(64))

    after = [parts(small_store, unit) for unit in range(3)]
    assert (found.units, found.validation) == ((1,), {})
    assert [one != other for one, other in zip(after, before, strict=True)] == [False, True, False]


@pytest.mark.parametrize(("windows", "passes"), [(((0, 0), (1, 1), (2, 2)), 2), (((0, 2),), 0)])
def test_nothing_is_done_where_no_head_is_inside_or_none_is_wanted(
    windows: tuple[tuple[int, int], ...], passes: int, small_store: UnitStore
) -> None:
    before = [parts(small_store, unit) for unit in range(3)]

    found = train(small_store, block(*windows), features(64), settings=replace(SETTINGS, head_passes=passes))

    assert found == InnerExits()
    assert [parts(small_store, unit) for unit in range(3)] == before


@pytest.mark.parametrize(("epochs", "views"), [(1, [5, 5, 5]), (2, [5, 6, 5]), (4, [5, 6, 7])])
def test_only_views_that_training_read_are_read(
    epochs: int, views: list[int], small_store: UnitStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    plain = TensorSource.read

    def watched(self: TensorSource, indices: Any, view: int) -> Tensor:
        seen.append(view)
        return plain(self, indices, view)

    monkeypatch.setattr(TensorSource, "read", watched)
    settings = replace(SETTINGS, epochs=epochs, head_passes=3, views=4)
    train(small_store, block((0, 2)), features(16), settings=settings, first_epoch=5)

    assert seen == views


def test_a_deadline_gives_the_heads_up(small_store: UnitStore) -> None:
    before = [parts(small_store, unit) for unit in range(3)]

    found = train(small_store, block((0, 2)), features(64), deadline=time.monotonic() - 1)

    assert (found.units, found.validation) == ((), {})
    assert [parts(small_store, unit) for unit in range(3)] == before


def test_without_memory_for_them_there_are_fewer_exits_and_other_errors_are_raised(
    small_store: UnitStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    error: list[Exception] = [torch.OutOfMemoryError("no more")]

    def fail(*_arguments: object, **_options: object) -> Tensor:
        raise error[0]

    monkeypatch.setattr(inner_exits, "train_window", fail)
    assert train(small_store, block((0, 2)), features(64)).units == ()
    error[0] = RuntimeError("another")
    with pytest.raises(RuntimeError, match="another"):
        train(small_store, block((0, 2)), features(64))


@pytest.mark.parametrize(
    "options", [{"micro_batch": 4}, {"batch_size": 64}, {"batch_size": 2}], ids=["micro", "all at once", "smallest"]
)
def test_batches_are_as_large_as_what_was_in_memory_in_training(
    options: dict[str, int], small_store: UnitStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: set[int] = set()
    plain = train_window

    def watched(units: Any, head: Any, optimizer: Any, inputs: Tensor, *others: Any, **more: Any) -> Any:
        sizes.add(len(inputs))
        return plain(units, head, optimizer, inputs, *others, **more)

    monkeypatch.setattr(inner_exits, "train_window", watched)
    trained = block((0, 2), **options)
    assert train(small_store, trained, features(40)).units == (0, 1)
    assert sizes == {min(40, trained.micro_batch or trained.batch_size)}


def test_sliced_heads_and_units_come_out_as_whole_ones(tmp_path: Path) -> None:
    chain = build_chain("vgg11", image_shape=(3, 32, 32), classes=10)
    network = build_network(chain, HeadSettings())
    shape = chain.input_shapes[4]
    inputs = TensorSource(torch.rand((8, *shape)), np.arange(8, dtype=np.int64))
    heads = []
    for updates in ("whole", "sliced"):
        store = UnitStore(tmp_path / updates, network)
        for unit in (4, 5):
            store.write(unit, network.initial(unit, seed=0))
        window = Window(first_unit=4, last_unit=5, updates=updates)
        trained = replace(block((4, 5), batch_size=4, learning_rate=0.01), windows=(window,))
        before = parts(store, 4)

        assert train(store, trained, inputs, settings=replace(SETTINGS, head_passes=1)).units == (4,)

        assert parts(store, 4)[0] == before[0]
        assert parts(store, 4)[1] != before[1]
        heads.append(torch.from_numpy(store.read(4)))
    torch.testing.assert_close(heads[0], heads[1], rtol=1e-3, atol=1e-5)


def test_a_negative_number_of_passes_is_refused() -> None:
    with pytest.raises(UsageError, match="Head passes -1 is negative"):
        TrainSettings(head_passes=-1)
