"""Asks the device agent, waits for one that restarts, and sends a task again when the connection breaks."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]

from clients import agent_pb2 as pb
from clients.agent_messages import SERVICE, answer_from_parts, check_version, request_to_parts
from clients.request import DeviceAnswer, DeviceRequest
from neuroflux_fl.device_report import TrainingReading
from neuroflux_fl.errors import FleetError, UsageError, WireError
from neuroflux_fl.wire.telemetry import training_from_bytes

logger = logging.getLogger(__name__)

RESENDS = 3
_LONGEST_SOCKET_PATH = 107
_OPTIONS = (
    # An agent that restarts is back within a second or two: do not back off for minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.use_local_subchannel_pool", 1),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentStatus:
    """How an agent is doing."""

    pid: int
    tasks_done: int
    """Answered or failed since it started."""
    busy_with: str
    """Empty when it is idle."""
    resident_bytes: int
    """0 where the platform does not tell."""
    training: TrainingReading | None = None
    """None where there is none that can be read."""


def agent_status(socket: Path, timeout: float) -> AgentStatus:
    """Ask how the agent at ``socket`` is doing; it answers at any time, within ``timeout`` seconds.

    Raises:
        FleetError: no answer.
        WireError: the agent is of another release.
    """
    with _open_channel(socket) as channel:
        call = channel.unary_unary(
            f"/{SERVICE}/Status",
            request_serializer=pb.StatusRequest.SerializeToString,
            response_deserializer=pb.StatusReply.FromString,
        )
        try:
            reply = call(pb.StatusRequest(), timeout=timeout)
        except grpc.RpcError as error:
            raise FleetError(
                f"No device agent answers at {socket} within {timeout:g} s ({_describe(error)}): start it."
            ) from None
    check_version("The device agent", reply.protocol_version)
    return AgentStatus(
        pid=reply.pid,
        tasks_done=reply.tasks_done,
        busy_with=reply.busy_with,
        resident_bytes=reply.resident_bytes,
        training=_training(reply.training),
    )


def ask_agent(
    socket: Path, request: DeviceRequest, *, wait_seconds: float, resends: int = RESENDS
) -> DeviceAnswer | None:
    """Have the agent at ``socket`` work on the request, however long it takes.

    When the connection breaks, because the agent was killed, the request is sent again to the agent that takes its
    place: it goes on after the blocks that the first one finished. Errors that the agent reports are not retried.

    Returns:
        The answer; None where no agent was there, or came back, within ``wait_seconds``. The request's arrays are
        then still whole.

    Raises:
        NeurofluxError: what the agent reports.
        FleetError: the connection broke once more after ``resends`` repetitions.
    """
    reason = ""
    for _ in range(1 + resends):
        with _open_channel(socket) as channel:
            if not _is_ready(channel, wait_seconds):
                return None
            call = channel.stream_stream(
                f"/{SERVICE}/Handle",
                request_serializer=pb.Request.SerializeToString,
                response_deserializer=pb.Reply.FromString,
            )
            try:
                return answer_from_parts(call(request_to_parts(request)))
            except grpc.RpcError as error:
                reason = _describe(error)
                logger.warning("The device agent at %s went away during %s: %s", socket, request, reason)
    raise FleetError(
        f"The device agent at {socket} went away {1 + resends} times during {request} ({reason}): see its log."
    )


def socket_address(socket: Path) -> str:
    """The socket as gRPC names it.

    Raises:
        UsageError: the path is longer than a Unix socket's may be.
    """
    path = socket.absolute()
    length = len(os.fsencode(path))
    if length > _LONGEST_SOCKET_PATH:
        raise UsageError(
            f"Agent socket {path} has a path of {length} bytes; a Unix socket allows {_LONGEST_SOCKET_PATH}: "
            "choose a shorter one."
        )
    return f"unix:{path}"


def _training(data: bytes) -> TrainingReading | None:
    """A reading that is out of bounds is no reason to take the agent for dead."""
    try:
        return training_from_bytes(data) if data else None
    except WireError as error:
        logger.debug("The agent's training reading is left out: %s", error)
        return None


def _open_channel(socket: Path) -> Any:
    return grpc.insecure_channel(socket_address(socket), options=_OPTIONS)


def _is_ready(channel: Any, wait_seconds: float) -> bool:
    ready = grpc.channel_ready_future(channel)
    try:
        ready.result(timeout=wait_seconds)
    except grpc.FutureTimeoutError:
        return False
    finally:
        ready.cancel()
    return True


def _describe(error: Any) -> str:
    return f"{error.code().name}: {error.details()}"
