"""The Flower ClientApp: takes messages apart and puts answers together; the device agent or this process works on them.

A new process imports this module for every message, so it imports no torch: where the node configuration names an
``agent-socket``, none is needed here.
"""

from __future__ import annotations

import logging

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from clients.request import Arrays, DeviceAnswer, DeviceRequest, agent_socket
from neuroflux_fl.errors import WireError

logger = logging.getLogger(__name__)

AGENT_WAIT_SECONDS = 30.0
"""How long an agent may be away before its work is done here: it may be restarting."""

app = ClientApp()


@app.query("capabilities")
def capabilities(message: Message, context: Context) -> Message:
    """Answer with ``config["capabilities"]``, encoded as ``protos/neuroflux.proto`` says."""
    answer = _answer("capabilities", context)
    return Message(RecordDict({"config": ConfigRecord({"capabilities": answer.content})}), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the stage in ``config["task"]`` from ``arrays``; answer with ``config["report"]`` and ``arrays``."""
    answer = _answer("train", context, _task_bytes(message), _arrays(message))
    content = RecordDict(
        {
            "arrays": ArrayRecord({key: Array(array) for key, array in answer.arrays.items()}),
            "config": ConfigRecord({"report": answer.content}),
            "metrics": MetricRecord({"num-examples": answer.examples}),
        }
    )
    return Message(content, reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Score the exits in ``config["task"]``; answer with ``config["report"]``."""
    answer = _answer("evaluate", context, _task_bytes(message), _arrays(message))
    return Message(RecordDict({"config": ConfigRecord({"report": answer.content})}), reply_to=message)


def _answer(kind: str, context: Context, task: bytes = b"", arrays: Arrays | None = None) -> DeviceAnswer:
    request = DeviceRequest(
        kind=kind,
        run_id=context.run_id,
        node_id=context.node_id,
        run_config=context.run_config,
        node_config=context.node_config,
        task=task,
        arrays=arrays or {},
    )
    socket = agent_socket(context.node_config)
    if socket is not None:
        from clients.agent_client import ask_agent

        answer = ask_agent(socket, request, wait_seconds=AGENT_WAIT_SECONDS)
        if answer is not None:
            return answer
        logger.warning("No device agent at %s: %s runs in the ClientApp's own process.", socket, request)
    from clients.process import prepare_process
    from clients.tasks import perform

    prepare_process()  # or training would overrun its budget with what the allocator keeps
    return perform(request)


def _task_bytes(message: Message) -> bytes:
    task = message.content.config_records["config"]["task"]
    if not isinstance(task, bytes):
        raise WireError(f"Task in message is {type(task).__name__}: it must be bytes.")
    return task


def _arrays(message: Message) -> Arrays:
    """Take the arrays out of the message, so that they do not stay in memory beside the training."""
    record = message.content.pop("arrays", None)
    if not isinstance(record, ArrayRecord):
        return {}
    return {key: record.pop(key).numpy() for key in list(record)}
