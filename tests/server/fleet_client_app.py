"""A small client app for the grid tests; worker processes import it by name."""

from __future__ import annotations

import os
import signal

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()
NOT_AN_APP = "text"
initialized: list[int] = []


def initialize() -> None:
    """Initializer of worker processes."""
    initialized.append(os.getpid())


def fail_to_initialize() -> None:
    """An initializer with a fault."""
    raise RuntimeError("no data here")


@app.train()
def train(message: Message, context: Context) -> Message:
    """Count this node's messages in its Context and tell what the node is."""
    seen = int(str(context.state.config_records["seen"]["count"])) + 1 if "seen" in context.state else 1
    context.state["seen"] = ConfigRecord({"count": seen})
    message.content.config_records["task"]["touched"] = True
    answer = ConfigRecord(
        {
            "node": context.node_id,
            "name": str(context.node_config["name"]),
            "scale": float(context.run_config["scale"]),
            "seen": seen,
            "process": os.getpid(),
            "initialized": len(initialized),
        }
    )
    return Message(RecordDict({"answer": answer}), reply_to=message)


@app.train("fail")
def fail(message: Message, context: Context) -> Message:
    """A client with a fault."""
    raise ValueError("two\nlines")


@app.train("die")
def die(message: Message, context: Context) -> Message:
    """A client that the kernel kills."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


@app.train("echo")
def echo(message: Message, context: Context) -> Message:
    """Send back the arrays that came."""
    return Message(message.content, reply_to=message)


@app.evaluate()
def answer_another(message: Message, context: Context) -> Message:
    """A client that does not reply to the message it got."""
    reply = Message(RecordDict(), reply_to=message)
    reply.metadata.__dict__["_reply_to_message_id"] = "another"
    return reply
