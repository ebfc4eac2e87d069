"""Weights on disk: whole or not at all, and one clear line where they are not what they should be."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from neuroflux_fl import unit_store
from neuroflux_fl.compute import ComputeSettings
from neuroflux_fl.device_memory import PeakMeter
from neuroflux_fl.errors import StorageError
from neuroflux_fl.heads import HeadSettings
from neuroflux_fl.local_network import build_network, stored_tensors
from neuroflux_fl.unit_chain import chain_from_modules
from neuroflux_fl.unit_store import UnitStore

CPU = torch.device("cpu")


def path_of(store: UnitStore, unit: int) -> Path:
    return store.folder / f"unit-{unit:03d}.npy"


def test_saved_units_come_back_with_buffers(small_store: UnitStore) -> None:
    pair = small_store.load(1, CPU)
    pair.get_buffer("unit.1.running_mean").fill_(3.0)

    small_store.save(1, pair)

    loaded = small_store.load(1, CPU).state_dict()
    for name, value in pair.state_dict().items():
        assert torch.equal(loaded[name], value) or name.endswith("num_batches_tracked")


def test_a_unit_without_its_head_is_stored_before_the_head_that_was_there(small_store: UnitStore) -> None:
    before = small_store.read(1)
    size = small_store.network.layout(1).size_without_head
    pair = small_store.load(1, CPU, with_head=False)
    for tensor in stored_tensors(pair).values():
        tensor.add_(1)

    small_store.save(1, pair)

    after = small_store.read(1)
    np.testing.assert_array_equal(after[:size], before[:size] + 1)
    np.testing.assert_array_equal(after[size:], before[size:])


def test_layout_makes_no_difference_to_what_is_stored(small_store: UnitStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unit_store, "_PIECE", 100)  # several pieces for a tensor
    before = small_store.read(1)
    version = small_store.prefix_version(2)

    pair = small_store.load(1, CPU, prepare=ComputeSettings(channels_last=True).arrange)
    usual = small_store.load(1, CPU)
    small_store.save(1, pair)

    assert pair.get_parameter("unit.0.weight").is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(pair.get_parameter("unit.0.weight"), usual.get_parameter("unit.0.weight"))
    np.testing.assert_array_equal(small_store.read(1), before)
    assert small_store.prefix_version(2) == version


def test_weights_are_held_once_on_their_way_in_and_out(tmp_path: Path) -> None:
    unit = nn.Conv2d(768, 512, 3, device="meta")
    chain = chain_from_modules([unit], image_shape=(768, 4, 4), classes=2)
    store = UnitStore(tmp_path, build_network(chain, HeadSettings(kind="pooled")))
    store.initialise(seed=0)
    weights = 4 * 768 * 512 * 9
    meter = PeakMeter(CPU)

    meter.start()
    pair = store.load(0, CPU, prepare=ComputeSettings(channels_last=True).arrange)
    loading = meter.peak_bytes()
    meter.start()
    store.save(0, pair)
    store.prefix_version(1)
    saving = meter.peak_bytes()

    if loading is None or saving is None:
        pytest.skip("this platform does not tell peak memory")
    assert weights <= loading < 1.3 * weights
    assert saving < 0.3 * weights


def test_write_without_a_head_keeps_the_stored_head(small_store: UnitStore) -> None:
    before = small_store.read(1)
    size = small_store.network.layout(1).size_without_head

    small_store.write(1, np.zeros(size, np.float32))

    after = small_store.read(1)
    assert not after[:size].any()
    np.testing.assert_array_equal(after[size:], before[size:])


def test_missing_weights(tmp_path: Path, small_store: UnitStore) -> None:
    store = UnitStore(tmp_path / "elsewhere", small_store.network)

    assert not store.holds(0)
    with pytest.raises(StorageError, match="Weights of unit 0 are missing"):
        store.read(0)


@pytest.mark.parametrize(
    "array", [np.zeros(3, np.float32), np.zeros(1000, np.float64), np.array([{"a": 1}], dtype=object)]
)
def test_other_arrays_are_refused_and_nothing_is_unpickled(small_store: UnitStore, array: np.ndarray) -> None:
    np.save(path_of(small_store, 0), array, allow_pickle=True)

    with pytest.raises(StorageError, match="Weights of unit 0"):
        small_store.read(0)


@pytest.mark.filterwarnings("ignore")
def test_damaged_files_are_refused_in_one_line(small_store: UnitStore) -> None:
    path = path_of(small_store, 0)
    whole = path.read_bytes()
    size = small_store.network.layout(0).size_with_head
    generator = random.Random(0)
    messages: list[str] = []
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(generator.randint(1, 3)):
            damaged[generator.randrange(128)] = generator.randrange(256)  # the header
        if generator.random() < 0.3:
            damaged = damaged[: generator.randrange(len(whole))]
        path.write_bytes(damaged)
        try:
            shape = small_store.read(0).shape
        except StorageError as error:
            messages.append(str(error))
        else:
            assert shape == (size,)
    assert len(messages) > 100
    assert not any("\n" in message for message in messages)


@pytest.mark.parametrize("call", ["os.fsync", "pathlib.Path.replace"])
def test_failed_write_leaves_the_old_weights_and_no_litter(
    small_store: UnitStore, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    before = small_store.read(0)

    def full(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(call, full)
    with pytest.raises(StorageError, match=r"Cannot write .*No space left on device"):
        small_store.write(0, np.zeros_like(before))
    monkeypatch.undo()

    np.testing.assert_array_equal(small_store.read(0), before)
    assert sorted(path.name for path in small_store.folder.iterdir()) == [f"unit-00{unit}.npy" for unit in range(3)]


def test_prefix_version_is_of_units_and_buffers_but_not_of_heads(small_store: UnitStore) -> None:
    layout = small_store.network.layout(0)
    version = small_store.prefix_version(1)
    packed = small_store.read(0)

    packed[layout.head_parameter_slice] += 1
    small_store.write(0, packed)
    assert small_store.prefix_version(1) == version

    packed[layout.unit_buffer_slice] += 1
    small_store.write(0, packed)
    assert small_store.prefix_version(1) != version
    assert small_store.prefix_version(0) == "images"


def test_prefix_is_read_once_for_all_its_versions(small_store: UnitStore, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = [small_store.prefix_version(units) for units in (2, 3)]
    fresh = UnitStore(small_store.folder, small_store.network)
    assert [fresh.prefix_version(units) for units in (3, 2)] == versions[::-1]

    monkeypatch.setattr(UnitStore, "read", None)

    assert [fresh.prefix_version(units) for units in (2, 3)] == versions
