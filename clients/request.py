"""What the ClientApp asks and what it is answered, whichever process does the work. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from neuroflux_fl.errors import ConfigError

Value = bool | int | float | str
Arrays = dict[str, NDArray[Any]]
"""Packed arrays by key. Whether they fit the model is found by who works on them."""

KINDS = ("capabilities", "train", "evaluate")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRequest:
    """One message for one device in one run."""

    kind: str
    """One of ``KINDS``."""
    run_id: int
    node_id: int
    run_config: Mapping[str, Value]
    """Flat, as Flower gives it."""
    node_config: Mapping[str, Value]
    task: bytes = b""
    """A TrainTask or an EvaluateTask; empty for capabilities."""
    arrays: Arrays = field(default_factory=dict)
    """Belongs to who works on the request, and may be emptied."""

    def __str__(self) -> str:
        return f"{self.kind} (run {self.run_id}, node {self.node_id})"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceAnswer:
    """What came of a request."""

    content: bytes
    """Capabilities, TrainReport or EvaluateReport."""
    examples: int = 0
    """Training examples of the largest update."""
    arrays: Arrays = field(default_factory=dict)


def agent_socket(node_config: Mapping[str, Value]) -> Path | None:
    """The socket of the device's agent (key ``agent-socket``), or None where it has no agent.

    Raises:
        ConfigError: the value is not a path.
    """
    value = node_config.get("agent-socket")
    if value is None:
        return None
    if not isinstance(value, str) or not value:
        raise ConfigError(f"Node configuration 'agent-socket' is {value!r}: it must be the path of a Unix socket.")
    return Path(value)
