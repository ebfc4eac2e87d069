"""A device trains block after block from its cache; its clock tells where the time went."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from neuroflux_fl import device_training
from neuroflux_fl.block_training import BlockResult, TrainSettings, train_block
from neuroflux_fl.data.images import LabelledImages
from neuroflux_fl.device_training import CacheSettings, DeviceData, DeviceTrainer
from neuroflux_fl.evaluation import Score
from neuroflux_fl.plan import Block, Plan, Window
from neuroflux_fl.planning import PlannerSettings
from neuroflux_fl.unit_store import UnitStore

CPU = torch.device("cpu")


def plan_of(*blocks: tuple[int, ...], untrained: tuple[int, ...] = ()) -> Plan:
    return Plan(
        budget_bytes=None,
        blocks=tuple(
            Block(
                windows=tuple(Window(first_unit=unit, last_unit=unit) for unit in units),
                batch_size=8, learning_rate=0.05, predicted_peak_bytes=0, predicted_seconds_per_sample=0.0,
            )
            for units in blocks
        ),
        untrained_units=untrained,
    )  # fmt: skip


@pytest.fixture
def make_trainer(
    tmp_path: Path, small_store: UnitStore, class_images: Callable[..., LabelledImages]
) -> Callable[..., DeviceTrainer]:
    def build(**cache: Any) -> DeviceTrainer:
        data = DeviceData(
            train=class_images(40), validation=class_images(21, seed=1), mean=(0.3,), std=(0.25,), horizontal_flip=True
        )
        return DeviceTrainer(
            small_store.network, small_store, data,
            cache=CacheSettings(folder=tmp_path / "cache", **cache),
            settings=TrainSettings(epochs=2, views=2), planner=PlannerSettings(), memory_bytes=None, device=CPU,
        )  # fmt: skip

    return build


def stored(store: UnitStore) -> list[bytes]:
    return [store.read(unit).tobytes() for unit in range(len(store.network))]


def test_a_frozen_prefix_is_bit_identical_after_every_later_block(
    make_trainer: Callable[..., DeviceTrainer], small_store: UnitStore
) -> None:
    trainer = make_trainer()
    after_block: dict[int, list[bytes]] = {}

    def remember(block: Block, _epoch: int, _loss: float, _score: object) -> None:
        after_block.setdefault(block.first_unit, stored(small_store))

    result = trainer.train(plan_of((0,), (1,), (2,)), on_epoch=remember)
    final = stored(small_store)

    # The picture at a block's first epoch shows the blocks before it as they were stored.
    assert len(result.blocks) == 3
    assert after_block[1][0] == after_block[2][0] == final[0] != after_block[0][0]
    assert after_block[2][1] == final[1] != after_block[1][1]


def test_the_clock_counts_cache_training_and_evaluation(make_trainer: Callable[..., DeviceTrainer]) -> None:
    started = time.perf_counter()
    trainer = make_trainer()
    trainer.train(plan_of((0,), (1, 2)))
    before = dict(trainer.stopwatch.seconds)
    trainer.score_exits(0, 2)
    passed = time.perf_counter() - started

    seconds = trainer.stopwatch.seconds
    assert min(before["cache"], before["train"], before["evaluate"]) > 0
    assert seconds["evaluate"] > before["evaluate"]
    assert seconds["profile"] == 0
    assert 0.8 * passed < sum(seconds.values()) <= passed, "nearly all of the time has a name"


def test_without_room_for_a_cache_training_comes_to_the_same(
    make_trainer: Callable[..., DeviceTrainer], small_store: UnitStore
) -> None:
    cached = make_trainer(precision="float32")
    cached.train(plan_of((0,), (1,)))
    expected = small_store.load(1, CPU).state_dict()
    assert cached.cache.written_bytes > 0
    small_store.initialise(seed=0)

    recomputed = make_trainer(precision="float32", quota_bytes=10)
    recomputed.keep_cached_only(0)
    result = recomputed.train(plan_of((0,), (1,)))

    assert len(result.blocks) == 2
    assert recomputed.cache.written_bytes == 0
    assert recomputed.cache.refusals
    for name, value in small_store.load(1, CPU).state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-4)


def test_units_in_no_block_are_run_forward_and_stay_as_they_are(
    make_trainer: Callable[..., DeviceTrainer], small_store: UnitStore
) -> None:
    before = stored(small_store)

    result = make_trainer().train(plan_of((1,), untrained=(0, 2)))

    after = stored(small_store)
    assert [block.block.first_unit for block in result.blocks] == [1]
    assert (after[0], after[2]) == (before[0], before[2])
    assert after[1] != before[1]
    assert result.forward_peak_bytes is None or result.forward_peak_bytes >= 0


def test_a_deadline_keeps_finished_blocks_only(
    make_trainer: Callable[..., DeviceTrainer], small_store: UnitStore
) -> None:
    before = stored(small_store)
    trainer = make_trainer()

    at_once = trainer.train(plan_of((0,), (1,)), deadline=time.monotonic() - 1)
    assert (at_once.deadline_reached, at_once.blocks) == (True, ())
    assert stored(small_store) == before

    # Time stands still until the first block is done.
    late = 10**9 + time.monotonic()
    clock = [0.0]

    def at_the_last_epoch(_block: Block, epoch: int, _loss: float, _score: object) -> None:
        clock[0] = 2 * late if epoch == 2 else 0.0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "monotonic", lambda: clock[0])
        result = trainer.train(plan_of((0,), (1,)), deadline=late, on_epoch=at_the_last_epoch)
    assert result.deadline_reached
    assert [block.block.first_unit for block in result.blocks] == [0]
    assert stored(small_store)[0] != before[0]
    assert stored(small_store)[1:] == before[1:]


def test_old_cuts_are_removed_and_the_known_one_is_kept(make_trainer: Callable[..., DeviceTrainer]) -> None:
    trainer = make_trainer()
    train_keys, validation_keys = (
        trainer.flow(trainer.data.train, views=2),
        trainer.flow(trainer.data.validation, views=1),
    )

    def held(cut: int) -> bool:
        return all(trainer.cache.find(key) for key in (*train_keys.keys(cut), *validation_keys.keys(cut)))

    trainer.train(plan_of((0,), (1,), (2,)))
    assert not held(1)
    assert held(2)

    trainer.train(plan_of((2,)), known=2)
    assert held(2)
    trainer.keep_cached_only(2)
    assert held(2)
    trainer.keep_cached_only(0)
    assert trainer.cache.used_bytes() == 0


def test_scale_and_epochs_of_a_round_override_the_settings(make_trainer: Callable[..., DeviceTrainer]) -> None:
    whole = make_trainer().train(plan_of((0,)), epochs=3)
    half = make_trainer().train(plan_of((0,)), epochs=3, learning_rate_scale=0.5)

    assert whole.blocks[0].epochs == 3
    assert half.blocks[0].effective_steps == pytest.approx(whole.blocks[0].effective_steps / 2)


@pytest.mark.parametrize(
    ("accuracies", "trained"),
    [((50, 60, 60), 3), ((60, 60, 60), 2), ((60, 50, 70), 2), ((50, 51, 52), 3)],
    ids=["the last block is the last anyway", "no better", "worse", "better every time"],
)
def test_depth_that_does_not_pay_is_left_out(
    make_trainer: Callable[..., DeviceTrainer],
    small_store: UnitStore,
    monkeypatch: pytest.MonkeyPatch,
    accuracies: tuple[int, ...],
    trained: int,
) -> None:
    trainer = make_trainer()
    trainer.settings = replace(trainer.settings, depth_patience=1)
    before = stored(small_store)

    def scored(store: UnitStore, block: Block, *arguments: Any, **options: Any) -> BlockResult:
        result = train_block(store, block, *arguments, **options)
        return replace(result, validation={block.last_unit: Score(accuracies[block.last_unit], 100)})

    monkeypatch.setattr(device_training, "train_block", scored)
    result = trainer.train(plan_of((0,), (1,), (2,)))

    assert len(result.blocks) == trained
    assert result.deep_enough == (trained < 3)
    assert stored(small_store)[trained:] == before[trained:]


def test_every_block_is_trained_where_depth_has_no_patience(make_trainer: Callable[..., DeviceTrainer]) -> None:
    result = make_trainer().train(plan_of((0,), (1,), (2,)))

    assert (len(result.blocks), result.deep_enough) == (3, False)


def test_with_head_passes_every_unit_of_a_trained_block_is_an_exit(
    make_trainer: Callable[..., DeviceTrainer], small_store: UnitStore
) -> None:
    trainer = make_trainer()
    trainer.settings = replace(trainer.settings, head_passes=2)
    window = Window(first_unit=0, last_unit=1)
    first = replace(plan_of((0,)).blocks[0], windows=(window,))
    plan = replace(plan_of((2,)), blocks=(first, *plan_of((2,)).blocks))
    told: list[BlockResult] = []

    result = trainer.train(plan, on_block=told.append)

    assert told == list(result.blocks)
    assert [block.exits for block in result.blocks] == [(0, 1), (2,)]
    assert [block.inner_exits for block in result.blocks] == [(0,), ()]
    assert [sorted(block.validation) for block in result.blocks] == [[0, 1], [2]]
    assert trainer.score_exits(0, 2)[0].correct == result.blocks[0].validation[0].correct
    assert make_trainer().train(replace(plan, blocks=(first,))).blocks[0].exits == (1,)
