"""A device's answers: trained units inside its budget, refusals of tasks that do not fit, the deadline."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from clients import device as device_module
from clients.device import Device, run_profile
from clients.identity import Identity
from neuroflux_fl import block_training, device_training
from neuroflux_fl.errors import WireError
from neuroflux_fl.local_network import EMPTY_PREFIX
from neuroflux_fl.packing import unit_key
from neuroflux_fl.run_config import RunConfig
from neuroflux_fl.unit_store import UnitStore
from neuroflux_fl.update_codec import coding_error, decode_update
from neuroflux_fl.wire import EvaluateTask, TrainTask

CPU = torch.device("cpu")
CONFIG = RunConfig(
    model="vgg11",
    width=0.05,
    train_limit=100,
    test_limit=20,
    partition="iid",
    planner="threshold",
    rho=0.0,
    local_epochs=1,
    views=1,
)
MakeDevice = Callable[..., Device]


@pytest.fixture
def make_device(tmp_path: Path) -> MakeDevice:
    def make(budget_bytes: int = 64 * 1024**2, *, folder: str = "device", **changes: Any) -> Device:
        identity = Identity(
            partition_id=0,
            partitions=2,
            budget_bytes=budget_bytes,
            device_class="test",
            folder=tmp_path / folder,
            device=CPU,
        )
        return Device(replace(CONFIG, **changes), identity)

    return make


def arrays_of(device: Device, *units: int, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    return {unit_key(unit): device.network.initial(unit, seed) for unit in units}


def make_task(first_unit: int, last_unit: int, **changes: Any) -> TrainTask:
    task = TrainTask(round=1, first_unit=first_unit, last_unit=last_unit, epochs=1, prefix_version=EMPTY_PREFIX)
    return replace(task, **changes)


def needed(unit: int, batch: int) -> int:
    planner = CONFIG.planner_settings(examples=50)
    return planner.needed_budget(run_profile(CONFIG, CPU).unit(unit).peak_bytes(batch))


def prefix_version(device: Device, units: int, folder: Path, seed: int = 0) -> str:
    store = UnitStore(folder, device.network)
    for unit in range(units):
        store.write(unit, device.network.initial(unit, seed))
    return store.prefix_version(units)


def test_capabilities_are_those_of_profile_and_data(make_device: MakeDevice) -> None:
    profile = run_profile(CONFIG, CPU)
    backprop = CONFIG.planner_settings(examples=50).needed_budget(
        profile.whole.peak_bytes(8), profile.whole.window.reach
    )

    rich, poor = make_device(backprop).capabilities(), make_device(backprop - 1).capabilities()

    assert (rich.holds_backprop, poor.holds_backprop) == (True, False)
    assert (rich.device_class, rich.memory_budget_bytes) == ("test", backprop)
    assert rich.train_examples + rich.validation_examples == 50
    assert [line.unit for line in rich.unit_memory] == list(range(8))
    assert rich.unit_memory[0].bytes_per_sample == profile.unit(0).bytes_per_sample


def test_report_tells_what_was_done(make_device: MakeDevice) -> None:
    device = make_device(needed(0, 4))
    arrays = arrays_of(device, 0, 1)

    report, trained = device.train(make_task(0, 1, round=3), arrays)

    assert arrays == {}  # what is trained need not be in memory twice
    assert sorted(trained) == ["unit-000", "unit-001"]
    for unit in (0, 1):
        initial = device.network.initial(unit, 0)
        assert trained[unit_key(unit)].shape == initial.shape
        assert not np.array_equal(trained[unit_key(unit)], initial)
    assert (report.round, report.deadline_reached, report.prefix_version) == (3, False, EMPTY_PREFIX)
    assert [block.batch_size for block in report.blocks] == [block.batch_size for block in report.plan.blocks]
    assert report.plan.blocks[0].batch_size == 4
    for block in report.blocks:
        assert 0 < block.predicted_peak_bytes <= device.identity.budget_bytes
        assert block.measured_peak_bytes > 0
    examples = device.capabilities().train_examples
    for update, block in zip(report.updates, report.blocks, strict=True):
        assert (update.examples, update.has_head) == (examples, True)
        assert examples - block.batch_size < block.samples <= examples
        assert update.steps >= block.samples / block.batch_size
        # The rate grows with the batch: two steps at half the batch count as much as one.
        assert update.effective_steps == pytest.approx(update.steps * block.batch_size / 64, rel=1e-6)
    assert [score.unit for score in report.exits] == [0, 1]
    assert report.seconds.train > 0


def test_task_is_a_function_of_what_was_sent(make_device: MakeDevice) -> None:
    first, second = make_device(folder="first"), make_device(folder="second")

    _, one = first.train(make_task(0, 1), arrays_of(first, 0, 1))
    _, two = second.train(make_task(0, 1), arrays_of(second, 0, 1))
    _, three = second.train(make_task(0, 1, first_epoch=1), arrays_of(second, 0, 1))

    np.testing.assert_array_equal(one["unit-001"], two["unit-001"])
    assert not np.array_equal(two["unit-001"], three["unit-001"])


def test_backpropagation_sends_the_last_head_alone(make_device: MakeDevice) -> None:
    device = make_device(2**20, method="backprop-all")

    report, trained = device.train(make_task(0, 7), arrays_of(device, *range(8)))

    assert [update.has_head for update in report.updates] == [False] * 7 + [True]
    for unit in range(8):
        layout = device.network.layout(unit)
        assert len(trained[unit_key(unit)]) == layout.size(has_head=unit == 7)
    assert [score.unit for score in report.exits] == [7]


@pytest.mark.parametrize(("method", "last_unit"), [("neuroflux", 1), ("backprop-fitting", 7)])
def test_device_without_the_memory_scores_and_sends_nothing(
    make_device: MakeDevice, method: str, last_unit: int
) -> None:
    device = make_device(min(needed(unit, 2) for unit in (0, 1)) - 1, method=method)

    report, trained = device.train(make_task(0, last_unit), arrays_of(device, *range(last_unit + 1)))

    assert (report.updates, report.blocks, trained) == ((), (), {})
    assert report.plan.untrained_units == tuple(range(last_unit + 1))
    assert report.exits[-1].unit == last_unit
    assert report.exits[-1].total > 0


def test_deadline_that_is_over_sends_nothing(make_device: MakeDevice) -> None:
    device = make_device()

    report, trained = device.train(make_task(0, 1, deadline_seconds=1e-6), arrays_of(device, 0, 1))

    assert report.deadline_reached
    assert (report.updates, trained) == ((), {})


def test_deadline_between_blocks_sends_the_finished_ones(
    make_device: MakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Prepare: a clock that jumps when the first block is done.
    device = make_device(needed(0, 4))
    clock = SimpleNamespace(now=0.0)
    for module in (device_module, device_training, block_training):
        fake = SimpleNamespace(monotonic=lambda: clock.now, perf_counter=time.perf_counter, time=time.time)
        monkeypatch.setattr(module, "time", fake)

    def train_and_jump(*args: Any, **options: Any) -> Any:
        result = block_training.train_block(*args, **options)
        clock.now = 100.0
        return result

    monkeypatch.setattr(device_training, "train_block", train_and_jump)

    # Execute
    report, trained = device.train(make_task(0, 2, deadline_seconds=10.0), arrays_of(device, 0, 1, 2))

    # Assert
    assert len(report.plan.blocks) > 1
    assert report.deadline_reached
    assert [update.unit for update in report.updates] == list(report.plan.blocks[0].units)
    assert sorted(trained) == [unit_key(unit) for unit in report.plan.blocks[0].units]
    reading = device.monitor.reading()
    assert (reading.round, reading.deadlines_reached, len(reading.blocks)) == (1, 1, len(report.plan.blocks))
    assert [block.measured_peak_bytes for block in reading.blocks] == [report.blocks[0].measured_peak_bytes, None]
    assert reading.losses == report.blocks[0].losses


def test_prefix_must_be_here_in_the_version_of_the_task(make_device: MakeDevice, tmp_path: Path) -> None:
    device = make_device()
    version = prefix_version(device, 2, tmp_path / "server")
    task = make_task(2, 3, prefix_version=version)

    # It never came.
    with pytest.raises(WireError, match="Prefix of 2 units is not on this device"):
        device.train(task, arrays_of(device, 2, 3))
    # It comes with the task.
    report, _ = device.train(replace(task, sends_prefix=True), arrays_of(device, 0, 1, 2, 3))
    assert report.prefix_version == version
    # It is still here, for training and for scoring.
    device.train(task, arrays_of(device, 2, 3))
    scoring = EvaluateTask(round=1, first_unit=2, last_unit=3, prefix_version=version)
    assert [score.unit for score in device.evaluate(scoring, arrays_of(device, 2, 3)).exits] == [2, 3]
    # The fleet's has changed.
    other = prefix_version(device, 2, tmp_path / "server", seed=1)
    with pytest.raises(WireError, match="another version on this device"):
        device.train(replace(task, prefix_version=other), arrays_of(device, 2, 3))
    with pytest.raises(WireError, match="another version on this device"):
        device.evaluate(replace(scoring, prefix_version=other), arrays_of(device, 2, 3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda arrays: arrays.pop("unit-001"), "came without the array of unit 1"),
        (lambda arrays: arrays.update({"unit-001": arrays["unit-001"][:-1]}), "Array of unit 1 is float32"),
        (lambda arrays: arrays.update({"unit-001": arrays["unit-001"].astype(np.float64)}), "is float64"),
        (lambda arrays: arrays.update({"unit-001": arrays["unit-001"][None]}), "Array of unit 1 is float32"),
    ],
)
def test_arrays_must_fit_the_model(make_device: MakeDevice, change: Callable[[Any], Any], message: str) -> None:
    device = make_device()
    arrays = arrays_of(device, 0, 1)
    change(arrays)

    with pytest.raises(WireError, match=message):
        device.train(make_task(0, 1), arrays)


def test_unit_must_be_of_the_model(make_device: MakeDevice) -> None:
    with pytest.raises(WireError, match="Task is for unit 8; the model has units 0 to 7"):
        make_device().train(make_task(0, 8), {})


@pytest.mark.parametrize(("precision", "largest_error"), [("float16", 1e-3), ("int8", 0.05)])
def test_update_is_coded_as_the_task_asks(make_device: MakeDevice, precision: str, largest_error: float) -> None:
    device = make_device(needed(0, 4))
    report, trained = device.train(make_task(0, 1), arrays_of(device, 0, 1))
    task = make_task(0, 1, update_precision=precision)

    coded_report, coded = device.train(task, arrays_of(device, 0, 1))
    again, coded_again = device.train(task, arrays_of(device, 0, 1))  # answered from the journal

    assert report.update_error == 0
    assert 0 < coded_report.update_error < largest_error
    for unit in (0, 1):
        key, base = unit_key(unit), device.network.initial(unit, 0)
        decoded = decode_update(coded[key], base, len(base), precision)
        assert coding_error(trained[key], decoded, base) <= coded_report.update_error
        np.testing.assert_array_equal(coded_again[key], coded[key])
    assert again.update_error == coded_report.update_error


def test_task_of_a_resumed_run_is_the_same_task(make_device: MakeDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    _, trained = make_device(needed(0, 4)).train(make_task(0, 1), arrays_of(make_device(1), 0, 1))
    monkeypatch.setattr(device_training, "train_block", None)  # nothing may be trained again

    resumed = make_device(needed(0, 4), resume=True, out="runs/elsewhere")
    _, answered = resumed.train(make_task(0, 1), arrays_of(resumed, 0, 1))

    for key, array in trained.items():
        np.testing.assert_array_equal(answered[key], array)
