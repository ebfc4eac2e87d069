"""The process that Flower starts for a message: ``python forward.py MESSAGE.json ARRAYS.npz ANSWER.json``.

Prints nothing. The answer tells the reply, a digest of each of its arrays, and whether torch was imported.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import flwr.supernode.runtime.run_clientapp  # noqa: F401  what such a process imports anyway
import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from clients.app import app


def main(message_file: Path, arrays_file: Path, answer_file: Path) -> None:
    values = json.loads(message_file.read_text())
    TaskIdentity.task_id = 0
    TaskIdentity.run_id, TaskIdentity.node_id = values["run_id"], values["node_id"]
    with np.load(arrays_file, allow_pickle=False) as arrays:
        record = ArrayRecord({key: Array(arrays[key]) for key in arrays.files})
    content = RecordDict({"arrays": record, "config": ConfigRecord({"task": bytes.fromhex(values["task"])})})
    message = Message(content, values["node_id"], values["kind"])
    message.metadata.__dict__["_message_id"] = "1"
    context = Context(
        run_id=values["run_id"], node_id=values["node_id"], node_config=values["node_config"],
        state=RecordDict(), run_config=values["run_config"],
    )  # fmt: skip
    reply = app(message, context)
    answer = {
        "torch": "torch" in sys.modules,
        "config": {
            key: value.hex() for key, value in reply.content.config_records["config"].items() if type(value) is bytes
        },
        "arrays": {
            key: hashlib.sha256(array.numpy().tobytes()).hexdigest()
            for record in reply.content.array_records.values()
            for key, array in record.items()
        },
    }
    answer_file.write_text(json.dumps(answer))


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:]))
