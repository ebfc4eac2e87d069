"""The Flower ClientApp: unpacks messages for ``clients.device`` and packs its answers. Nothing else."""

from __future__ import annotations

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from clients.device import Device
from clients.identity import identify
from neuroflux_fl.errors import WireError
from neuroflux_fl.run_config import RunConfig
from neuroflux_fl.wire import EvaluateTask, TrainTask

app = ClientApp()


@app.query("capabilities")
def capabilities(message: Message, context: Context) -> Message:
    """Answer with ``config["capabilities"]``, encoded as ``protos/neuroflux.proto`` says."""
    record = ConfigRecord({"capabilities": _device(context).capabilities().to_bytes()})
    return Message(RecordDict({"config": record}), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the stage in ``config["task"]`` from ``arrays``; answer with ``config["report"]`` and ``arrays``."""
    task = TrainTask.from_bytes(_task_bytes(message))
    report, arrays = _device(context).train(task, _arrays(message))
    examples = max((update.examples for update in report.updates), default=0)
    content = RecordDict(
        {
            "arrays": ArrayRecord({key: Array(array) for key, array in arrays.items()}),
            "config": ConfigRecord({"report": report.to_bytes()}),
            "metrics": MetricRecord({"num-examples": examples}),
        }
    )
    return Message(content, reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Score the exits in ``config["task"]``; answer with ``config["report"]``."""
    task = EvaluateTask.from_bytes(_task_bytes(message))
    report = _device(context).evaluate(task, _arrays(message))
    return Message(RecordDict({"config": ConfigRecord({"report": report.to_bytes()})}), reply_to=message)


def _device(context: Context) -> Device:
    config = RunConfig.from_flat(context.run_config)
    return Device(config, identify(context.node_config, config, run_id=context.run_id, node_id=context.node_id))


def _task_bytes(message: Message) -> bytes:
    task = message.content.config_records["config"]["task"]
    if not isinstance(task, bytes):
        raise WireError(f"Task in message is {type(task).__name__}: it must be bytes.")
    return task


def _arrays(message: Message) -> dict[str, np.ndarray[tuple[int], np.dtype[np.float32]]]:
    """Take the arrays out of the message, so that they do not stay in memory beside the training."""
    record = message.content.pop("arrays", None)
    if not isinstance(record, ArrayRecord):
        return {}
    return {key: record.pop(key).numpy() for key in list(record)}
