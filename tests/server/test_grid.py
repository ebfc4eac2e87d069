"""The in-process grid keeps Flower's contract: ids, contexts, error replies, and one reply at a time."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Message, RecordDict, UserConfig
from flwr.clientapp import ClientApp
from flwr.supercore.task_identity import TaskIdentity

from neuroflux_fl.errors import FleetError
from server.grid import InProcessGrid

NODES: dict[int, UserConfig] = {11: {"name": "pi"}, 12: {"name": "nano"}}
RUN_CONFIG: UserConfig = {"scale": 0.5}


@pytest.fixture
def client_app(monkeypatch: pytest.MonkeyPatch) -> Iterator[ClientApp]:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    import fleet_client_app  # type: ignore[import-not-found]

    yield fleet_client_app.app
    sys.modules.pop("fleet_client_app", None)


@pytest.fixture
def grid(client_app: ClientApp) -> InProcessGrid:
    return InProcessGrid(client_app, NODES, RUN_CONFIG)


def make_task(node_id: int, message_type: str = "train", ttl: float | None = None) -> Message:
    return Message(RecordDict({"task": ConfigRecord({"round": 1})}), node_id, message_type, ttl=ttl)


def answer_of(reply: Message) -> ConfigRecord:
    return reply.content.config_records["answer"]


def test_each_pull_gives_one_reply_once(grid: InProcessGrid) -> None:
    # Execute
    ids = list(grid.push_messages([make_task(11), make_task(12)]))
    pulls = [list(grid.pull_messages(ids)) for _ in range(3)]

    # Assert
    assert [len(replies) for replies in pulls] == [1, 1, 0]
    replies = [pulls[0][0], pulls[1][0]]
    assert [reply.metadata.reply_to_message_id for reply in replies] == ids
    assert [reply.metadata.src_node_id for reply in replies] == [11, 12]
    assert len({reply.metadata.message_id for reply in replies} | set(ids)) == 4


def test_nothing_runs_before_its_reply_is_pulled() -> None:
    ran: list[int] = []
    app = ClientApp()

    @app.train()
    def train(message: Message, context: object) -> Message:
        ran.append(message.metadata.dst_node_id)
        return Message(RecordDict(), reply_to=message)

    grid = InProcessGrid(app, NODES, RUN_CONFIG)
    first, second = grid.push_messages([make_task(11), make_task(12)])
    assert ran == []

    list(grid.pull_messages([second]))
    assert ran == [12]

    list(grid.pull_messages([first]))
    assert ran == [12, 11]


def test_each_node_keeps_its_own_context(grid: InProcessGrid) -> None:
    replies = list(grid.send_and_receive([make_task(11), make_task(12), make_task(11)]))

    answers = [answer_of(reply) for reply in replies]
    assert [(answer["node"], answer["name"], answer["seen"]) for answer in answers] == [
        (11, "pi", 1),
        (12, "nano", 1),
        (11, "pi", 2),
    ]
    assert answers[0]["scale"] == 0.5


def test_client_cannot_write_to_the_servers_message(grid: InProcessGrid) -> None:
    task = make_task(11)

    list(grid.send_and_receive([task]))

    assert dict(task.content.config_records["task"]) == {"round": 1}


def test_client_exception_becomes_an_error_reply_of_one_line(grid: InProcessGrid) -> None:
    ids = list(grid.push_messages([make_task(11, "train.fail")]))

    (reply,) = grid.pull_messages(ids)

    assert (reply.error.code, reply.error.reason) == (2, "ValueError: two lines")
    assert reply.metadata.reply_to_message_id == ids[0]


def test_reply_to_another_message_is_an_error(grid: InProcessGrid) -> None:
    (reply,) = grid.send_and_receive([make_task(11, "evaluate")])

    assert reply.error.code == 2


def test_unknown_node_gives_an_error_reply(grid: InProcessGrid) -> None:
    (reply,) = grid.send_and_receive([make_task(99)])

    assert (reply.error.code, reply.error.reason) == (5, "Node 99 is not part of this fleet.")


def test_expired_message_is_not_run_and_frees_its_content(grid: InProcessGrid) -> None:
    # Prepare: an expired message waits while another is pushed.
    task = make_task(11, ttl=1.0)
    task.metadata.created_at -= 2.0
    (expired,) = grid.push_messages([task])
    content = weakref.ref(task.content)
    del task
    (good,) = grid.push_messages([make_task(11)])
    gc.collect()
    assert content() is None

    # Execute
    (error_reply,) = grid.pull_messages([expired])
    (reply,) = grid.pull_messages([good])

    # Assert: the good one is the node's first.
    assert (error_reply.error.code, error_reply.metadata.reply_to_message_id) == (3, expired)
    assert answer_of(reply)["seen"] == 1


def test_nodes_and_run_are_those_given(client_app: ClientApp) -> None:
    grid = InProcessGrid(client_app, NODES, RUN_CONFIG, run_id=77)

    assert list(grid.get_node_ids()) == [11, 12]
    assert [node.node_id for node in grid.get_nodes()] == [11, 12]
    assert grid.run.run_id == 77


def test_grid_makes_messages_possible_but_leaves_a_flower_task_alone(
    client_app: ClientApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("_task_id", None), ("_run_id", 5), ("_node_id", None)):
        monkeypatch.setattr(TaskIdentity, name, value)

    grid = InProcessGrid(client_app, NODES, RUN_CONFIG, run_id=77)
    message = grid.create_message(RecordDict(), "train", 11, "3")

    assert (message.metadata.run_id, message.metadata.src_node_id, message.metadata.group_id) == (5, 1, "3")


def test_grid_needs_one_way_to_run_messages() -> None:
    with pytest.raises(FleetError, match="either a client app or an executor"):
        InProcessGrid(None, NODES, RUN_CONFIG)
