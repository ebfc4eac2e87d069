"""Devices that load a telemetry gateway: asyncio tasks, many in a process, each with a key and a connection of its own.

They do as the product's own devices do: prove the key, report, keep what was not acknowledged, and come back when they
are cut off. Started by ``benchmarks.gateway_load``.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from grpc import aio

from benchmarks.report import serve
from neuroflux_fl.device_report import ActivitySeconds, BlockReading, DeviceReport, MachineReading, TrainingReading
from neuroflux_fl.sizes import MIB
from neuroflux_fl.wire import telemetry_pb2 as pb
from neuroflux_fl.wire.telemetry import METHOD, PROOF_TEXT, SERVICE, TELEMETRY_VERSION, report_to_proto
from server.node_keys import public_key_line

_CLASSES = ("nano", "tx2", "xavier", "orin")
_KEPT = 720
_CHANNEL_OPTIONS = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0))


def make_report(number: int, samples: int) -> pb.DeviceReport:
    """What a device of two blocks and eight units has to tell: 39 series."""
    blocks = tuple(
        BlockReading(
            first_unit=first, last_unit=first + 3, batch_size=32, predicted_peak_bytes=60 * MIB,
            measured_peak_bytes=58 * MIB + number, samples_per_second=90.5,
        )
        for first in (0, 4)
    )  # fmt: skip
    training = TrainingReading(
        run="load", round=samples // 1000, busy=True, training_bytes=50 * MIB + samples, blocks=blocks,
        losses=tuple((unit, 1.0 / (1 + samples)) for unit in range(8)), samples=samples, tasks=samples // 1000,
        seconds=ActivitySeconds(train=samples / 90.5),
    )  # fmt: skip
    machine = MachineReading(
        resident_bytes=700 * MIB, available_bytes=900 * MIB, disk_free_bytes=2**34, disk_size_bytes=2**35
    )
    return report_to_proto(
        DeviceReport(
            device_class=_CLASSES[number % len(_CLASSES)], budget_bytes=64 * MIB, machine=machine, training=training
        )
    )


@dataclass(slots=True)
class LoadDevice:
    """One device: reports every interval, and gets them through."""

    number: int
    address: str
    credentials: grpc.ChannelCredentials
    key: ec.EllipticCurvePrivateKey
    session: bytes = field(default_factory=lambda: os.urandom(16))
    made: int = 0
    acknowledged: int = 0
    samples: int = 0
    kept: deque[tuple[int, float, pb.DeviceReport]] = field(default_factory=lambda: deque(maxlen=_KEPT))
    latencies: list[float] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def report_for_ever(self, interval: float) -> None:
        """Make a report now and then."""
        await asyncio.sleep(random.random() * interval)
        while True:
            self.made += 1
            self.samples += random.randrange(1000)
            self.kept.append((self.made, time.monotonic(), make_report(self.number, self.samples)))
            self.changed.set()
            await asyncio.sleep(interval)

    async def stream_for_ever(self, ramp_seconds: float) -> None:
        """Connect, and connect again."""
        await asyncio.sleep(random.random() * ramp_seconds)
        while True:
            with suppress(aio.AioRpcError, asyncio.InvalidStateError, EOFError):
                async with aio.secure_channel(self.address, self.credentials, options=_CHANNEL_OPTIONS) as channel:
                    await self._stream(channel)
            await asyncio.sleep(1.0 + 3.0 * random.random())

    async def _stream(self, channel: aio.Channel) -> None:
        call = channel.stream_stream(
            f"/{SERVICE}/{METHOD}",
            request_serializer=pb.FromDevice.SerializeToString,
            response_deserializer=pb.FromGateway.FromString,
        )()
        challenge = (await _read(call)).challenge
        proof = pb.Proof(
            telemetry_version=TELEMETRY_VERSION,
            public_key=public_key_line(self.key.public_key()),
            signature=self.key.sign(PROOF_TEXT + challenge.nonce, ec.ECDSA(hashes.SHA384())),
            session=self.session,
        )
        await call.write(pb.FromDevice(proof=proof))
        await _read(call)
        reader = asyncio.create_task(self._read_acknowledged(call))
        try:
            sent = 0
            while not reader.done():
                self.changed.clear()
                for number, made_at, report in [kept for kept in self.kept if kept[0] > sent]:
                    age = time.monotonic() - made_at
                    await call.write(pb.FromDevice(report=pb.Numbered(number=number, age_seconds=age, report=report)))
                    sent = number
                with suppress(TimeoutError):
                    await asyncio.wait_for(self.changed.wait(), 1.0)
        finally:
            reader.cancel()
            with suppress(asyncio.CancelledError, aio.AioRpcError, EOFError):
                await reader

    async def _read_acknowledged(self, call: Any) -> None:
        while True:
            self.acknowledged = (await _read(call)).acknowledged.number
            while self.kept and self.kept[0][0] <= self.acknowledged:
                self.latencies.append(time.monotonic() - self.kept.popleft()[1])


async def _read(call: Any) -> pb.FromGateway:
    message = await call.read()
    if message is aio.EOF:
        raise EOFError
    answer: pb.FromGateway = message
    return answer


class LoadWorker:
    """The devices of one process, on an event loop in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._devices: list[LoadDevice] = []
        self._reporting: list[asyncio.Task[None]] = []
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def answer(self, request: dict[str, Any]) -> dict[str, object]:
        """Do what the benchmark asks."""
        if request["do"] == "start":
            asyncio.run_coroutine_threadsafe(self._start(request), self._loop).result()
        elif request["do"] == "quiet":  # no more new reports
            self._loop.call_soon_threadsafe(lambda: [task.cancel() for task in self._reporting])
        elif request["do"] == "freeze":
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGSTOP)).start()
        latencies = sorted(latency for device in self._devices for latency in list(device.latencies))
        if request["do"] == "forget":
            for device in self._devices:
                device.latencies.clear()
        return {
            "made": sum(device.made for device in self._devices),
            "acknowledged": sum(device.acknowledged for device in self._devices),
            "latencies": latencies[:: max(1, len(latencies) // 1000)],
        }

    async def _start(self, request: dict[str, Any]) -> None:
        folder = Path(request["folder"])
        credentials = grpc.ssl_channel_credentials((folder / "certs" / "ca.crt").read_bytes())
        for number in range(request["first"], request["last"]):
            key = load_ssh_private_key((folder / "keys" / str(number)).read_bytes(), None)
            if not isinstance(key, ec.EllipticCurvePrivateKey):
                raise TypeError(f"Key {number} is not of the kind that was made.")
            device = LoadDevice(number, request["address"], credentials, key)
            self._devices.append(device)
            self._reporting.append(asyncio.create_task(device.report_for_ever(request["interval"])))
            asyncio.create_task(device.stream_for_ever(request["ramp"])).add_done_callback(_tell_end)


def _tell_end(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        print(f"A device ended: {task.exception()!r}", file=sys.stderr)


if __name__ == "__main__":
    serve(LoadWorker().answer)
