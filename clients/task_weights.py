"""The weights of a task: checked and stored as they come, coded as they go."""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuroflux_fl.errors import WireError
from neuroflux_fl.packing import unit_key
from neuroflux_fl.unit_store import UnitStore
from neuroflux_fl.update_codec import coding_error, decode_update, encode_update
from neuroflux_fl.wire import PREFIX_NEEDED, EvaluateTask, TrainTask, UnitUpdate

Arrays = dict[str, NDArray[np.float32]]


def receive_weights(
    store: UnitStore,
    task: TrainTask | EvaluateTask,
    arrays: Arrays,
    *,
    finished: Container[int] = (),
    copies: UnitStore | None = None,
) -> None:
    """Store what came with a task.

    Args:
        store: of the device.
        task: units and prefix that it is for.
        arrays: packed, by unit; emptied.
        finished: units that an interrupted attempt has trained already, and that are left as they are.
        copies: takes the task's units as well.

    Raises:
        WireError: a unit of the task is missing or does not fit the model, or the prefix is not on this device.
    """
    units = len(store.network)
    if task.last_unit >= units:
        raise WireError(f"Task is for unit {task.last_unit}; the model has units 0 to {units - 1}.")
    for unit in range(task.last_unit + 1):
        array = arrays.pop(unit_key(unit), None)
        if array is not None:
            size = store.network.layout(unit).size_with_head
            if array.dtype != np.float32 or array.shape != (size,):
                raise WireError(f"Array of unit {unit} is {array.dtype} {array.shape}; needed: float32 ({size},).")
            if unit not in finished:
                store.write(unit, array)
            if copies is not None and unit >= task.first_unit:
                copies.write(unit, array)
        elif unit >= task.first_unit:
            raise WireError(
                f"Task for units {task.first_unit} to {task.last_unit} came without the array of unit {unit}."
            )
    if any(not store.holds(unit) for unit in range(task.first_unit)):
        raise WireError(f"Prefix of {task.first_unit} units is not on this device: {PREFIX_NEEDED}.")
    if store.prefix_version(task.first_unit) != task.prefix_version:
        raise WireError(f"Prefix of {task.first_unit} units is at another version on this device: {PREFIX_NEEDED}.")


def coded_updates(
    updates: Iterable[UnitUpdate], store: UnitStore, received: UnitStore | None, precision: str
) -> tuple[dict[str, NDArray[Any]], float]:
    """Packed arrays of the trained units, coded unit by unit, and the largest coding error.

    ``received`` has the units as they came; None where nothing is coded.
    """
    arrays: dict[str, NDArray[Any]] = {}
    largest = 0.0
    for update in updates:
        layout = store.network.layout(update.unit)
        packed = store.read(update.unit)[: layout.size(update.has_head)]
        if received is None:
            arrays[unit_key(update.unit)] = packed
            continue
        base = received.read(update.unit)
        coded = encode_update(packed, base, precision)
        largest = max(largest, coding_error(packed, decode_update(coded, base, len(packed), precision), base))
        arrays[unit_key(update.unit)] = coded
    return arrays, largest
