"""Training one block: which units change, by how much, and what happens when memory or time run out."""

from __future__ import annotations

import gc
import math
import time
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from neuroflux_fl import block_steps, block_training, device_memory
from neuroflux_fl.block_training import BlockResult, TrainSettings, even_batches, train_block
from neuroflux_fl.device_report import BlockReading, TrainingReading
from neuroflux_fl.errors import UsageError
from neuroflux_fl.evaluation import Score
from neuroflux_fl.local_network import LocalNetwork, build_network
from neuroflux_fl.local_step import OptimizerSettings, add_gradients, make_optimizer, train_window
from neuroflux_fl.models import build_chain
from neuroflux_fl.plan import Block, Window
from neuroflux_fl.sample_source import ImageSource, TensorSource
from neuroflux_fl.sizes import MIB
from neuroflux_fl.training_monitor import TrainingMonitor
from neuroflux_fl.unit_store import UnitStore

CPU = torch.device("cpu")
SETTINGS = TrainSettings(epochs=2, views=1)


def block(*windows: tuple[int, int], batch_size: int = 8, learning_rate: float = 0.05) -> Block:
    return Block(
        windows=tuple(Window(first_unit=first, last_unit=last) for first, last in windows),
        batch_size=batch_size,
        learning_rate=learning_rate,
        predicted_peak_bytes=0,
        predicted_seconds_per_sample=0.0,
    )


def features(cut: int, count: int, seed: int = 0) -> TensorSource:
    """Inputs for unit ``cut`` of the small network, with labels that can be learned."""
    shape = [(1, 8, 8), (8, 4, 4), (8, 4, 4)][cut]
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (count,), generator=generator)
    values = torch.randn(count, *shape, generator=generator)
    values[torch.arange(count), 0, labels] += 3
    return TensorSource(values, labels.numpy())


def train(
    store: UnitStore, what: Block, inputs: Any, settings: TrainSettings = SETTINGS, **options: Any
) -> BlockResult:
    return train_block(store, what, inputs, settings, device=CPU, base_learning_rate=0.05, **options)


def fresh_store(folder: Path, network: LocalNetwork) -> UnitStore:
    store = UnitStore(folder, network)
    store.initialise(seed=0)
    return store


def stored(store: UnitStore) -> list[bytes]:
    return [store.read(unit).tobytes() for unit in range(len(store.network))]


# Trap 1: a frozen prefix.


def test_units_before_a_block_stay_bit_identical_with_buffers_and_heads(small_store: UnitStore) -> None:
    train(small_store, block((0, 0)), features(0, 20))
    before = stored(small_store)

    train(small_store, block((1, 1), (2, 2)), features(1, 20), validation=features(1, 9, seed=1))

    after = stored(small_store)
    assert after[0] == before[0]
    assert after[1] != before[1]
    assert after[2] != before[2]


# Trap 3: no gradient reaches an earlier window.


def test_a_window_learns_the_same_with_and_without_a_window_behind_it(
    tmp_path: Path, small_network: LocalNetwork
) -> None:
    alone = fresh_store(tmp_path / "alone", small_network)
    followed = fresh_store(tmp_path / "followed", small_network)
    end_to_end = fresh_store(tmp_path / "whole", small_network)

    train(alone, block((0, 0)), features(0, 20))
    train(followed, block((0, 0), (1, 2)), features(0, 20))
    train(end_to_end, block((0, 1)), features(0, 20))

    assert stored(followed)[0] == stored(alone)[0]
    assert stored(end_to_end)[0] != stored(alone)[0], "the test would not see a gradient"


def test_only_heads_at_a_windows_end_are_trained(small_store: UnitStore) -> None:
    layout = small_store.network.layout(0)
    before = small_store.read(0)

    train(small_store, block((0, 1)), features(0, 20))

    after = small_store.read(0)
    cut = layout.size_without_head
    assert not np.array_equal(after[:cut], before[:cut])
    np.testing.assert_array_equal(after[cut:], before[cut:])


def test_every_window_has_its_own_loss(tmp_path: Path, small_network: LocalNetwork) -> None:
    together = train(fresh_store(tmp_path / "a", small_network), block((0, 0), (1, 2)), features(0, 20))
    alone = train(fresh_store(tmp_path / "b", small_network), block((0, 0)), features(0, 20))

    assert list(together.losses) == [0, 2]
    assert together.losses[0] == pytest.approx(alone.losses[0])
    assert together.losses[2] == together.final_loss != together.losses[0]


def test_a_loss_is_the_mean_over_the_last_pass(small_store: UnitStore, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []

    def watched(*args: Any, **options: Any) -> tuple[Tensor, Tensor]:
        outputs, loss = train_window(*args, **options)
        seen.append(float(loss))
        return outputs, loss

    monkeypatch.setattr(block_steps, "train_window", watched)
    result = train(small_store, block((0, 0)), features(0, 24), replace(SETTINGS, epochs=2))

    assert len(seen) == 1 + 2 * 3, "the first step brings in the code"
    assert result.final_loss == pytest.approx(np.mean(seen[-3:]))


def test_a_monitor_sees_the_training_of_a_block(small_store: UnitStore) -> None:
    monitor = TrainingMonitor()
    monitor.plan_known(1, [BlockReading(first_unit=0, last_unit=0, batch_size=8, predicted_peak_bytes=0)])
    live: list[TrainingReading] = []

    result = train(
        small_store, block((0, 0)), features(0, 24), monitor=monitor, on_epoch=lambda *_: live.append(monitor.reading())
    )

    assert [reading.samples for reading in live] == [24, 48]
    assert all(reading.training_bytes is not None for reading in live) == (result.measured_peak_bytes is not None)
    after = monitor.reading()
    assert after.losses == ((0, result.final_loss),)
    assert after.blocks[0].measured_peak_bytes == result.measured_peak_bytes
    assert after.blocks[0].samples_per_second is not None
    assert after.training_bytes in (0, None)


# Trap 4: optimizer state lives as long as its block.


def test_optimizer_state_is_gone_when_the_block_is_done(
    small_store: UnitStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[weakref.ref[torch.optim.Optimizer]] = []
    make = make_optimizer

    def watched(*arguments: Any) -> torch.optim.Optimizer:
        optimizer = make(*arguments)
        alive.append(weakref.ref(optimizer))
        return optimizer

    monkeypatch.setattr(block_steps, "make_optimizer", watched)
    train(small_store, block((0, 0)), features(0, 20))

    gc.collect()
    assert alive
    assert all(reference() is None for reference in alive)


def test_a_block_learns_the_same_whatever_was_trained_before_it(tmp_path: Path, small_network: LocalNetwork) -> None:
    first = fresh_store(tmp_path / "first", small_network)
    second = fresh_store(tmp_path / "second", small_network)

    train(first, block((2, 2)), features(2, 20))
    train(second, block((0, 0), (1, 1)), features(0, 20))
    train(second, block((2, 2)), features(2, 20))

    assert stored(second)[2] == stored(first)[2]


# Trap 5: no batch of one sample under batch norm.


def test_batches_are_of_one_size_never_too_small_and_leave_little_over() -> None:
    for count in range(1, 140):
        for batch_size in (2, 3, 5, 7, 8, 31, 64, 200):
            order = np.random.default_rng(count).permutation(count)
            batches = list(even_batches(order, batch_size, smallest=2))
            sizes = {len(batch) for batch in batches}
            used = np.concatenate([*batches, np.empty(0, np.int64)])
            assert len(sizes) == (0 if count == 1 else 1)
            assert all(2 <= size <= batch_size for size in sizes)
            assert len(set(used.tolist())) == len(used)
            assert count - len(used) <= max(1, math.isqrt(count)), (count, batch_size)


def test_batches_of_one_where_nothing_forbids_them() -> None:
    assert [batch.tolist() for batch in even_batches(np.array([4, 2]), 1, smallest=1)] == [[4], [2]]


@pytest.mark.parametrize("count", [2, 9, 17, 25])
def test_one_sample_more_than_batches_hold_trains(
    small_store: UnitStore, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    sizes: list[int] = []
    step = block_steps.BlockSteps.step

    def watched(self: Any, inputs: Any, batch: Any, view: int, rate: float, *, pieces: int = 1) -> list[Tensor]:
        sizes.append(len(batch))
        return step(self, inputs, batch, view, rate, pieces=pieces)

    monkeypatch.setattr(block_steps.BlockSteps, "step", watched)
    result = train(small_store, block((2, 2)), features(2, count))

    assert min(sizes) >= 2
    assert result.finished
    assert result.samples == 2 * (count if count == 2 else count - 1)
    assert math.isfinite(result.final_loss)


def test_a_single_sample_trains_nothing_under_batch_norm(small_store: UnitStore) -> None:
    before = stored(small_store)

    result = train(small_store, block((2, 2)), features(2, 1))

    assert not result.finished
    assert result.steps == 0
    assert stored(small_store) == before


def test_batch_size_one_is_refused_under_batch_norm(small_store: UnitStore) -> None:
    with pytest.raises(UsageError, match="Batch size 1 is too small for batch norm"):
        train(small_store, block((0, 0), batch_size=1), features(0, 5))


# Against a plain training loop.


def test_one_window_over_all_units_is_backpropagation(small_store: UnitStore) -> None:
    inputs = features(0, 24)
    settings = TrainSettings(
        epochs=2, views=1, warmup_share=0.0, final_rate_share=1.0,
        optimizer=OptimizerSettings(momentum=0.9, weight_decay=0.01),
    )  # fmt: skip
    pairs = [small_store.load(unit, CPU) for unit in range(3)]
    plain = nn.Sequential(*(pair.unit for pair in pairs), pairs[2].head).train()
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    for epoch in range(2):
        order = np.random.default_rng([settings.seed, 0, epoch]).permutation(24)
        for start in range(0, 24, 8):
            batch = order[start : start + 8]
            loss = nn.functional.cross_entropy(plain(inputs.read(batch, 0)), torch.from_numpy(inputs.labels[batch]))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    result = train(small_store, block((0, 2)), inputs, settings)

    assert result.steps == 6
    for unit in range(3):
        trained = small_store.load(unit, CPU).unit.state_dict()
        for name, value in pairs[unit].unit.state_dict().items():
            if not name.endswith("num_batches_tracked"):
                torch.testing.assert_close(trained[name], value, rtol=1e-4, atol=1e-5)


def test_training_lowers_the_loss_and_counts_what_it_did(small_store: UnitStore) -> None:
    events: list[tuple[int, float, Score | None]] = []
    settings = TrainSettings(epochs=5, views=1)

    result = train(
        small_store, block((0, 0), (1, 1)), features(0, 32), settings, validation=features(0, 60, seed=1),
        on_epoch=lambda *event: events.append(event),
    )  # fmt: skip

    assert [epoch for epoch, _, _ in events] == [1, 2, 3, 4, 5]
    assert events[-1][1] < 0.7 * events[0][1]
    assert result.validation[1].accuracy > 0.65
    assert result.validation[1] == events[-1][2]
    assert set(result.validation) == {0, 1}
    assert (result.samples, result.steps, result.epochs) == (160, 20, 5)
    assert (result.final_batch_size, result.out_of_memory_retries) == (8, 0)


def test_each_epoch_reads_another_view_and_another_order(
    small_store: UnitStore, image_source: Callable[..., ImageSource], monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[tuple[int, list[int]]] = []
    read = ImageSource.read

    def watched(self: ImageSource, indices: Any, view: int) -> Tensor:
        reads.append((view, indices.tolist()))
        return read(self, indices, view)

    monkeypatch.setattr(ImageSource, "read", watched)
    train(small_store, block((0, 0), batch_size=16), image_source(16), replace(SETTINGS, epochs=3, views=4))

    assert len({view for view, _ in reads}) == 3
    assert len({tuple(indices) for _, indices in reads}) == 3


# Micro-batches.


def test_micro_batches_make_the_step_of_the_whole_batch(tmp_path: Path, small_network: LocalNetwork) -> None:
    chain = build_chain("vgg11", image_shape=(1, 32, 32), classes=3, norm="group", width=0.125)
    group = build_network(chain, small_network.head_settings, "group")
    stores = [fresh_store(tmp_path / name, group) for name in "ab"]
    inputs = TensorSource(torch.randn(24, 1, 32, 32), np.arange(24) % 3)

    whole = train(stores[0], block((0, 1), (2, 2)), inputs)
    pieces = train(stores[1], replace(block((0, 1), (2, 2)), micro_batch=2), inputs)

    assert whole.steps == pieces.steps == 2 * 3
    assert pieces.losses == pytest.approx(whole.losses, rel=1e-4)
    for unit in range(3):
        np.testing.assert_allclose(stores[0].read(unit), stores[1].read(unit), atol=1e-5)


def test_batches_are_multiples_of_the_micro_batch() -> None:
    sizes = [len(batch) for batch in even_batches(np.arange(27), 8, smallest=2, multiple=4)]
    assert sizes == [8, 8, 8]
    assert [len(batch) for batch in even_batches(np.arange(7), 8, smallest=2, multiple=3)] == [6]


def test_out_of_memory_halves_the_micro_batch_and_keeps_the_batch(
    small_store: UnitStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def fail_at_the_third(units: Any, head: Any, inputs: Tensor, labels: Tensor, **options: Any) -> Any:
        sizes.append(len(inputs))
        if len(sizes) == 3:
            raise MemoryError
        return add_gradients(units, head, inputs, labels, **options)

    monkeypatch.setattr(block_steps, "add_gradients", fail_at_the_third)
    settings = TrainSettings(epochs=1, views=1)

    result = train(small_store, replace(block((0, 0)), micro_batch=4), features(0, 16), settings)

    # One batch of two fours; the second batch fails, and goes again in twos.
    assert sizes == [4, 4, 4, 2, 2, 2, 2]
    assert (result.steps, result.final_batch_size, result.out_of_memory_retries) == (2, 8, 1)


@pytest.mark.parametrize("micro_batch", [0, 9])
def test_a_micro_batch_lies_within_the_batch(micro_batch: int) -> None:
    with pytest.raises(UsageError, match=f"Micro-batch {micro_batch}"):
        replace(block((0, 0)), micro_batch=micro_batch)


# Learning rate.


def test_learning_rate_warms_up_and_falls(small_store: UnitStore, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []
    step = block_steps.BlockSteps.step

    def watched(self: Any, inputs: Any, batch: Any, view: int, rate: float, *, pieces: int = 1) -> list[Tensor]:
        rates.append(rate)
        return step(self, inputs, batch, view, rate, pieces=pieces)

    monkeypatch.setattr(block_steps.BlockSteps, "step", watched)
    settings = TrainSettings(epochs=4, views=1, warmup_share=0.25, final_rate_share=0.1)

    result = train(small_store, block((0, 0), learning_rate=0.2), features(0, 40), settings, learning_rate_scale=0.5)

    rates = rates[-20:]  # before them, one step at rate 0 brings in the kernels' code
    assert rates[0] == pytest.approx(0.02 * 0.1)
    assert rates[1:5] == pytest.approx([0.1 * share / 5 for share in (1, 2, 3, 4)])
    assert rates[5] == max(rates) == pytest.approx(0.1)
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert 0.1 * 0.1 < rates[-1] < 0.1 * 0.15
    assert result.effective_steps == pytest.approx(sum(rates) / 0.05)


# When memory, patience or time run out.


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("no more"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
        MemoryError(),
    ],
)
def test_out_of_memory_halves_the_batch_and_training_goes_on(
    small_store: UnitStore, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    calls: list[tuple[int, float]] = []

    def fail_at_the_third(units: Any, head: Any, optimizer: Any, inputs: Tensor, labels: Tensor, **options: Any) -> Any:
        calls.append((len(inputs), optimizer.param_groups[0]["lr"]))
        if len(calls) == 3:
            raise error
        return train_window(units, head, optimizer, inputs, labels, **options)

    monkeypatch.setattr(block_steps, "train_window", fail_at_the_third)
    settings = TrainSettings(epochs=2, views=1, warmup_share=0, final_rate_share=1)

    result = train(small_store, block((0, 0)), features(0, 24), settings)

    # Two samples bring in the code; 8 are trained; 8 fail; the 16 that remain go in fours, as all of the next epoch.
    assert [size for size, _ in calls] == [2, 8, 8] + [4] * (4 + 6)
    assert (result.out_of_memory_retries, result.final_batch_size) == (1, 4)
    assert (result.samples, result.steps) == (48, 11)
    assert calls[-1][1] == pytest.approx(0.025), "half the batch, half the rate"
    assert result.finished


@pytest.fixture
def kept_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Freed memory that is kept under one limit, then a wider one, where 2**30 bytes and 1130 are asked for."""

    class Kept:
        def __init__(self, limit_bytes: int | None, _device_type: str, *, expected_bytes: int) -> None:
            self._limits = 2 if limit_bytes == 2**30 and expected_bytes == pytest.approx(1130, abs=1) else 0

        def kept(self) -> AbstractContextManager[None]:
            return nullcontext()

        def widen(self) -> bool:
            self._limits -= 1
            return self._limits >= 0

        def give_up(self) -> bool:
            keeps, self._limits = self._limits > 0, 0
            return keeps

    monkeypatch.setattr(block_training, "FreedMemory", Kept)


@pytest.mark.usefixtures("kept_twice")
def test_where_freed_memory_was_kept_the_batch_is_tried_again_before_it_is_halved(
    small_store: UnitStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    planned = replace(block((0, 0)), predicted_peak_bytes=1000)

    def fail_three_times(units: Any, head: Any, optimizer: Any, inputs: Tensor, labels: Tensor, **options: Any) -> Any:
        sizes.append(len(inputs))
        if len(sizes) in (3, 4, 5):
            raise MemoryError
        return train_window(units, head, optimizer, inputs, labels, **options)

    monkeypatch.setattr(block_steps, "train_window", fail_three_times)

    result = train(small_store, planned, features(0, 16), TrainSettings(epochs=1, views=1), memory_bytes=2**30)

    assert sizes == [2, 8, 8, 8, 8, 4, 4]
    assert (result.samples, result.out_of_memory_retries, result.final_batch_size) == (16, 1, 4)


@pytest.mark.usefixtures("kept_twice")
def test_a_step_that_held_more_than_the_budget_is_tried_with_nothing_kept_before_the_batch_is_halved(
    small_store: UnitStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def noted(units: Any, head: Any, optimizer: Any, inputs: Tensor, labels: Tensor, **options: Any) -> Any:
        sizes.append(len(inputs))
        return train_window(units, head, optimizer, inputs, labels, **options)

    monkeypatch.setattr(device_memory.PeakMeter, "overran", lambda *_: sizes[-1] > 4)
    monkeypatch.setattr(block_steps, "train_window", noted)
    planned = replace(block((0, 0)), predicted_peak_bytes=1000)

    result = train(small_store, planned, features(0, 24), TrainSettings(epochs=1, views=1), memory_bytes=2**30)

    assert sizes == [2, 8, 8, 4, 4]
    assert (result.samples, result.out_of_memory_retries, result.final_batch_size) == (24, 1, 4)


def test_a_step_that_held_more_than_the_budget_halves_the_batch(
    small_store: UnitStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a machine whose kernels take more than the trace knows."""
    sizes: list[int] = []

    class Meter(device_memory.PeakMeter):
        def overran(self, limit_bytes: int | None) -> bool:
            return limit_bytes == 1.1 * 1000 + 8 * MIB and sizes[-1] > 4

    def noted(units: Any, head: Any, optimizer: Any, inputs: Tensor, labels: Tensor, **options: Any) -> Any:
        sizes.append(len(inputs))
        return train_window(units, head, optimizer, inputs, labels, **options)

    monkeypatch.setattr(block_training, "PeakMeter", Meter)
    monkeypatch.setattr(block_steps, "train_window", noted)

    result = train(small_store, block((0, 0)), features(0, 24), TrainSettings(epochs=1, views=1), memory_bytes=1000)

    assert sizes == [2, 8, 4, 4, 4, 4]
    assert (result.samples, result.out_of_memory_retries, result.final_batch_size) == (24, 1, 4)


def test_at_the_smallest_batch_training_goes_on_whatever_it_holds(
    small_store: UnitStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_memory.PeakMeter, "overran", lambda *_: True)

    result = train(small_store, block((0, 0)), features(0, 24), TrainSettings(epochs=1, views=1), memory_bytes=1000)

    assert (result.samples, result.out_of_memory_retries, result.final_batch_size) == (24, 2, 2)


def test_out_of_memory_at_the_smallest_batch_and_other_errors_are_raised(
    small_store: UnitStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = stored(small_store)
    sizes: list[int] = []
    message = "not enough memory"

    def fail(_self: Any, _inputs: Any, batch: Any, _view: int, rate: float, **_options: int) -> list[Tensor]:
        if rate > 0:
            sizes.append(len(batch))
            raise RuntimeError(message)
        return []

    monkeypatch.setattr(block_steps.BlockSteps, "step", fail)
    with pytest.raises(RuntimeError, match="not enough memory"):
        train(small_store, block((0, 0)), features(0, 24))
    assert sizes == [8, 4, 2]

    message = "shapes differ"
    with pytest.raises(RuntimeError, match="shapes differ"):
        train(small_store, block((0, 0)), features(0, 24))
    assert sizes == [8, 4, 2, 8]
    assert stored(small_store) == before


def test_training_stops_when_the_exit_stops_improving(small_store: UnitStore, monkeypatch: pytest.MonkeyPatch) -> None:
    accuracies = iter([0, 0, 30, 60, 60, 60, 59, 99])
    monkeypatch.setattr(
        block_training,
        "score_windows",
        lambda windows, *_rest: {windows[-1][0].last_unit: Score(next(accuracies), 100)},
    )
    settings = TrainSettings(epochs=20, views=1, patience=3)

    result = train(small_store, block((0, 0)), features(0, 16), settings, validation=features(0, 4))

    # The first score is that of the rehearsal; then 0, 30, 60 improve and 60, 60, 59 do not.
    assert result.epochs == 6
    assert result.finished


def test_without_patience_nothing_is_scored_between_epochs(
    small_store: UnitStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: object) -> Tensor:
        raise AssertionError("validation data was read")

    validation = features(0, 4)
    monkeypatch.setattr(validation, "read", fail)
    settings = TrainSettings(epochs=2, views=1, patience=None)

    result = train(small_store, block((0, 0)), features(0, 16), settings, validation=validation)

    assert (result.epochs, result.validation) == (2, {})


@pytest.mark.parametrize("passed", ["before", "in the second epoch"])
def test_a_deadline_that_has_passed_stores_nothing(
    small_store: UnitStore, monkeypatch: pytest.MonkeyPatch, passed: str
) -> None:
    before = stored(small_store)
    clock = iter([0.0] * (0 if passed == "before" else 4) + [10.0] * 99)
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))

    result = train(small_store, block((0, 0)), features(0, 24), deadline=5.0)

    assert not result.finished
    assert result.steps == (0 if passed == "before" else 4)
    assert stored(small_store) == before


@pytest.mark.parametrize("options", [{"epochs": 0}, {"patience": 0}, {"views": 0}, {"warmup_share": 1.0}])
def test_impossible_settings_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"give at least 1|must lie in 0 to 1"):
        TrainSettings(**options)
