"""The round engine: send, poll, handle each reply as it comes and drop it, stop at the deadline."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from flwr.app import Message
from flwr.serverapp import Grid

from neuroflux_fl.errors import FleetError


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseResult:
    """How one phase went, by node id; every node that was sent a message is in exactly one of the three."""

    received: tuple[int, ...]
    """Nodes whose replies were handled, in the order of arrival."""
    failed: dict[int, str]
    """Nodes whose message came to an error, with the reason."""
    missing: dict[int, str]
    """Nodes that had not answered at the deadline, with the message id under which a late reply can be pulled."""
    seconds: float


def run_phase(
    grid: Grid,
    messages: Iterable[Message],
    *,
    deadline_seconds: float | None,
    on_reply: Callable[[Message], None],
    poll_seconds: float,
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

    Raises:
        FleetError: two messages go to the same node.
    """
    start = time.monotonic()
    end = None if deadline_seconds is None else start + deadline_seconds
    waiting, failed = _push(grid, messages)
    received: list[int] = []
    while waiting:
        quiet = True
        for reply in grid.pull_messages(list(waiting)):
            quiet = False
            # A lost node's error reply comes from node 1: only the message it replies to tells whose it is.
            node_id = waiting.pop(reply.metadata.reply_to_message_id, None)
            if node_id is None:
                continue  # a reply that nobody asked for
            if reply.has_error():
                failed[node_id] = reply.error.reason or f"error code {reply.error.code}"
            else:
                on_reply(reply)
                received.append(node_id)
            del reply  # or its arrays would stay while the next reply is made
        now = time.monotonic()
        if end is not None and now >= end:
            break
        if quiet and waiting:
            time.sleep(poll_seconds if end is None else min(poll_seconds, end - now))
    missing = {node_id: message_id for message_id, node_id in waiting.items()}
    return PhaseResult(received=tuple(received), failed=failed, missing=missing, seconds=time.monotonic() - start)


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
                "Start more devices, or lower the minimum."
            )
        time.sleep(min(poll_seconds, left))


def require_quorum(received: int, quorum: int, round: int) -> None:
    """Raise FleetError when fewer than ``quorum`` good replies came in ``round``."""
    if received < quorum:
        raise FleetError(
            f"Round {round} got {received} good replies; the quorum is {quorum}. "
            "See the failures logged above, allow a longer deadline, or lower the quorum."
        )


def _push(grid: Grid, messages: Iterable[Message]) -> tuple[dict[str, int], dict[int, str]]:
    """Message id to node id of what the grid took, and the nodes whose message it refused."""
    batch = list(messages)
    node_ids = [message.metadata.dst_node_id for message in batch]
    if len(set(node_ids)) != len(node_ids):
        raise FleetError("A phase sends at most one message to a node; two messages go to the same one.")
    # Flower's grids return None, or nothing at all, for refused messages: match by the id written to the message.
    accepted = {message_id for message_id in grid.push_messages(batch) if message_id}
    waiting: dict[str, int] = {}
    failed: dict[int, str] = {}
    for message in batch:
        if message.metadata.message_id in accepted:
            waiting[message.metadata.message_id] = message.metadata.dst_node_id
        else:
            failed[message.metadata.dst_node_id] = "The grid refused the message."
    return waiting, failed
