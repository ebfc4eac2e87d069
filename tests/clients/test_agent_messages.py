"""Requests and answers survive the way through the parts that they are sent in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from clients import agent_messages
from clients import agent_pb2 as pb
from clients.agent_messages import (
    PART_BYTES,
    answer_from_parts,
    answer_to_parts,
    failure_to_parts,
    request_from_parts,
    request_to_parts,
)
from clients.request import DeviceAnswer, DeviceRequest
from neuroflux_fl.errors import FleetError, NeurofluxError, StorageError, WireError

REQUEST = DeviceRequest(
    kind="train",
    run_id=2**64 - 1,
    node_id=2**63 + 5,
    run_config={"model": "vgg11", "width": 1.0, "seed": -3, "server-tests": False, "empty": ""},
    node_config={"partition-id": 0},
    task=b"\x00task",
    arrays={
        "unit-000": np.arange(3 * PART_BYTES // 8, dtype=np.float32),
        "unit-001": np.zeros(0, np.float32),
        "unit-002": np.array(7, np.int8),
        "unit-003": np.arange(6, dtype=np.float16).reshape(2, 3)[:, ::2],
    },
)


def test_request_comes_as_it_was_sent() -> None:
    parts = list(request_to_parts(REQUEST))

    read = request_from_parts(iter(parts))

    assert max(part.ByteSize() for part in parts) < PART_BYTES + 100
    assert len(parts) == 1 + 2 + 3
    assert (read.kind, read.run_id, read.node_id, read.task) == ("train", 2**64 - 1, 2**63 + 5, b"\x00task")
    assert read.run_config == REQUEST.run_config
    assert [type(value) for value in read.run_config.values()] == [
        type(REQUEST.run_config[key]) for key in read.run_config
    ]
    assert list(read.arrays) == list(REQUEST.arrays)
    for key, array in REQUEST.arrays.items():
        assert read.arrays[key].dtype == array.dtype
        np.testing.assert_array_equal(read.arrays[key], array, strict=True)
        assert read.arrays[key].flags.writeable


def test_answer_comes_as_it_was_sent() -> None:
    answer = DeviceAnswer(content=b"report", examples=12, arrays={"unit-004": np.ones(5, np.float32)})

    read = answer_from_parts(answer_to_parts(answer))

    assert (read.content, read.examples) == (b"report", 12)
    np.testing.assert_array_equal(read.arrays["unit-004"], np.ones(5, np.float32), strict=True)


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (WireError("Prefix is\nnot here."), WireError, "Prefix is not here."),
        (StorageError("Disk is full."), StorageError, "Disk is full."),
        (KeyError("x"), FleetError, "Device agent failed with KeyError: 'x'"),
        # A name in the module of errors that is no error of ours.
        (type("annotations", (Exception,), {})("y"), FleetError, "Device agent failed with annotations: y"),
    ],
)
def test_failure_is_raised_as_what_it_was(error: Exception, kind: type[NeurofluxError], message: str) -> None:
    with pytest.raises(NeurofluxError) as caught:
        answer_from_parts(failure_to_parts(error))

    assert (type(caught.value), str(caught.value)) == (kind, message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda parts: parts.pop(), "2 arrays came where 3 were announced"),
        (lambda parts: parts.pop(2), "Array of 1572864 bytes came with 1048576"),
        (lambda parts: parts.insert(2, parts[2]), "Array of 1572864 bytes came with 2097152 or more"),
        (lambda parts: parts.clear(), "speaks agent protocol 0"),
        (lambda parts: setattr(parts[0].header, "kind", "dance"), "kind 'dance'"),
        (lambda parts: parts[0].header.run_config["bad"].Clear(), "'bad' came without a value"),
        (lambda parts: setattr(parts[1].array, "dtype", "O"), "of type 'O' .* cannot be held"),
        (lambda parts: setattr(parts[1].array, "dtype", "nonsense"), "cannot be held"),
        (lambda parts: parts[1].array.shape.append(2**60), "cannot be held"),
    ],
)
def test_parts_that_make_no_request_are_refused(change: Callable[[Any], Any], message: str) -> None:
    arrays = {key: REQUEST.arrays[key] for key in ("unit-000", "unit-001", "unit-002")}
    parts = list(request_to_parts(DeviceRequest(kind="train", run_id=1, node_id=1, run_config={}, node_config={})))
    parts[0].header.arrays = len(arrays)
    parts += list(answer_parts_as_requests(arrays))
    change(parts)

    with pytest.raises(WireError, match=message):
        request_from_parts(iter(parts))


def answer_parts_as_requests(arrays: dict[str, Any]) -> Any:
    for reply in list(answer_to_parts(DeviceAnswer(content=b"", arrays=arrays)))[1:]:
        yield pb.Request(array=reply.array)


def test_array_of_texts_is_not_sent() -> None:
    request = DeviceRequest(
        kind="train", run_id=1, node_id=1, run_config={}, node_config={}, arrays={"unit-000": np.array(["text"])}
    )

    with pytest.raises(WireError, match="'unit-000' is of type <U4: only numbers are sent"):
        request_to_parts(request)


def test_other_protocol_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = list(request_to_parts(REQUEST))
    monkeypatch.setattr(agent_messages, "AGENT_PROTOCOL_VERSION", 2)

    with pytest.raises(WireError, match="The ClientApp speaks agent protocol 1, this side 2: restart the device agent"):
        request_from_parts(iter(parts))


def test_answer_without_a_result_is_refused() -> None:
    with pytest.raises(WireError, match="has no result"):
        answer_from_parts(iter([pb.Reply()]))
