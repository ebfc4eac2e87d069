"""What a SuperNode's log says about its connection: Flower tells it nowhere else."""

from __future__ import annotations

import re
from dataclasses import dataclass

_CONNECTED = re.compile(r"SuperNode ID: (\d+)")
_RECEIVING = re.compile(r"Receiving: (\S+) message")
_EVENTS = re.compile(
    r"SuperNode ID: \d+|Connection attempt failed|Connection successful|Receiving: \S+ message|Sent successfully"
    r"|Ignoring reply|Failed to (?:send|receive)"
)
_NOT_ADMITTED = ("[code: 2004]", "Failed to activate SuperNode")


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """Where a SuperNode stands."""

    node_id: int | None = None
    """As the server knows it; None before it has let the device in."""
    server_answers: bool = True
    """Whether the last call came through; one that does not is repeated by Flower."""
    working_on: str = ""
    """Kind of the message that it has and not yet answered."""


def read_connection(log: str) -> Connection:
    """The state after the last event in what one SuperNode has logged; the log may lack its beginning."""
    node_id: int | None = None
    answers, working_on = True, ""
    for found in _EVENTS.finditer(log):
        event = found.group()
        if match := _CONNECTED.fullmatch(event):
            node_id = int(match.group(1))
        elif match := _RECEIVING.fullmatch(event):
            working_on = match.group(1)
        elif event.startswith(("Sent", "Ignoring", "Failed")):
            working_on = ""
        answers = event != "Connection attempt failed"
    return Connection(node_id=node_id, server_answers=answers, working_on=working_on)


def refused(log: str) -> bool:
    """Whether the server answered and did not let the device in."""
    return any(sign in log for sign in _NOT_ADMITTED)


def port_taken(log: str) -> bool:
    """Whether another program has the port for the device's own processes."""
    return "address already in use" in log or "Runtime HTTP API failed to start" in log


def key_unusable(log: str) -> bool:
    """Whether the device's key is none that Flower can use."""
    return "Exit Code: 302" in log


def other_release(log: str) -> bool:
    """Whether server and device have releases of Flower that do not go together."""
    return "Exit Code: 606" in log
