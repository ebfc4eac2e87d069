"""Requests and answers as streams of small messages: the two sides of ``protos/agent.proto``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clients import agent_pb2 as pb
from clients.request import KINDS, Arrays, DeviceAnswer, DeviceRequest, Value
from neuroflux_fl import errors
from neuroflux_fl.errors import FleetError, NeurofluxError, WireError

AGENT_PROTOCOL_VERSION = 1
SERVICE = "neuroflux.agent.v1.DeviceAgent"
PART_BYTES = 1024**2
_NUMBERS = "fiub"
_MAX_LINE = 500


def request_to_parts(request: DeviceRequest) -> Iterator[pb.Request]:
    """Header, then arrays in parts; the arrays stay as they are, so that the request can be sent again.

    Raises:
        WireError: an array that holds no numbers.
    """
    for name, array in request.arrays.items():
        if array.dtype.kind not in _NUMBERS:
            raise WireError(f"Array {name!r} is of type {array.dtype}: only numbers are sent.")
    header = pb.Request(
        header=pb.Header(
            protocol_version=AGENT_PROTOCOL_VERSION,
            kind=request.kind,
            run_id=request.run_id,
            node_id=request.node_id,
            run_config=_to_scalars(request.run_config),
            node_config=_to_scalars(request.node_config),
            task=request.task,
            arrays=len(request.arrays),
        )
    )
    return chain([header], (pb.Request(array=part) for part in _array_parts(request.arrays)))


def request_from_parts(parts: Iterator[pb.Request]) -> DeviceRequest:
    """Read a whole request.

    Raises:
        WireError: another protocol version, an unknown kind, or parts that make no request.
    """
    header = next(parts, pb.Request()).header
    check_version("The ClientApp", header.protocol_version)
    if header.kind not in KINDS:
        raise WireError(f"Request is of kind {header.kind!r}: this agent knows {', '.join(KINDS)}.")
    return DeviceRequest(
        kind=header.kind,
        run_id=header.run_id,
        node_id=header.node_id,
        run_config=_from_scalars(header.run_config),
        node_config=_from_scalars(header.node_config),
        task=header.task,
        arrays=_read_arrays((part.array for part in parts), header.arrays),
    )


def answer_to_parts(answer: DeviceAnswer) -> Iterator[pb.Reply]:
    """Result, then arrays in parts."""
    result = pb.Result(content=answer.content, num_examples=answer.examples, arrays=len(answer.arrays))
    return chain([pb.Reply(result=result)], (pb.Reply(array=part) for part in _array_parts(answer.arrays)))


def failure_to_parts(error: Exception) -> Iterator[pb.Reply]:
    """An error in one line."""
    line = " ".join(str(error).split())[:_MAX_LINE]
    return iter([pb.Reply(failure=pb.Failure(type=type(error).__name__, message=line))])


def answer_from_parts(parts: Iterator[pb.Reply]) -> DeviceAnswer:
    """Read a whole answer.

    Raises:
        NeurofluxError: what the agent reports, as the class that it was there; FleetError for any other class.
        WireError: parts that make no answer.
    """
    first = next(parts, pb.Reply())
    if first.HasField("failure"):
        raise _error_of(first.failure)
    if not first.HasField("result"):
        raise WireError("The device agent's answer has no result: install one release for agent and ClientApp.")
    return DeviceAnswer(
        content=first.result.content,
        examples=first.result.num_examples,
        arrays=_read_arrays((part.array for part in parts), first.result.arrays),
    )


def check_version(side: str, version: int) -> None:
    """Raise WireError where ``side`` speaks another version than this process."""
    if version != AGENT_PROTOCOL_VERSION:
        raise WireError(
            f"{side} speaks agent protocol {version}, this side {AGENT_PROTOCOL_VERSION}: "
            "restart the device agent, so that both are of the installed release."
        )


def _error_of(failure: pb.Failure) -> NeurofluxError:
    kind = getattr(errors, failure.type, None)
    if isinstance(kind, type) and issubclass(kind, NeurofluxError):
        return kind(failure.message)
    return FleetError(f"Device agent failed with {failure.type}: {failure.message}")


def _to_scalars(values: Mapping[str, Value]) -> dict[str, pb.Scalar]:
    return {key: _to_scalar(value) for key, value in values.items()}


def _to_scalar(value: Value) -> pb.Scalar:
    if isinstance(value, bool):
        return pb.Scalar(boolean=value)
    if isinstance(value, int):
        return pb.Scalar(integer=value)
    if isinstance(value, float):
        return pb.Scalar(number=value)
    return pb.Scalar(text=value)


def _from_scalars(scalars: Mapping[str, pb.Scalar]) -> dict[str, Value]:
    return {key: _from_scalar(key, scalar) for key, scalar in scalars.items()}


def _from_scalar(key: str, scalar: pb.Scalar) -> Value:
    kind = scalar.WhichOneof("value")
    if kind is None:
        raise WireError(f"Configuration key {key!r} came without a value.")
    value: Value = getattr(scalar, kind)
    return value


def _array_parts(arrays: Mapping[str, NDArray[Any]]) -> Iterator[pb.ArrayPart]:
    for name, array in arrays.items():
        values = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        part = pb.ArrayPart(name=name, dtype=array.dtype.str, shape=array.shape)
        for start in range(0, max(1, values.size), PART_BYTES):
            part.data = values[start : start + PART_BYTES].tobytes()
            yield part
            part = pb.ArrayPart()


def _read_arrays(parts: Iterable[pb.ArrayPart], count: int) -> Arrays:
    arrays: Arrays = {}
    values = np.empty(0, np.uint8)
    filled = 0
    for part in parts:
        if part.name:
            _check_full(filled, values.size)
            array = _empty_array(part)
            arrays[part.name] = array
            values, filled = array.reshape(-1).view(np.uint8), 0
        end = filled + len(part.data)
        if end > values.size:
            raise WireError(f"Array of {values.size} bytes came with {end} or more.")
        values[filled:end] = np.frombuffer(part.data, np.uint8)
        filled = end
    _check_full(filled, values.size)
    if len(arrays) != count:
        raise WireError(f"{len(arrays)} arrays came where {count} were announced.")
    return arrays


def _empty_array(part: pb.ArrayPart) -> NDArray[Any]:
    """Room for the array that ``part`` announces."""
    try:
        dtype = np.dtype(part.dtype)
        if dtype.kind in _NUMBERS and math.prod(part.shape) * dtype.itemsize < 2**40:
            return np.empty(tuple(part.shape), dtype)
    except (TypeError, ValueError, MemoryError):
        pass
    raise WireError(f"Array {part.name!r} of type {part.dtype!r} and shape {list(part.shape)} cannot be held.")


def _check_full(filled: int, size: int) -> None:
    if filled != size:
        raise WireError(f"Array of {size} bytes came with {filled}.")
