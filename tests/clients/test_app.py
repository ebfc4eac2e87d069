"""The ClientApp between Flower's messages and the device: what is wrong becomes an error reply."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict, UserConfig

from clients.app import app
from clients.request import DeviceAnswer, DeviceRequest
from clients.tasks import perform
from neuroflux_fl.fleet_model import run_network
from neuroflux_fl.local_network import EMPTY_PREFIX
from neuroflux_fl.run_config import RunConfig
from neuroflux_fl.wire import PREFIX_NEEDED, Capabilities, EvaluateReport, EvaluateTask, TrainReport, TrainTask
from server.grid import InProcessGrid

CONFIG = RunConfig(model="vgg11", width=0.05, train_limit=100, test_limit=20, partition="iid", local_epochs=1, views=1)


@pytest.fixture
def grid(tmp_path: Path) -> InProcessGrid:
    node: UserConfig = {
        "partition-id": 0,
        "num-partitions": 2,
        "memory-budget": "64MiB",
        "device-class": "test",
        "state-folder": str(tmp_path),
    }
    return InProcessGrid(app, {1: node, 2: {"partition-id": "first"}}, CONFIG.to_flat())


def ask(
    grid: InProcessGrid, kind: str, task: bytes | str | None = None, units: range = range(0), node: int = 1
) -> Message:
    network = run_network(CONFIG)
    arrays = ArrayRecord({f"unit-{unit:03d}": Array(network.initial(unit, 0)) for unit in units})
    content = RecordDict({"arrays": arrays, "config": ConfigRecord({} if task is None else {"task": task})})
    (reply,) = grid.send_and_receive([Message(content, node, kind)])
    return reply


def reason_of(reply: Message) -> str:
    assert reply.error.reason is not None
    return reply.error.reason


def as_bytes(value: object) -> bytes:
    assert isinstance(value, bytes)
    return value


def test_query_is_answered_with_capabilities(grid: InProcessGrid) -> None:
    reply = ask(grid, "query.capabilities")

    answer = Capabilities.from_bytes(as_bytes(reply.content.config_records["config"]["capabilities"]))
    assert (answer.device_class, answer.memory_budget_bytes) == ("test", 64 * 1024**2)


def test_work_in_this_process_begins_with_its_preparation(grid: InProcessGrid, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def noted(request: DeviceRequest) -> DeviceAnswer:
        done.append(request.kind)
        return perform(request)

    monkeypatch.setattr("clients.process.prepare_process", lambda: done.append("prepared"))
    monkeypatch.setattr("clients.tasks.perform", noted)

    ask(grid, "query.capabilities")

    assert done == ["prepared", "capabilities"]


def test_training_is_answered_with_report_arrays_and_examples(grid: InProcessGrid) -> None:
    task = TrainTask(round=2, first_unit=0, last_unit=1, epochs=1, prefix_version=EMPTY_PREFIX)

    reply = ask(grid, "train", task.to_bytes(), range(2))

    report = TrainReport.from_bytes(as_bytes(reply.content.config_records["config"]["report"]))
    assert report.round == 2
    arrays = reply.content.array_records["arrays"]
    assert sorted(arrays) == [f"unit-{update.unit:03d}" for update in report.updates] == ["unit-000", "unit-001"]
    assert {array.numpy().dtype for array in arrays.values()} == {np.dtype(np.float32)}
    assert reply.content.metric_records["metrics"]["num-examples"] == report.updates[0].examples


def test_scoring_is_answered_with_scores_alone(grid: InProcessGrid) -> None:
    task = EvaluateTask(round=2, first_unit=0, last_unit=2, prefix_version=EMPTY_PREFIX)

    reply = ask(grid, "evaluate", task.to_bytes(), range(3))

    report = EvaluateReport.from_bytes(as_bytes(reply.content.config_records["config"]["report"]))
    assert [score.unit for score in report.exits] == [0, 1, 2]
    assert report.seconds > 0
    assert not reply.content.array_records


@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_task_that_cannot_be_read_is_an_error_reply(grid: InProcessGrid, kind: str) -> None:
    assert "WireError: " in reason_of(ask(grid, kind, b"\xff\xff garbage"))
    assert "it must be bytes" in reason_of(ask(grid, kind, "text"))
    assert "KeyError" in reason_of(ask(grid, kind))


def test_refused_task_is_an_error_reply(grid: InProcessGrid) -> None:
    task = TrainTask(round=1, first_unit=2, last_unit=3, epochs=1, prefix_version="of another fleet")

    reply = ask(grid, "train", task.to_bytes(), range(2, 4))

    assert reply.error.reason == f"WireError: Prefix of 2 units is not on this device: {PREFIX_NEEDED}."


def test_bad_node_configuration_is_an_error_reply(grid: InProcessGrid) -> None:
    assert "ConfigError: Node configuration 'partition-id'" in reason_of(ask(grid, "query.capabilities", node=2))
