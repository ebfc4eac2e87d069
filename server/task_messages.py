"""Messages that carry a task and the weights it needs: the prefix only to devices that lack that version of it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from numpy.typing import NDArray

from neuroflux_fl.local_network import prefix_version, unit_digest
from neuroflux_fl.packing import PackLayout, unit_key
from neuroflux_fl.wire import EvaluateTask, TrainTask

Packed = NDArray[np.float32]


class TaskMessages:
    """Makes messages from one state of the global weights.

    All messages share the same immutable bytes of a unit: memory is O(model), not O(cohort).

    Args:
        arrays: global packed array of every unit.
        layouts: layout of every unit.
        ttl: seconds after which Flower forgets a message; None leaves it to Flower.
    """

    def __init__(self, arrays: Mapping[int, Packed], layouts: Mapping[int, PackLayout], ttl: float | None) -> None:
        self._arrays = arrays
        self._layouts = layouts
        self._ttl = ttl
        self._on_the_wire: dict[int, Array] = {}
        self._digests: dict[int, str] = {}

    def prefix_version(self, units: int) -> str:
        """Version of the first ``units`` units."""
        for unit in range(units):
            if unit not in self._digests:
                self._digests[unit] = unit_digest([self._arrays[unit][: self._layouts[unit].size_without_head]])
        return prefix_version(self._digests[unit] for unit in range(units))

    def make(self, kind: str, task: TrainTask | EvaluateTask, node_id: int) -> Message:
        """The message with the task, its units, and the prefix if the task says so."""
        units = range(0 if task.sends_prefix else task.first_unit, task.last_unit + 1)
        for unit in units:
            if unit not in self._on_the_wire:
                self._on_the_wire[unit] = Array(self._arrays[unit])
        record = ArrayRecord({unit_key(unit): self._on_the_wire[unit] for unit in units})
        content = RecordDict({"arrays": record, "config": ConfigRecord({"task": task.to_bytes()})})
        return Message(content, node_id, kind, group_id=str(task.round), ttl=self._ttl)
