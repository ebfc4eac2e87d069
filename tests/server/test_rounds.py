"""A phase ends with every node accounted for, whatever the nodes do."""

from __future__ import annotations

import gc
import time
import weakref
from collections.abc import Iterable

import pytest
from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from neuroflux_fl.errors import FleetError
from server.grid import InProcessGrid
from server.rounds import Resending, pull_late, run_phase, wait_for_nodes

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Fail on node 13."""
    if context.node_id == 13:
        raise ValueError("bad data")
    return Message(RecordDict(), reply_to=message)


class SilentGrid(InProcessGrid):
    """A grid on which some nodes never answer, some messages are refused, and new nodes come late."""

    silent = frozenset({12})
    refused = frozenset({14})
    lost: frozenset[int] = frozenset()
    nodes_by_call: tuple[tuple[int, ...], ...] = ()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        batch = list(messages)
        ids = list(super().push_messages(batch))
        self.node_of = {i: message.metadata.dst_node_id for i, message in zip(ids, batch, strict=True)}
        self.batch = dict(zip(ids, batch, strict=True))
        return [i if self.node_of[i] not in self.refused else None for i in ids]  # type: ignore[misc]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        wanted = [i for i in message_ids if self.node_of[i] not in self.silent]
        for message_id in wanted:
            if self.node_of[message_id] in self.lost:
                reply = Message(Error(code=5), reply_to=self.batch[message_id])
                reply.metadata.__dict__["_src_node_id"] = 1
                return [reply]
        return super().pull_messages(wanted)

    def get_node_ids(self) -> Iterable[int]:
        if not self.nodes_by_call:
            return super().get_node_ids()
        first, *rest = self.nodes_by_call
        self.nodes_by_call = tuple(rest) or (first,)
        return first


def make_grid() -> SilentGrid:
    return SilentGrid(app, {node_id: {} for node_id in range(11, 16)}, {})


def make_tasks(*node_ids: int) -> list[Message]:
    return [Message(RecordDict(), node_id, "train") for node_id in node_ids]


def test_every_node_is_received_failed_or_missing() -> None:
    # Prepare: 11 answers, 12 is silent, 13 raises, 14's message is refused, 15 is lost (the error comes from node 1).
    grid = make_grid()
    grid.lost = frozenset({15})
    handled: list[int] = []

    # Execute
    result = run_phase(
        grid,
        make_tasks(11, 12, 13, 14, 15),
        deadline_seconds=0.2,
        on_reply=lambda reply: handled.append(reply.metadata.src_node_id),
        poll_seconds=0.05,
    )

    # Assert
    assert result.received == (11,)
    assert handled == [11]
    assert result.failed == {
        13: "ValueError: bad data",
        14: "The grid refused the message.",
        15: "error code 5",
    }
    assert {node_id: grid.node_of[message_id] for node_id, message_id in result.missing.items()} == {12: 12}
    assert 0.2 <= result.seconds < 2.0


def test_phase_ends_as_soon_as_all_have_answered() -> None:
    start = time.monotonic()

    result = run_phase(
        make_grid(), make_tasks(11, 15), deadline_seconds=60, on_reply=lambda reply: None, poll_seconds=30
    )

    assert (result.received, result.missing) == ((11, 15), {})
    assert time.monotonic() - start < 10


def test_replies_are_dropped_one_by_one() -> None:
    # Prepare: a client app that counts how many handled replies are still alive while it makes the next one.
    handled: list[weakref.ref[Message]] = []
    alive: list[int] = []
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        gc.collect()
        alive.append(sum(1 for reference in handled if reference() is not None))
        return Message(RecordDict(), reply_to=message)

    grid = InProcessGrid(app, {11: {}, 12: {}, 13: {}}, {})

    # Execute
    run_phase(
        grid,
        make_tasks(11, 12, 13),
        deadline_seconds=None,
        on_reply=lambda reply: handled.append(weakref.ref(reply)),
        poll_seconds=0,
    )

    # Assert
    assert len(handled) == 3
    assert alive == [0, 0, 0]


def test_two_messages_to_one_node_are_refused() -> None:
    with pytest.raises(FleetError, match="at most one message to a node"):
        run_phase(make_grid(), make_tasks(11, 11), deadline_seconds=1, on_reply=lambda reply: None, poll_seconds=0)


def test_waits_until_enough_nodes_are_connected() -> None:
    grid = make_grid()
    grid.nodes_by_call = ((), (7,), (9, 7))

    assert wait_for_nodes(grid, 2, timeout_seconds=30, poll_seconds=0.01) == (7, 9)


def test_waiting_for_nodes_has_an_end() -> None:
    with pytest.raises(FleetError, match=r"5 nodes were connected after 0\.05 s; the run needs 6"):
        wait_for_nodes(make_grid(), 6, timeout_seconds=0.05, poll_seconds=0.01)


class FlakyGrid(InProcessGrid):
    """Loses nodes in the middle of a task, the given number of times each, and lets them back later."""

    def __init__(self, losses: dict[int, int], *, code: int = 5, away_for_polls: int = 0) -> None:
        super().__init__(app, {node_id: {} for node_id in range(11, 16)}, {})
        self.losses, self.code, self.away_for_polls = dict(losses), code, away_for_polls
        self.batch: dict[str, Message] = {}
        self.pushed: list[int] = []
        self.away: dict[int, int] = {}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        batch = list(messages)
        ids = list(super().push_messages(batch))
        self.batch |= dict(zip(ids, batch, strict=True))
        self.pushed += [message.metadata.dst_node_id for message in batch]
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        wanted = list(message_ids)
        for message_id in wanted:
            node_id = self.batch[message_id].metadata.dst_node_id
            if self.losses.get(node_id, 0):
                self.losses[node_id] -= 1
                self.away[node_id] = self.away_for_polls
                reply = Message(Error(code=self.code, reason="lost"), reply_to=self.batch[message_id])
                reply.metadata.__dict__["_src_node_id"] = 1
                return [reply]
        return super().pull_messages(wanted)

    def get_node_ids(self) -> Iterable[int]:
        present = [node_id for node_id in super().get_node_ids() if not self.away.get(node_id)]
        self.away = {node_id: polls - 1 for node_id, polls in self.away.items() if polls > 0}
        return present


def resending(attempts: int = 3, wait_seconds: float = 30.0) -> Resending:
    return Resending(
        attempts=attempts,
        wait_seconds=wait_seconds,
        message=lambda node_id, reason: Message(RecordDict(), node_id, "train"),
    )


@pytest.mark.parametrize("code", [3, 4, 5, 8])
def test_lost_device_gets_its_task_again_when_it_is_back(code: int) -> None:
    grid = FlakyGrid({12: 2}, code=code, away_for_polls=2)

    result = run_phase(
        grid,
        make_tasks(11, 12),
        deadline_seconds=None,
        on_reply=lambda reply: None,
        poll_seconds=0,
        resending=resending(),
    )

    assert (sorted(result.received), result.failed, result.resent) == ([11, 12], {}, 2)
    assert sorted(grid.pushed) == [11, 12, 12, 12]


@pytest.mark.parametrize(
    ("policy", "away_for_polls", "pushed"),
    [(resending(attempts=2), 0, [12, 12]), (resending(wait_seconds=0.2), 1000, [12]), (None, 0, [12])],
)
def test_device_that_stays_lost_has_failed(policy: Resending | None, away_for_polls: int, pushed: list[int]) -> None:
    grid = FlakyGrid({12: 9}, away_for_polls=away_for_polls)

    result = run_phase(
        grid,
        make_tasks(12),
        deadline_seconds=None,
        on_reply=lambda reply: None,
        poll_seconds=0,
        resending=policy,
    )

    assert (result.received, result.failed, result.missing) == ((), {12: "lost"}, {})
    assert grid.pushed == pushed


def test_error_of_the_client_itself_is_not_tried_again() -> None:
    grid = FlakyGrid({})

    result = run_phase(
        grid,
        make_tasks(13),
        deadline_seconds=None,
        on_reply=lambda reply: None,
        poll_seconds=0,
        resending=resending(),
    )

    assert (result.failed, grid.pushed) == ({13: "ValueError: bad data"}, [13])


def test_device_that_is_away_at_the_deadline_has_failed() -> None:
    result = run_phase(
        FlakyGrid({12: 9}, away_for_polls=1000),
        make_tasks(12),
        deadline_seconds=0.2,
        on_reply=lambda reply: None,
        poll_seconds=0,
        resending=resending(),
    )

    assert (result.failed, result.missing) == ({12: "lost"}, {})
    assert result.seconds < 10


def test_enough_answers_end_the_phase_and_the_rest_can_be_pulled_late() -> None:
    # Prepare
    grid = make_grid()
    first = run_phase(
        grid, make_tasks(11, 14, 15), deadline_seconds=None, on_reply=lambda reply: None, poll_seconds=0, enough=1
    )
    assert first.received == (11,)
    assert list(first.missing) == [15]  # 14's message was refused
    (late_id,) = first.missing.values()
    nodes = dict(grid.node_of)
    late: list[tuple[str, int]] = []

    # Execute
    grid.silent = frozenset()
    grid.node_of = nodes  # the fixture forgets older ids
    pull_late(grid, [late_id], lambda message_id, reply: late.append((message_id, reply.metadata.src_node_id)))
    pull_late(grid, [late_id], lambda message_id, reply: late.append((message_id, reply.metadata.src_node_id)))

    # Assert: once, and no more.
    assert late == [(late_id, 15)]


def test_late_answers_come_beside_those_of_the_phase() -> None:
    grid = FlakyGrid({})
    first = run_phase(
        grid, make_tasks(11, 12), deadline_seconds=None, on_reply=lambda reply: None, poll_seconds=0, enough=1
    )
    handled: list[int] = []
    late: list[int] = []

    second = run_phase(
        grid,
        make_tasks(14, 15),
        deadline_seconds=None,
        on_reply=lambda reply: handled.append(reply.metadata.src_node_id),
        poll_seconds=0,
        late=first.missing.values(),
        on_late=lambda message_id, reply: late.append(reply.metadata.src_node_id),
    )

    assert (late, sorted(handled), second.missing) == ([12], [14, 15], {})
