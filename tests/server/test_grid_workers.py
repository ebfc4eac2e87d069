"""Worker processes: pinned nodes, arrays over pipes, and a run that survives a killed worker."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict, UserConfig

from neuroflux_fl.errors import FleetError
from server.grid import InProcessGrid
from server.grid_workers import WorkerConfig, WorkerExecutor, load_object, worker_grid

NODES: dict[int, UserConfig] = {node_id: {"name": f"n{node_id}"} for node_id in (11, 12, 13)}
RUN_CONFIG: UserConfig = {"scale": 0.5}
APP = "fleet_client_app:app"


@pytest.fixture(autouse=True)
def _importable_client_app(monkeypatch: pytest.MonkeyPatch) -> None:
    # A spawned process gets its parent's sys.path.
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


def make_task(node_id: int, message_type: str = "train", ttl: float | None = None) -> Message:
    return Message(RecordDict({"task": ConfigRecord({"round": 1})}), node_id, message_type, ttl=ttl)


def test_workers_answer_for_their_own_nodes_and_end_with_the_grid() -> None:
    # Prepare
    config = WorkerConfig(client_app=APP, run_config=RUN_CONFIG, initializer="fleet_client_app:initialize")
    executor = WorkerExecutor(config, NODES, 2)
    process_ids = executor.process_ids
    array = np.arange(500_000, dtype=np.float32)
    late = make_task(11, ttl=1.0)
    late.metadata.created_at -= 2.0

    # Execute
    with InProcessGrid(None, NODES, RUN_CONFIG, executor=executor) as grid:
        replies = list(grid.send_and_receive([make_task(node_id) for node_id in (11, 12, 13, 11, 12, 13)]))
        errors = list(grid.send_and_receive([make_task(12, "train.fail"), make_task(99), late], timeout=30))
        content = RecordDict({"arrays": ArrayRecord({"unit-000": Array(array)})})
        (echo,) = grid.send_and_receive([Message(content, 13, "train.echo")])
        early = list(grid.push_messages([make_task(11), make_task(11)]))
        kept = [next(iter(pull(grid, message_id))) for message_id in reversed(early)]

    # Assert: each node counted its own messages in one process; 11 and 13 share the first worker.
    answers = [reply.content.config_records["answer"] for reply in replies]
    assert sorted((answer["node"], answer["seen"]) for answer in answers) == [
        (node_id, seen) for node_id in (11, 12, 13) for seen in (1, 2)
    ]
    process_of = {answer["node"]: answer["process"] for answer in answers}
    assert process_of == {11: process_ids[0], 12: process_ids[1], 13: process_ids[0]}
    assert {answer["initialized"] for answer in answers} == {1}
    assert sorted(reply.error.code for reply in errors) == [2, 3, 5]
    np.testing.assert_array_equal(echo.content.array_records["arrays"]["unit-000"].numpy(), array)
    assert [reply.metadata.reply_to_message_id for reply in kept] == list(reversed(early))
    for process_id in process_ids:
        with pytest.raises(ProcessLookupError):
            os.kill(process_id, 0)


def pull(grid: InProcessGrid, message_id: str) -> list[Message]:
    """Poll for one message's reply."""
    for _ in range(100):
        replies = list(grid.pull_messages([message_id]))
        if replies:
            return replies
    raise AssertionError(f"no reply to {message_id}")


def test_killed_worker_gives_an_error_reply_and_the_run_goes_on() -> None:
    with worker_grid(APP, NODES, RUN_CONFIG, workers=1) as grid:
        # Prepare
        (before,) = grid.send_and_receive([make_task(11)])

        # Execute: the second message is queued behind the one that kills the worker.
        deadly, following = grid.push_messages([make_task(11, "train.die"), make_task(12)])
        (error_reply,) = pull(grid, deadly)
        (reply,) = pull(grid, following)

    # Assert
    assert error_reply.error.code == 8
    assert error_reply.error.reason == "The worker process ended with status -9 while it ran this message."
    answer = reply.content.config_records["answer"]
    assert answer["node"] == 12
    assert answer["process"] != before.content.config_records["answer"]["process"]


@pytest.mark.parametrize(
    ("client_app", "initializer", "complaint"),
    [
        ("fleet_client_app:missing", None, "Cannot load 'fleet_client_app:missing'"),
        (APP, "fleet_client_app:fail_to_initialize", "RuntimeError: no data here"),
    ],
)
def test_worker_that_cannot_start_is_a_fleet_error(client_app: str, initializer: str | None, complaint: str) -> None:
    with pytest.raises(FleetError, match=complaint):
        worker_grid(client_app, NODES, RUN_CONFIG, workers=1, initializer=initializer)


def test_no_workers_are_refused() -> None:
    with pytest.raises(FleetError, match="must be at least 1"):
        worker_grid(APP, NODES, RUN_CONFIG, workers=0)


@pytest.mark.parametrize("path", ["fleet_client_app", "fleet_client_app:", ":app", "no_such_module:app"])
def test_object_that_cannot_be_loaded_is_a_fleet_error(path: str) -> None:
    with pytest.raises(FleetError, match=path):
        load_object(path)
