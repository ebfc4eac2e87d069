"""Who this device is: its place in the fleet, its budget and its folder, from Flower's node configuration."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from neuroflux_fl.errors import ConfigError
from neuroflux_fl.free_memory import available_memory_bytes
from neuroflux_fl.run_config import RunConfig, Value
from neuroflux_fl.sizes import parse_bytes

_FREE_SHARE = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """One device."""

    partition_id: int
    """Which share of the data it has."""
    partitions: int
    budget_bytes: int
    device_class: str
    folder: Path
    """For weights and caches, kept from round to round."""
    device: torch.device
    data: str = ""
    """Name or folder of its own data; empty where it takes its share of the run's."""
    metrics_address: str = ""
    """``HOST:PORT`` at which it serves its metrics; empty where it does not."""


def identify(node_config: Mapping[str, Value], config: RunConfig, *, run_id: int, node_id: int) -> Identity:
    """Read ``partition-id``, ``num-partitions``, ``memory-budget``, ``device-class``, ``state-folder``, ``data`` and
    ``metrics-address``.

    A simulated node that brings no budget gets one of the run's in turn; a real one, half of its free memory.

    Raises:
        ConfigError: a value has the wrong type.
        UsageError: the budget is not a size.
    """
    partition_id = _integer(node_config, "partition-id", 0)
    partitions = _integer(node_config, "num-partitions", 1)
    given = node_config.get("memory-budget")
    if given is not None:
        budget = parse_bytes(str(given))
    elif "partition-id" in node_config:
        budgets = config.budget_list()
        budget = budgets[partition_id % len(budgets)]
    else:
        budget = int(available_memory_bytes() * _FREE_SHARE)
    default_folder = Path(tempfile.gettempdir()) / "neuroflux-fl" / f"run-{run_id}" / f"node-{node_id}"
    return Identity(
        partition_id=partition_id,
        partitions=partitions,
        budget_bytes=budget,
        device_class=str(node_config.get("device-class", "unknown")),
        folder=Path(str(node_config.get("state-folder", default_folder))),
        data=str(node_config.get("data", "")),
        metrics_address=str(node_config.get("metrics-address", "")),
        device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
    )


def _integer(node_config: Mapping[str, Value], key: str, default: int) -> int:
    value = node_config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"Node configuration {key!r} is {value!r}: it must be a whole number.")
    return value
