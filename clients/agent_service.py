"""The agent's gRPC service: works on one request at a time, on one thread, and tells its status meanwhile."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]

from clients import agent_pb2 as pb
from clients.agent_messages import (
    AGENT_PROTOCOL_VERSION,
    SERVICE,
    answer_to_parts,
    failure_to_parts,
    request_from_parts,
)
from clients.request import DeviceAnswer, DeviceRequest
from neuroflux_fl.errors import NeurofluxError
from neuroflux_fl.training_monitor import TrainingMonitor
from neuroflux_fl.wire.telemetry import training_to_proto

logger = logging.getLogger(__name__)

Perform = Callable[[DeviceRequest], DeviceAnswer]
_STATM = Path("/proc/self/statm")


class AgentService:
    """Requests wait in line; who went away before their turn came are skipped, others' tasks are worked on to the end.

    Everything heavy happens on one thread: torch keeps a pool of threads for every thread that computes.

    Args:
        prepare: imports what is needed and gives the function that works on a request. It runs on the working thread,
            so that the agent can be reached while torch is still being imported.
        monitor: told by that function what it is at; status calls read it.
    """

    def __init__(self, prepare: Callable[[], Perform], monitor: TrainingMonitor) -> None:
        self._monitor = monitor
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tasks")
        self._tasks_done = 0
        self._busy_with = "starting"
        self.prepared: Future[Perform] = self._thread.submit(self._prepare, prepare)
        """Fails where ``prepare`` did: the agent is then of no use."""

    def handle(self, parts: Iterator[pb.Request], context: Any) -> Iterator[pb.Reply]:
        """The ``Handle`` call."""
        yield from self._thread.submit(self._work_on, parts, context).result()

    def status(self, request: pb.StatusRequest, context: Any) -> pb.StatusReply:
        """The ``Status`` call."""
        return pb.StatusReply(
            protocol_version=AGENT_PROTOCOL_VERSION,
            pid=os.getpid(),
            tasks_done=self._tasks_done,
            busy_with=self._busy_with,
            resident_bytes=_resident_bytes(),
            training=self._training(),
        )

    def _training(self) -> bytes:
        try:
            return training_to_proto(self._monitor.reading()).SerializeToString()
        except Exception as error:  # whether the agent lives is asked with the same call, and that it must tell
            logger.debug("No training reading: %s: %s", type(error).__name__, error)
            return b""

    def rpc_handler(self) -> Any:
        """What a gRPC server needs to serve this."""
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Handle": grpc.stream_stream_rpc_method_handler(
                    self.handle,
                    request_deserializer=pb.Request.FromString,
                    response_serializer=pb.Reply.SerializeToString,
                ),
                "Status": grpc.unary_unary_rpc_method_handler(
                    self.status,
                    request_deserializer=pb.StatusRequest.FromString,
                    response_serializer=pb.StatusReply.SerializeToString,
                ),
            },
        )

    def _prepare(self, prepare: Callable[[], Perform]) -> Perform:
        perform = prepare()
        self._busy_with = ""
        return perform

    def _work_on(self, parts: Iterator[pb.Request], context: Any) -> Iterator[pb.Reply]:
        """Read the request only when its turn has come: until then its arrays stay with the sender."""
        if not context.is_active():
            return iter(())
        started = time.monotonic()
        what = "request"
        try:
            request = request_from_parts(parts)
            what = self._busy_with = str(request)
            answer = self.prepared.result()(request)
        except grpc.RpcError:
            return iter(())  # the sender went away in the middle of its request
        except Exception as error:
            logger.warning(
                "%s failed after %.1f s: %s: %s",
                what, time.monotonic() - started, type(error).__name__, " ".join(str(error).split()),
            )  # fmt: skip
            logger.debug("Traceback:", exc_info=not isinstance(error, NeurofluxError))
            self._tasks_done += 1
            return failure_to_parts(error)
        finally:
            self._busy_with = ""
        self._tasks_done += 1
        heard = "" if context.is_active() else "; nobody waits for the answer any more"
        logger.info("%s done in %.1f s%s", what, time.monotonic() - started, heard)
        return answer_to_parts(answer)


def _resident_bytes() -> int:
    try:
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
