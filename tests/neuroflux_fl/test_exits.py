"""Choosing an exit on validation scores, counting it, and carrying it through files."""

from __future__ import annotations

import errno
import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from neuroflux_fl.errors import StorageError, UsageError
from neuroflux_fl.evaluation import Score
from neuroflux_fl.exits import choose_exit, exit_parameters, load_exit, save_exit
from neuroflux_fl.heads import HeadSettings
from neuroflux_fl.local_network import LocalNetwork, build_network
from neuroflux_fl.models import build_chain
from neuroflux_fl.unit_store import UnitStore

CPU = torch.device("cpu")
SCORES = {1: Score(70, 100), 2: Score(78, 100), 4: Score(80, 100), 6: Score(79, 100)}
EXIT = 2


@pytest.mark.parametrize(
    ("standard_errors", "chosen"), [(0.0, 4), (0.4, 4), (0.51, 2), (1.0, 2), (2.4, 2), (2.6, 1), (20.0, 1)]
)
def test_the_shallowest_exit_within_standard_errors_of_the_best(standard_errors: float, chosen: int) -> None:
    """The best is 80 of 100, so that one standard error is 4 points."""
    assert choose_exit(SCORES, standard_errors) == chosen


def test_more_images_tell_closer_exits_apart() -> None:
    few = {0: Score(78, 100), 1: Score(80, 100)}
    many = {0: Score(7800, 10_000), 1: Score(8000, 10_000)}

    assert (choose_exit(few, 1.0), choose_exit(many, 1.0)) == (0, 1)


def test_a_best_exit_without_a_mistake_has_a_standard_error_too() -> None:
    assert choose_exit({0: Score(142, 144), 1: Score(143, 144), 2: Score(144, 144)}, 1.0) == 1


def test_a_deeper_exit_that_is_only_as_good_is_not_taken() -> None:
    assert choose_exit({0: Score(5, 10), 3: Score(50, 100)}, 0.0) == 0


@pytest.mark.parametrize(
    ("scores", "standard_errors", "message"),
    [
        ({}, 1.0, "No exit was trained"),
        (SCORES, -0.1, r"Standard errors -0\.1"),
        (SCORES, float("inf"), "Standard errors inf"),
    ],
)
def test_nothing_to_choose_from(scores: dict[int, Score], standard_errors: float, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        choose_exit(scores, standard_errors)


def test_parameters_of_an_exit_count_its_head_and_no_other(small_network: LocalNetwork) -> None:
    unit0, unit1, unit2 = 8 * 9 + 8 + 16, 8 * 8 * 9 + 8 + 16, 16 * 8 * 9 + 16 + 32
    auxiliary = 8 * 8 * 9 + 16 + 3 * 8 * 4 + 3
    classifier = 16 * 3 + 3

    assert exit_parameters(small_network, 0) == unit0 + auxiliary
    assert exit_parameters(small_network, 1) == unit0 + unit1 + auxiliary
    assert exit_parameters(small_network, 2) == unit0 + unit1 + unit2 + classifier


@pytest.fixture
def vgg_store(tmp_path: Path) -> UnitStore:
    chain = build_chain("vgg11", image_shape=(1, 32, 32), classes=3, width=0.1)
    store = UnitStore(tmp_path / "store", build_network(chain, HeadSettings(filters=16)))
    generator = np.random.default_rng(0)
    for unit in range(len(chain)):
        packed = store.network.initial(unit, seed=1)
        for part in (store.network.layout(unit).unit_buffer_slice, store.network.layout(unit).head_buffer_slice):
            packed[part] = generator.uniform(0.5, 1.5, len(packed[part]))
        store.write(unit, packed)
    return store


def save(store: UnitStore, folder: Path, **options: Any) -> Path:
    pytest.importorskip("safetensors", reason="exits are stored as safetensors")
    return save_exit(
        folder, store.network, store, EXIT,
        width=0.1, class_names=("a", "b", "c"), mean=(0.4,), std=(0.2,), **options,
    )  # fmt: skip


def test_a_saved_exit_gives_identical_predictions(vgg_store: UnitStore, tmp_path: Path) -> None:
    images = torch.randint(0, 256, (4, 1, 32, 32), dtype=torch.uint8)

    folder = save(vgg_store, tmp_path / "exit", details={"accuracy": 0.7})
    model = load_exit(folder)

    with torch.no_grad():
        value = (images.float() / 255 - 0.4) / 0.2
        for unit in range(EXIT + 1):
            pair = vgg_store.load(unit, CPU).eval()
            value = pair.unit(value)
        expected = pair.head(value)
        assert torch.equal(model(images), expected)
        torch.testing.assert_close(model(images.float() / 255), expected)
    assert not model.training
    assert model.description["class_names"] == ["a", "b", "c"]
    assert model.description["accuracy"] == 0.7
    trainable = sum(parameter.numel() for parameter in model.parameters())
    assert trainable == model.description["parameters"] == exit_parameters(vgg_store.network, EXIT)
    assert sorted(path.name for path in folder.iterdir()) == ["exit.json", "exit.safetensors"]


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2}, {"model": "vgg61"}, {"model": ["vgg11"]}, {"unit": 99}, {"unit": 1}, {"unit": "two"},
        {"width": 0.5}, {"width": -1}, {"norm": "layer"}, {"classes": 4}, {"mean": "high"}, {"image_shape": [1]},
        {"head": {"kind": "odd"}}, {"head": {"color": 1}}, {"head": None},
    ],
    ids=str,
)  # fmt: skip
def test_a_description_that_does_not_fit_is_one_line(
    vgg_store: UnitStore, tmp_path: Path, change: dict[str, Any]
) -> None:
    folder = save(vgg_store, tmp_path / "exit")
    path = folder / "exit.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))

    with pytest.raises(StorageError, match="Exit in") as raised:
        load_exit(folder)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["exit.json", "exit.safetensors"])
def test_damaged_and_missing_files_are_one_line(vgg_store: UnitStore, tmp_path: Path, name: str) -> None:
    folder = save(vgg_store, tmp_path / "exit")
    path = folder / name
    whole = path.read_bytes()
    generator = random.Random(0)
    damages = [whole[: len(whole) * share // 10] for share in range(10)]
    for _ in range(20):  # in the header, which is all that a reader could check
        damaged = bytearray(whole)
        damaged[generator.randrange(min(200, len(whole)))] ^= 0x80
        damages.append(bytes(damaged))

    for damage in damages:
        path.write_bytes(damage)
        with pytest.raises(StorageError, match="Exit in") as raised:
            load_exit(folder)
        assert "\n" not in str(raised.value)
    path.unlink()
    with pytest.raises(StorageError, match="No such file"):
        load_exit(folder)


def test_a_full_disk_leaves_the_old_exit(vgg_store: UnitStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(vgg_store, tmp_path / "exit")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(*_arguments: object, **_options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(StorageError, match=r"Cannot write the exit to .*No space left"):
        save(vgg_store, tmp_path / "exit")
    monkeypatch.undo()

    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".tmp"} == before


def test_a_folder_that_cannot_be_made(vgg_store: UnitStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(StorageError, match="Cannot write the exit"):
        save(vgg_store, tmp_path / "file" / "exit")
