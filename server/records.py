"""Reading what devices sent: bytes and arrays out of Flower's records, with nothing taken on trust."""

from __future__ import annotations

from flwr.app import Array, Message, RecordDict
from numpy import generic, ndarray
from numpy.typing import NDArray

from neuroflux_fl.errors import WireError


def content_bytes(content: RecordDict) -> int:
    """Bytes of arrays and configuration, as they travel; Flower's framing comes on top."""
    arrays = sum(len(array.data) for record in content.array_records.values() for array in record.values())
    values = sum(
        len(value)
        for record in content.config_records.values()
        for value in record.values()
        if isinstance(value, bytes)
    )
    return arrays + values


def read_bytes(message: Message, key: str) -> bytes:
    """The bytes under ``config[key]``.

    Raises:
        WireError: there are none.
    """
    record = message.content.config_records.get("config")
    value = None if record is None else record.get(key)
    if not isinstance(value, bytes):
        raise WireError(f"Record 'config' has {type(value).__name__} under {key!r} where bytes are due.")
    return value


def read_array(array: Array) -> NDArray[generic] | None:
    """The array, or None where the bytes are no array."""
    try:
        values = array.numpy()
    except Exception:  # a stranger's bytes: NumPy has a dozen ways to say that they are no array
        return None
    return values if isinstance(values, ndarray) else None  # an archive of arrays is none
