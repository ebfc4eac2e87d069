"""What crosses the network: messages as protobuf, weights as one packed float32 array a unit."""

from neuroflux_fl.packing import Entry, PackLayout, unit_key
from neuroflux_fl.plan import Block, Plan, Window
from neuroflux_fl.wire.messages import (
    MAX_MESSAGE_BYTES,
    PREFIX_NEEDED,
    PROTOCOL_VERSION,
    Capabilities,
    EvaluateReport,
    EvaluateTask,
    TrainReport,
    TrainTask,
)
from neuroflux_fl.wire.parts import BlockReport, ExitScore, Seconds, UnitMemory, UnitUpdate

__all__ = [
    "PREFIX_NEEDED",
    "MAX_MESSAGE_BYTES",
    "PROTOCOL_VERSION",
    "Block",
    "BlockReport",
    "Capabilities",
    "Entry",
    "EvaluateReport",
    "EvaluateTask",
    "ExitScore",
    "PackLayout",
    "Plan",
    "Seconds",
    "TrainReport",
    "TrainTask",
    "UnitMemory",
    "UnitUpdate",
    "Window",
    "unit_key",
]
