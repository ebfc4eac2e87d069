"""One stream to a telemetry gateway, from the challenge to its end."""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]

from clients.report_buffer import ReportBuffer
from clients.telemetry_proof import prove
from neuroflux_fl.errors import NeurofluxError
from neuroflux_fl.wire import telemetry_pb2 as pb
from neuroflux_fl.wire.telemetry import MAX_REPORT_BYTES, METHOD, SERVICE, TELEMETRY_VERSION

_OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
    ("grpc.max_receive_message_length", MAX_REPORT_BYTES),
)
_LOOK_SECONDS = 0.5
_SHORTEST_SECONDS, _LONGEST_SECONDS = 0.05, 3600.0
_LONGEST_REASON = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    """Where reports go, and as whom."""

    addresses: tuple[str, ...]
    """``host:port``, tried in turn."""
    root_certificate: Path | None = None
    """Of the authority that the gateway must be certified by; None connects without TLS."""
    key: Path | None = None
    """The node key; None where the gateway asks for no proof."""
    name: str = ""
    """What to be called by a gateway that asks for no proof."""


class StreamFailedError(Exception):
    """Why a stream ended, in one line."""


class TelemetryStream:
    """One try. ``run`` blocks one thread; ``end`` and ``silent_seconds`` are for others."""

    def __init__(self, address: str, gateway: Gateway, buffer: ReportBuffer, session: bytes) -> None:
        """Nothing is connected yet."""
        self.welcome = False
        """Whether the gateway has let this device in."""
        self._address = address
        self._gateway = gateway
        self._buffer = buffer
        self._session = session
        self._largest_bytes = MAX_REPORT_BYTES
        self._outbox: queue.SimpleQueue[pb.FromDevice | None] = queue.SimpleQueue()
        self._over = threading.Event()
        self._why = ""
        self._call: Any = None
        self._sent = 0
        self._waits_since: float | None = time.monotonic()

    def run(self, welcomed: Callable[[str, float], None]) -> None:
        """Stream until the gateway, the network or ``end`` ends it.

        Args:
            welcomed: called with the address and the interval that the gateway wants.

        Raises:
            StreamFailedError: it ended otherwise than by the gateway's own wish.
        """
        with self._open_channel() as channel:
            call = self._call = channel.stream_stream(
                f"/{SERVICE}/{METHOD}",
                request_serializer=pb.FromDevice.SerializeToString,
                response_deserializer=pb.FromGateway.FromString,
            )(self._messages())
            try:
                if self._over.is_set():
                    return
                for message in call:
                    self._receive(message, welcomed)
            except grpc.RpcError as error:
                raise StreamFailedError(self._why or self._describe(error)) from None
            finally:
                self.end()

    def end(self, why: str = "") -> None:
        """End it from another thread, for a reason of this side's."""
        self._why = self._why or why
        self._over.set()
        self._outbox.put(None)
        if self._call is not None:
            self._call.cancel()

    def silent_seconds(self) -> float:
        """How long an answer has been due; 0 where none is."""
        since = self._waits_since
        return 0.0 if since is None else time.monotonic() - since

    def _open_channel(self) -> Any:
        certificate = self._gateway.root_certificate
        if certificate is None:
            return grpc.insecure_channel(self._address, options=_OPTIONS)
        try:
            credentials = grpc.ssl_channel_credentials(root_certificates=certificate.read_bytes())
        except OSError as error:
            raise StreamFailedError(f"certificate {certificate} cannot be read: {error.strerror}") from error
        return grpc.secure_channel(self._address, credentials, options=_OPTIONS)

    def _receive(self, message: pb.FromGateway, welcomed: Callable[[str, float], None]) -> None:
        kind = message.WhichOneof("content")
        if kind == "challenge":
            self._outbox.put(pb.FromDevice(proof=self._proof(message.challenge)))
        elif kind == "welcome" and not self.welcome:
            interval = message.welcome.interval_seconds
            if not math.isfinite(interval) or not _SHORTEST_SECONDS <= interval <= _LONGEST_SECONDS:
                raise StreamFailedError(f"the gateway wants a report every {interval:g} s, which cannot be meant")
            self._largest_bytes = message.welcome.largest_report_bytes or MAX_REPORT_BYTES
            self._waits_since = None
            self.welcome = True
            welcomed(self._address, interval)
            self._outbox.put(pb.FromDevice())
        elif kind == "acknowledged":
            number = message.acknowledged.number
            self._buffer.acknowledge(number)
            self._waits_since = None if number >= self._sent else time.monotonic()

    def _proof(self, challenge: pb.Challenge) -> pb.Proof:
        if challenge.telemetry_version != TELEMETRY_VERSION:
            raise StreamFailedError(
                f"the gateway speaks telemetry version {challenge.telemetry_version}, this device "
                f"{TELEMETRY_VERSION}: install the same release on both"
            )
        key, signature = "", b""
        if self._gateway.key is not None:
            try:
                key, signature = prove(self._gateway.key, challenge.nonce)
            except NeurofluxError as error:
                raise StreamFailedError(str(error)) from error
        return pb.Proof(
            telemetry_version=TELEMETRY_VERSION,
            public_key=key,
            signature=signature,
            session=self._session,
            name=self._gateway.name,
        )

    def _messages(self) -> Iterator[pb.FromDevice]:
        """What the device sends; runs in a thread of gRPC's, which ends when this does."""
        proof = self._outbox.get()
        if proof is None:
            return
        yield proof
        if self._outbox.get() is None:  # the welcome, or the end
            return
        number = 0
        while not self._over.is_set():
            kept = self._buffer.after(number, _LOOK_SECONDS)
            if kept is None:
                continue
            number = kept.number
            if kept.report.ByteSize() > self._largest_bytes:
                continue  # the gateway counts it as lost, and so it is
            self._sent = number
            self._waits_since = self._waits_since or time.monotonic()
            age = time.monotonic() - kept.made_at
            yield pb.FromDevice(report=pb.Numbered(number=number, age_seconds=age, report=kept.report))

    def _describe(self, error: Any) -> str:
        """One line; what varies between two tries for the same reason comes after a colon."""
        code, details = error.code(), " ".join(str(error.details()).split())[:_LONGEST_REASON]
        if code == grpc.StatusCode.UNAVAILABLE and self.welcome:
            return f"the gateway went away: {details}"
        if code == grpc.StatusCode.UNAVAILABLE:
            return f"no telemetry gateway can be reached: {details}"
        if code == grpc.StatusCode.UNIMPLEMENTED:
            return f"there is no telemetry gateway: {details}"
        if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
            return f"the gateway refuses this device: {details}"
        return f"the gateway has ended the stream ({code.name}): {details}"
