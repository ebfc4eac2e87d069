"""Logs as Flower 1.41 wrote them, and what they mean."""

from __future__ import annotations

import pytest

from clients.supernode_log import Connection, key_unusable, other_release, port_taken, read_connection, refused

START = """\x1b[92mINFO \x1b[0m:      Starting Flower SuperNode
INFO:     Uvicorn running on http://127.0.0.1:19094 (Press CTRL+C to quit)
"""
JOINED = START + "\x1b[92mINFO \x1b[0m:      SuperNode ID: 10334900820533097945\n"
AWAY = "\x1b[93mWARNING \x1b[0m:   Connection attempt failed, retrying in 6.24 seconds\n"
BACK = "\x1b[92mINFO \x1b[0m:      Connection successful after 13.01 seconds and 6 tries.\n"
TASK = "\x1b[92mINFO \x1b[0m:      Receiving: train message (ID: 8f2d)\n"
SENT = "\x1b[92mINFO \x1b[0m:      Sent successfully\n"
REFUSED = """\x1b[91mERROR \x1b[0m:     Exit Code: 305
Failed to initialize the connection to the SuperLink.
[code: 2004] Failed to activate SuperNode.
The SuperNode could not establish a connection to the SuperLink.
"""
NODE = 10334900820533097945


@pytest.mark.parametrize(
    ("log", "connection"),
    [
        ("", Connection()),
        (START, Connection()),
        (START + AWAY, Connection(server_answers=False)),
        (JOINED, Connection(node_id=NODE)),
        (JOINED + TASK, Connection(node_id=NODE, working_on="train")),
        (JOINED + TASK + AWAY, Connection(node_id=NODE, server_answers=False, working_on="train")),
        (JOINED + TASK + AWAY + BACK + SENT, Connection(node_id=NODE)),
        (TASK + SENT + TASK, Connection(working_on="train")),
    ],
)
def test_where_it_stands(log: str, connection: Connection) -> None:
    assert read_connection(log) == connection


def test_reasons() -> None:
    assert refused(START + REFUSED)
    assert not refused(JOINED)
    assert port_taken("[Errno 98] error while attempting to bind on address ('127.0.0.1', 1): address already in use")
    assert key_unusable("Exit Code: 302\nUnable to parse the private key file.")
    assert other_release("Exit Code: 606")
    assert not any(reason(JOINED + AWAY) for reason in (refused, port_taken, key_unusable, other_release))
