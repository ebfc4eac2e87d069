"""What a device has finished of a task survives a kill at any moment, and the answer is that of an unbroken run."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from clients import task_journal
from clients.device import Device, run_profile
from clients.identity import Identity
from clients.task_journal import TaskJournal, TaskProgress
from neuroflux_fl import block_training, device_memory, device_training, unit_store
from neuroflux_fl.activation_cache import ActivationCache
from neuroflux_fl.packing import unit_key
from neuroflux_fl.plan import Plan
from neuroflux_fl.run_config import RunConfig
from neuroflux_fl.unit_store import UnitStore
from neuroflux_fl.wire import TrainReport, TrainTask

CPU = torch.device("cpu")
CONFIG = RunConfig(
    model="vgg11", width=0.05, train_limit=40, test_limit=20, partition="iid",
    planner="threshold", rho=1.0, local_epochs=2, views=2,
)  # fmt: skip
FIRST, LAST = 1, 3
Trained = tuple[TrainReport, dict[str, NDArray[np.float32]]]


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the code may catch it."""


def make_device(folder: Path, budget_bytes: int | None = None, **changes: Any) -> Device:
    identity = Identity(
        partition_id=0,
        partitions=1,
        budget_bytes=budget_bytes or needed(4),
        device_class="test",
        folder=folder,
        device=CPU,
    )
    return Device(replace(CONFIG, **changes), identity)


def needed(batch: int) -> int:
    """The budget that holds each unit of the stage, the dearest of them at this batch size."""
    profile, planner = run_profile(CONFIG, CPU), CONFIG.planner_settings(examples=50)
    return max(planner.needed_budget(profile.unit(unit).peak_bytes(batch)) for unit in range(FIRST, LAST + 1))


def make_task(device: Device, folder: Path, **changes: Any) -> TrainTask:
    store = UnitStore(folder, device.network)
    for unit in range(FIRST):
        store.write(unit, device.network.initial(unit, 0))
    version = store.prefix_version(FIRST)
    return TrainTask(
        round=3, first_unit=FIRST, last_unit=LAST, epochs=2, first_epoch=4, prefix_version=version, sends_prefix=True,
        **changes,
    )  # fmt: skip


def arrays_of(device: Device) -> dict[str, NDArray[np.float32]]:
    return {unit_key(unit): device.network.initial(unit, 0) for unit in range(LAST + 1)}


def train(device: Device, tmp_path: Path, **changes: Any) -> Trained:
    return device.train(make_task(device, tmp_path / "server", **changes), arrays_of(device))


def assert_same(one: Trained, other: Trained) -> None:
    """Bit for bit, and the same report but for time, memory and cache figures."""
    assert sorted(one[1]) == sorted(other[1])
    for key, array in one[1].items():
        np.testing.assert_array_equal(array, other[1][key])
    for report, expected in ((one[0], other[0]),):
        assert (report.plan, report.updates, report.exits) == (expected.plan, expected.updates, expected.exits)
        assert report.prefix_version == expected.prefix_version
        assert report.deadline_reached == expected.deadline_reached
        assert [(b.first_unit, b.last_unit, b.batch_size, b.samples, b.final_loss) for b in report.blocks] == [
            (b.first_unit, b.last_unit, b.batch_size, b.samples, b.final_loss) for b in expected.blocks
        ]


def kill_at_step(monkeypatch: pytest.MonkeyPatch, step: int) -> list[str]:
    """Raise Killed instead of the ``step``-th write to the disk, counted from 0. Returns the steps as they are made."""
    steps: list[str] = []

    def counted(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def write(*args: Any, **options: Any) -> Any:
            if len(steps) == step:
                raise Killed
            steps.append(name)
            return original(*args, **options)

        return write

    monkeypatch.setattr(unit_store, "write_atomically", counted("unit", unit_store.write_atomically))
    monkeypatch.setattr(TaskJournal, "write", counted("journal", TaskJournal.write))
    monkeypatch.setattr(ActivationCache, "write", counted("cache", ActivationCache.write))
    monkeypatch.setattr(ActivationCache, "keep_only", counted("tidy", ActivationCache.keep_only))
    return steps


@pytest.fixture(scope="module", autouse=True)
def _no_exact_memory_figures() -> Iterator[None]:
    # Nothing here looks at them, and the garbage collections before each measurement take half of the time.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device_memory, "release_free_memory", lambda: None)
        yield


@pytest.fixture(scope="module")
def unbroken_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("unbroken")


@pytest.fixture(scope="module")
def unbroken(unbroken_folder: Path) -> Trained:
    return train(make_device(unbroken_folder / "device"), unbroken_folder)


@pytest.fixture
def done(unbroken: Trained, unbroken_folder: Path, tmp_path: Path) -> Device:
    """A device that has just answered."""
    shutil.copytree(unbroken_folder / "device", tmp_path / "device")
    return make_device(tmp_path / "device")


def trained_blocks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """First units of the blocks that are trained from now on."""
    begun: list[int] = []
    original = block_training.train_block

    def recorded(store: Any, block: Any, *args: Any, **options: Any) -> Any:
        begun.append(block.first_unit)
        return original(store, block, *args, **options)

    monkeypatch.setattr(device_training, "train_block", recorded)
    return begun


@pytest.mark.slow
@pytest.mark.parametrize(("cache_quota", "precision", "every_nth"), [("", "float32", 1), ("40KiB", "float16", 6)])
def test_kill_at_any_write_changes_no_number(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cache_quota: str, precision: str, every_nth: int
) -> None:
    with monkeypatch.context() as patch:
        writes = kill_at_step(patch, -1)
        expected = train(
            make_device(tmp_path / "expected", cache_quota=cache_quota), tmp_path, update_precision=precision
        )
    assert [block.first_unit for block in expected[0].plan.blocks] == [1, 2, 3]
    assert bool(expected[0].cache_refusals) == bool(cache_quota)
    # From the first array that is stored to the last entry of the journal; make_task makes the very first write.
    for step in range(1, len(writes), every_nth):
        device = make_device(tmp_path / f"device-{step}", cache_quota=cache_quota)

        with monkeypatch.context() as patch:
            kill_at_step(patch, step)
            with pytest.raises(Killed):
                train(device, tmp_path, update_precision=precision)
        with monkeypatch.context() as patch:
            begun = trained_blocks(patch)
            resumed = train(device, tmp_path, update_precision=precision)

        assert_same(resumed, expected)
        finished = max(0, writes[:step].count("journal") - 1)  # the first entry is of the plan alone
        assert begun == [1, 2, 3][finished:], f"killed at step {step}, {writes[step]}"


def test_finished_task_is_answered_again_without_training(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, done: Device, unbroken: Trained
) -> None:
    begun = trained_blocks(monkeypatch)

    again = train(done, tmp_path)

    assert begun == []
    assert again[0] == unbroken[0]
    assert_same(again, unbroken)


@pytest.mark.parametrize("change", ["round", "weights", "seed"])
def test_another_task_is_trained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, done: Device, change: str) -> None:
    begun = trained_blocks(monkeypatch)
    task, arrays = make_task(done, tmp_path / "server"), arrays_of(done)
    if change == "round":
        task = replace(task, round=4)
    elif change == "weights":
        arrays["unit-003"] = done.network.initial(3, seed=1)
    else:
        done = make_device(done.identity.folder, seed=5)

    done.train(task, arrays)

    assert begun == [1, 2, 3]


def test_weights_that_another_task_replaced_are_trained_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, done: Device, unbroken: Trained
) -> None:
    UnitStore(done.identity.folder / "weights", done.network).write(2, done.network.initial(2, 7))
    begun = trained_blocks(monkeypatch)

    again = train(done, tmp_path)

    assert begun == [2, 3]
    assert_same(again, unbroken)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: '{"format": 1}',
        lambda text: text.replace('"round": 3', '"round": "three"'),
        lambda text: text.replace('"digests": {', '"digests": {"first": 1, '),
    ],
)
def test_damaged_journal_is_ignored_with_a_warning(
    tmp_path: Path, done: Device, caplog: pytest.LogCaptureFixture, damage: Callable[[str], str]
) -> None:
    path, store = done.identity.folder / "task.json", UnitStore(done.identity.folder / "weights", done.network)
    journal = TaskJournal(path, json.loads(path.read_text())["key"])
    assert journal.read(store) is not None
    path.write_text(damage(path.read_text()))

    with caplog.at_level(logging.WARNING, logger=task_journal.__name__):
        progress = journal.read(store)

    assert progress is None
    assert "cannot be read, so the task starts anew" in caplog.text


def test_half_written_files_are_removed(tmp_path: Path) -> None:
    device = make_device(tmp_path / "device")
    left_overs = ["task.json.tmp", "weights/unit-001.77.tmp", "cache/abc.77.tmp/values.bin"]
    for name in left_overs:
        path = device.identity.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")

    train(device, tmp_path)

    assert not [path for path in device.identity.folder.rglob("*") if ".tmp" in path.name]


def kill_after_first_block(monkeypatch: pytest.MonkeyPatch, device: Device, tmp_path: Path, **changes: Any) -> Plan:
    """Leaves the device with one finished block in its journal; returns the plan."""
    with monkeypatch.context() as patch:
        writes = kill_at_step(patch, -1)
        report, _ = train(make_device(tmp_path / "whole", device.identity.budget_bytes), tmp_path)
    second_entry = [step for step, name in enumerate(writes) if name == "journal"][1]
    with monkeypatch.context() as patch:
        kill_at_step(patch, second_entry + 1)
        with pytest.raises(Killed):
            train(device, tmp_path, **changes)
    return report.plan


def test_deadline_counts_from_when_the_task_came_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    device = make_device(tmp_path / "device")
    kill_after_first_block(monkeypatch, device, tmp_path, deadline_seconds=1000.0)
    path = device.identity.folder / "task.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"started_at": values["started_at"] - 1001}))
    begun = trained_blocks(monkeypatch)

    report, arrays = train(device, tmp_path, deadline_seconds=1000.0)

    assert begun == []
    assert report.deadline_reached
    assert sorted(arrays) == ["unit-001"]


def test_smaller_budget_gives_the_rest_another_plan(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plan = kill_after_first_block(monkeypatch, make_device(tmp_path / "device"), tmp_path)
    smaller = min(block.predicted_peak_bytes for block in plan.blocks[1:]) - 1

    report, arrays = train(make_device(tmp_path / "device", smaller), tmp_path)

    assert report.plan.blocks[0] == plan.blocks[0]
    assert all(block.predicted_peak_bytes <= smaller for block in report.plan.blocks[1:])
    assert [block.first_unit for block in report.blocks] == [block.first_unit for block in report.plan.blocks]
    assert len(report.blocks) > 1
    assert sorted(arrays) == [unit_key(unit) for block in report.plan.blocks for unit in block.units]


@pytest.mark.parametrize("killed", [True, False])
def test_cached_activations_of_other_tasks_take_no_room(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, unbroken: Trained, killed: bool
) -> None:
    device = make_device(tmp_path / "device", cache_quota="1MiB")
    if killed:
        kill_after_first_block(monkeypatch, device, tmp_path)
    stray = device.identity.folder / "cache" / "stray" / "values.bin"
    stray.parent.mkdir(parents=True)
    stray.write_bytes(bytes(2**20))

    resumed = train(device, tmp_path)

    assert resumed[0].cache_refusals == 0
    assert_same(resumed, unbroken)


def test_clock_that_was_set_back_counts_as_no_time(unbroken: Trained) -> None:
    progress = TaskProgress(report=unbroken[0], started_at=time.time() + 3600)

    assert progress.elapsed_seconds == 0
