"""The gRPC side of the telemetry gateway: lets devices in, takes their reports, and ends streams that misbehave."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc  # type: ignore[import-untyped]
from google.protobuf.message import DecodeError
from grpc import aio

from neuroflux_fl import metrics as m
from neuroflux_fl.errors import WireError
from neuroflux_fl.metrics import Sample
from neuroflux_fl.wire import telemetry_pb2 as pb
from neuroflux_fl.wire.checks import MAX_SIZE, check_number, check_size
from neuroflux_fl.wire.telemetry import MAX_REPORT_BYTES, METHOD, SERVICE, TELEMETRY_VERSION, report_from_proto
from server.telemetry_proof import REASONS, Caller, Door, StreamRefusedError
from server.telemetry_store import TelemetryStore

_NONCE_BYTES = 32
_LONGEST_SESSION = 64
_ENVELOPE_BYTES = 64
"""What a message holds beside its report."""

SERVER_OPTIONS = (
    ("grpc.so_reuseport", 0),  # or a second gateway would share the port unnoticed
    # Beyond this gRPC ends the stream by itself, before the message is in memory, and nobody here learns why.
    ("grpc.max_receive_message_length", 4 * MAX_REPORT_BYTES),
    ("grpc.max_metadata_size", 8 * 1024),
    ("grpc.max_concurrent_streams", 16),  # of one connection
    ("grpc.http2.bdp_probe", 0),  # or a fast sender is given megabytes to fill
    # A device that lost its power says no farewell.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamLimits:
    """What one stream, and all of them, may take."""

    interval_seconds: float = 5.0
    """How often devices are asked to report."""
    most_streams: int = 2000
    """Devices that report; as many again may be about to prove who they are."""
    proof_seconds: float = 10.0
    silence_seconds: float = 60.0
    """Without a report, after which a stream is ended."""
    burst: int = 1000
    """Reports that a stream may send as fast as it can, for what a device has kept while it was offline."""
    reports_per_second: float = 2.0
    """After the burst. A faster device waits: its reports are not read."""


class _StreamEndedError(Exception):
    """A stream that cannot go on."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self.code = code


class TelemetryStreams:
    """Serves ``Report``, on one event loop; ``samples`` may be asked from any thread."""

    def __init__(
        self,
        store: TelemetryStore,
        door: Door,
        limits: StreamLimits | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """No stream is open.

        Args:
            store: gets the reports.
            door: decides who may report.
            limits: of streams.
            clock: seconds, never going back.
        """
        self._store = store
        self._door = door
        self._limits = limits or StreamLimits()
        self._clock = clock
        self._unproved = 0
        self._current: dict[str, tuple[bytes, object]] = {}
        """Session and stream of each device that is connected; a new stream of a device takes the older one's place."""
        self._refused: Counter[str] = Counter(dict.fromkeys(REASONS, 0))

    def samples(self) -> Iterator[Sample]:
        """How many streams there are and were refused."""
        yield Sample(m.STREAMS, (), len(self._current))
        for reason in REASONS:
            yield Sample(m.STREAMS_REFUSED, (reason,), self._refused[reason])

    def rpc_handler(self) -> Any:
        """What a gRPC server needs to serve this. Messages come as bytes, so that bad ones can be counted."""
        method = grpc.stream_stream_rpc_method_handler(
            self.report, response_serializer=pb.FromGateway.SerializeToString
        )
        return grpc.method_handlers_generic_handler(SERVICE, {METHOD: method})

    async def report(self, _: object, context: Any) -> None:
        """The ``Report`` call."""
        try:
            await self._serve(context)
        except StreamRefusedError as refusal:
            self._refused[refusal.reason] += 1
            too_many = refusal.reason == "too_many"
            code = grpc.StatusCode.RESOURCE_EXHAUSTED if too_many else grpc.StatusCode.UNAUTHENTICATED
            await context.abort(code, str(refusal))
        except _StreamEndedError as end:
            await context.abort(end.code, str(end))

    async def _serve(self, context: Any) -> None:
        caller, session = await self._let_in(context)
        stream = object()
        self._current[caller.name] = (session, stream)
        try:
            interval = self._limits.interval_seconds
            welcome = pb.Welcome(interval_seconds=interval, largest_report_bytes=MAX_REPORT_BYTES)
            await context.write(pb.FromGateway(welcome=welcome))
            await self._take_reports(context, caller, session, stream)
        finally:
            if self._current.get(caller.name) == (session, stream):
                del self._current[caller.name]

    async def _let_in(self, context: Any) -> tuple[Caller, bytes]:
        """Who the stream comes from, and the session; raises StreamRefusedError."""
        if self._unproved >= self._limits.most_streams:
            raise StreamRefusedError("too_many", "Too many devices connect at the same time: try again later.")
        self._unproved += 1
        try:
            nonce = os.urandom(_NONCE_BYTES)
            await context.write(
                pb.FromGateway(challenge=pb.Challenge(telemetry_version=TELEMETRY_VERSION, nonce=nonce))
            )
            async with asyncio.timeout(self._limits.proof_seconds):
                message = await context.read()
        except TimeoutError:
            raise StreamRefusedError("no_proof", f"No proof came within {self._limits.proof_seconds:g} s.") from None
        finally:
            self._unproved -= 1
        proof = _proof(message)
        caller = self._door.admit(proof, nonce)
        if not self._door.asks_for_proof:
            caller = self._unlike_others(caller, proof.session)
        if caller.name not in self._current and len(self._current) >= self._limits.most_streams:
            raise StreamRefusedError("too_many", f"{len(self._current)} devices are connected, which is the limit.")
        return caller, proof.session

    def _unlike_others(self, caller: Caller, session: bytes) -> Caller:
        """With a number after the name where another device that is connected has taken it."""
        name, number = caller.name, 1
        while self._current.get(name, (session,))[0] != session:
            number += 1
            name = f"{caller.name}-{number}"
        return Caller(name, caller.public_key)

    async def _take_reports(self, context: Any, caller: Caller, session: bytes, stream: object) -> None:
        left, refilled_at = float(self._limits.burst), self._clock()
        while True:
            try:
                async with asyncio.timeout(self._limits.silence_seconds):
                    message = await context.read()
            except TimeoutError:
                raise _StreamEndedError(
                    grpc.StatusCode.DEADLINE_EXCEEDED, f"No report has come for {self._limits.silence_seconds:g} s."
                ) from None
            if message is aio.EOF:
                return
            if not self._door.is_welcome(caller):
                self._store.forget(caller.name)
                raise _StreamEndedError(grpc.StatusCode.UNAUTHENTICATED, f"Device '{caller.name}' was revoked.")
            if self._current.get(caller.name) != (session, stream):
                raise _StreamEndedError(grpc.StatusCode.ABORTED, "The device has opened another stream.")
            number = self._take(caller, session, message)
            await context.write(pb.FromGateway(acknowledged=pb.Acknowledged(number=number)))
            now = self._clock()
            left = min(self._limits.burst, left + (now - refilled_at) * self._limits.reports_per_second) - 1
            refilled_at = now
            if left < 0:
                # What is not read stays with the sender: gRPC takes no more of it than a window.
                await asyncio.sleep(-left / self._limits.reports_per_second)

    def _take(self, caller: Caller, session: bytes, data: bytes) -> int:
        """Put one message's report into the store; returns the number to acknowledge."""
        if len(data) > MAX_REPORT_BYTES + _ENVELOPE_BYTES:
            self._store.count("oversized")
            raise _StreamEndedError(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"A message has {len(data)} bytes: reports may have {MAX_REPORT_BYTES}.",
            )
        try:
            numbered = _numbered(data)
            try:
                report = report_from_proto(numbered.report)
            except WireError:
                # Sent again it would be no better.
                return self._store.skip(caller.name, session, numbered.number)
            return self._store.receive(caller.name, session, numbered.number, numbered.age_seconds, report)
        except WireError as error:
            self._store.count("malformed")
            raise _StreamEndedError(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from error


def _proof(data: Any) -> pb.Proof:
    message = pb.FromDevice()
    try:
        if data is aio.EOF or len(data) > MAX_REPORT_BYTES:
            raise DecodeError
        message.ParseFromString(data)
    except DecodeError:
        raise StreamRefusedError("no_proof", "The first message is no proof.") from None
    if message.WhichOneof("content") != "proof":
        raise StreamRefusedError("no_proof", "The first message is no proof.")
    proof = message.proof
    if proof.telemetry_version != TELEMETRY_VERSION:
        raise StreamRefusedError(
            "bad_proof",
            f"Telemetry version {proof.telemetry_version} is not {TELEMETRY_VERSION}: install the same release of "
            "neuroflux-fl on server and device.",
        )
    if not 0 < len(proof.session) <= _LONGEST_SESSION:
        raise StreamRefusedError("bad_proof", f"A session has 1 to {_LONGEST_SESSION} bytes, not {len(proof.session)}.")
    return proof


def _numbered(data: bytes) -> pb.Numbered:
    """The numbered report in a message; raises WireError where there is none that could be acknowledged."""
    message = pb.FromDevice()
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise WireError(f"Message cannot be decoded: {error}.") from error
    if message.WhichOneof("content") != "report":
        raise WireError("Message is no report.")
    numbered = message.report
    check_size("number", numbered.number)
    if numbered.number == 0:
        raise WireError(f"number is 0: must lie between 1 and {MAX_SIZE}.")
    check_number("age_seconds", numbered.age_seconds)
    return numbered
