"""The round engine: send, poll, handle each reply as it comes and drop it, send again what was lost, stop in time."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

from flwr.app import Error, Message
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from neuroflux_fl.errors import FleetError
from neuroflux_fl.wire import PREFIX_NEEDED

_LOST = frozenset(
    {
        ErrorCode.MESSAGE_UNAVAILABLE,
        ErrorCode.REPLY_MESSAGE_UNAVAILABLE,
        ErrorCode.NODE_UNAVAILABLE,
        ErrorCode.CLIENT_APP_CRASHED,
    }
)
"""Errors after which the same task may well succeed."""
_SHORTEST_PAUSE = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Resending:
    """What is done for a device that was lost in the middle of its task: it gets the task again once it is back."""

    attempts: int
    """How often a task is sent at most, the first time included."""
    wait_seconds: float
    """How long a lost device is waited for."""
    message: Callable[[int, str], Message]
    """Makes the task's message to a node anew, given the node and the reason why it failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseResult:
    """How one phase went, by node id; every node that was sent a message is in exactly one of the three."""

    received: tuple[int, ...]
    """Nodes whose replies were handled, in the order of arrival."""
    failed: dict[int, str]
    """Nodes whose message came to an error, with the reason."""
    lost: frozenset[int]
    """Those of the failed that were lost, and for which the same message may yet succeed."""
    missing: dict[int, str]
    """Nodes that had not answered at the end, with the message id under which a late reply can be pulled."""
    resent: int
    """Messages sent again."""
    seconds: float


def run_phase(
    grid: Grid,
    messages: Iterable[Message],
    *,
    deadline_seconds: float | None,
    on_reply: Callable[[Message], None],
    poll_seconds: float,
    enough: int | None = None,
    resending: Resending | None = None,
    late: Collection[str] = (),
    on_late: Callable[[str, Message], None] | None = None,
) -> PhaseResult:
    """Send messages to distinct nodes and hand every good reply to ``on_reply``, one by one.

    Args:
        grid: where the nodes are.
        messages: at most one to a node.
        deadline_seconds: time from now after which replies are no longer waited for; None waits for all.
        on_reply: gets the reply; its arrays are freed when it returns, unless it keeps them. What it raises ends the
            phase.
        poll_seconds: pause after a poll that brought nothing: 0 for an in-process grid, which waits by itself, and
            about 3 for a SuperLink.
        enough: good replies after which the others are no longer waited for; None waits for all.
        resending: what is done for lost devices; None counts them as failed at once.
        late: ids of messages of earlier phases that are still unanswered; they are not waited for.
        on_late: gets the id and the reply, which may be an error, to one of these.

    Raises:
        FleetError: two messages go to the same node.
    """
    phase = _Phase(grid, resending)
    start = time.monotonic()
    end = None if deadline_seconds is None else start + deadline_seconds
    phase.push(messages)
    awaited_late = set(late)
    while phase.waiting or phase.away:
        quiet = True
        for reply in grid.pull_messages([*phase.waiting, *awaited_late]):
            quiet = False
            message_id = reply.metadata.reply_to_message_id
            if message_id in awaited_late:
                awaited_late.discard(message_id)
                if on_late is not None:
                    on_late(message_id, reply)
            elif message_id in phase.waiting:
                # A lost node's error reply comes from node 1: only the message it replies to tells whose it is.
                node_id = phase.waiting.pop(message_id)
                if reply.has_error():
                    phase.fail(node_id, reply.error)
                else:
                    on_reply(reply)
                    phase.received.append(node_id)
            del reply  # or its arrays would stay while the next reply is made
        now = time.monotonic()
        if (end is not None and now >= end) or (enough is not None and len(phase.received) >= enough):
            break
        phase.send_again(now)
        if quiet and (phase.waiting or phase.away):
            pause = max(poll_seconds, _SHORTEST_PAUSE) if phase.away else poll_seconds
            time.sleep(pause if end is None else min(pause, end - now))
    for node_id, (_, reason) in phase.away.items():
        phase.failed[node_id] = reason
    return PhaseResult(
        received=tuple(phase.received),
        failed=phase.failed,
        lost=frozenset(phase.failed.keys() & phase.lost),
        missing={node_id: message_id for message_id, node_id in phase.waiting.items()},
        resent=phase.resent,
        seconds=time.monotonic() - start,
    )


def pull_late(grid: Grid, late: Collection[str], on_late: Callable[[str, Message], None]) -> None:
    """Hand over what has come to messages of earlier phases; does not wait."""
    for reply in grid.pull_messages(list(late)) if late else ():
        if reply.metadata.reply_to_message_id in late:
            on_late(reply.metadata.reply_to_message_id, reply)


def wait_for_nodes(grid: Grid, minimum: int, timeout_seconds: float, poll_seconds: float = 1.0) -> tuple[int, ...]:
    """Ids of the connected nodes, in rising order, as soon as there are at least ``minimum``.

    Raises:
        FleetError: there were fewer when the time was over.
    """
    end = time.monotonic() + timeout_seconds
    while True:
        node_ids = tuple(sorted(grid.get_node_ids()))
        if len(node_ids) >= minimum:
            return node_ids
        left = end - time.monotonic()
        if left <= 0:
            raise FleetError(
                f"{len(node_ids)} nodes were connected after {timeout_seconds:g} s; the run needs {minimum}. "
                "Start more devices, lower min-nodes, or allow more time with wait-seconds."
            )
        time.sleep(min(poll_seconds, left))


@dataclass(slots=True)
class _Phase:
    grid: Grid
    resending: Resending | None
    waiting: dict[str, int] = field(default_factory=dict)
    """Node id by id of the message that it has to answer."""
    away: dict[int, tuple[float, str]] = field(default_factory=dict)
    """Lost nodes that may come back: until when, and how they were lost."""
    received: list[int] = field(default_factory=list)
    failed: dict[int, str] = field(default_factory=dict)
    lost: set[int] = field(default_factory=set)
    """Nodes whose last error may not come again."""
    attempts: dict[int, int] = field(default_factory=dict)
    resent: int = 0

    def push(self, messages: Iterable[Message]) -> None:
        batch = list(messages)
        node_ids = [message.metadata.dst_node_id for message in batch]
        if len(set(node_ids)) != len(node_ids):
            raise FleetError("A phase sends at most one message to a node; two messages go to the same one.")
        # Flower's grids return None, or nothing at all, for refused messages: match by the id written to the message.
        accepted = {message_id for message_id in self.grid.push_messages(batch) if message_id}
        for message in batch:
            node_id = message.metadata.dst_node_id
            self.attempts[node_id] = self.attempts.get(node_id, 0) + 1
            if message.metadata.message_id in accepted:
                self.waiting[message.metadata.message_id] = node_id
            else:
                self.failed[node_id] = "The grid refused the message."

    def fail(self, node_id: int, error: Error) -> None:
        reason = error.reason or f"error code {error.code}"
        may_succeed = _may_succeed(error)
        (self.lost.add if may_succeed else self.lost.discard)(node_id)
        if self.resending is None or self.attempts[node_id] >= self.resending.attempts or not may_succeed:
            self.failed[node_id] = reason
        else:
            self.away[node_id] = (time.monotonic() + self.resending.wait_seconds, reason)

    def send_again(self, now: float) -> None:
        if not self.away or self.resending is None:
            return
        connected = set(self.grid.get_node_ids())
        for node_id, (until, reason) in list(self.away.items()):
            if node_id in connected:
                del self.away[node_id]
                self.resent += 1
                self.push([self.resending.message(node_id, reason)])
            elif now >= until:
                del self.away[node_id]
                self.failed[node_id] = reason


def _may_succeed(error: Error) -> bool:
    """Whether the same task may succeed when it is sent again."""
    return error.code in _LOST or PREFIX_NEEDED in (error.reason or "")
