"""The stream of reports over a real gRPC server, and devices that do not do as they should."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]
import pytest
from grpc import aio

from neuroflux_fl.device_report import DeviceReport, TrainingReading
from neuroflux_fl.wire import telemetry_pb2 as pb
from neuroflux_fl.wire.telemetry import MAX_REPORT_BYTES, METHOD, SERVICE, report_to_proto
from server.device_registry import Device, write_registry
from server.telemetry_proof import Caller, Door, EnrolledOnly, Everyone
from server.telemetry_store import TelemetryStore
from server.telemetry_streams import SERVER_OPTIONS, StreamLimits, TelemetryStreams

SECONDS = 10.0


class FakeDevice:
    """A stream whose every message the test decides."""

    def __init__(self, channel: aio.Channel) -> None:
        self.call = channel.stream_stream(f"/{SERVICE}/{METHOD}")()

    async def read(self) -> pb.FromGateway:
        message = await asyncio.wait_for(self.call.read(), SECONDS)
        assert message is not aio.EOF
        return pb.FromGateway.FromString(message)

    async def send(self, message: pb.FromDevice | bytes) -> None:
        data = message if isinstance(message, bytes) else message.SerializeToString()
        await asyncio.wait_for(self.call.write(data), SECONDS)

    async def enter(self, name: str = "kitchen", session: bytes = b"s") -> pb.Welcome:
        challenge = (await self.read()).challenge
        assert (challenge.telemetry_version, len(challenge.nonce)) == (1, 32)
        proof = pb.Proof(telemetry_version=1, name=name, session=session)
        await self.send(pb.FromDevice(proof=proof))
        return (await self.read()).welcome

    async def report(self, number: int, report: DeviceReport | None = None, age: float = 0.0) -> int:
        """Send one; the number that is acknowledged."""
        made = report_to_proto(report or DeviceReport(device_class="pi", training=TrainingReading(samples=number)))
        await self.send(pb.FromDevice(report=pb.Numbered(number=number, age_seconds=age, report=made)))
        return (await self.read()).acknowledged.number

    async def end(self) -> tuple[grpc.StatusCode, str]:
        """How the gateway ended the stream."""
        code = await asyncio.wait_for(self.call.code(), SECONDS)
        return code, await self.call.details()


@dataclass
class Gateway:
    """A server in this process."""

    store: TelemetryStore
    streams: TelemetryStreams
    channel: aio.Channel

    def device(self) -> FakeDevice:
        return FakeDevice(self.channel)

    def count(self, metric: str, *labels: str) -> float:
        samples = [*self.store.samples("r"), *self.streams.samples()]
        return next(s.value for s in samples if s.metric.name == f"neuroflux_{metric}" and s.labels == labels)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(SECONDS):
            while not condition():
                await asyncio.sleep(0.01)


@asynccontextmanager
async def gateway(door: Door | None = None, **limits: Any) -> AsyncIterator[Gateway]:
    store = TelemetryStore()
    streams = TelemetryStreams(store, door or Everyone(), StreamLimits(**limits))
    server = aio.server(options=SERVER_OPTIONS)
    server.add_generic_rpc_handlers((streams.rpc_handler(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield Gateway(store, streams, channel)
    finally:
        await server.stop(0)


def run(test: Callable[[Gateway], Awaitable[None]], door: Door | None = None, **limits: Any) -> None:
    async def within() -> None:
        async with gateway(door, **limits) as made:
            await test(made)

    asyncio.run(within())


def test_reports_are_taken_and_acknowledged() -> None:
    async def test(gateway: Gateway) -> None:
        device = gateway.device()
        welcome = await device.enter()
        assert (welcome.interval_seconds, welcome.largest_report_bytes) == (5.0, MAX_REPORT_BYTES)
        assert [await device.report(number) for number in (1, 2, 5)] == [1, 2, 5]
        assert gateway.count("telemetry_streams") == 1
        assert gateway.count("telemetry_reports_total", "accepted") == 3
        assert gateway.count("telemetry_reports_lost_total") == 2
        await device.call.done_writing()
        assert await device.end() == (grpc.StatusCode.OK, "")
        assert gateway.count("telemetry_streams") == 0

    run(test)


def test_a_device_that_comes_back_goes_on_where_it_was() -> None:
    async def test(gateway: Gateway) -> None:
        device = gateway.device()
        await device.enter()
        assert [await device.report(number) for number in (1, 2, 3)] == [1, 2, 3]
        device.call.cancel()
        await gateway.until(lambda: gateway.count("telemetry_streams") == 0)
        again = gateway.device()
        await again.enter()
        # It did not hear of the last two.
        assert [await again.report(number) for number in (2, 3, 4)] == [3, 3, 4]
        assert gateway.count("telemetry_reports_total", "repeated") == 2
        assert gateway.count("telemetry_reports_lost_total") == 0

    run(test)


def test_a_stream_that_died_unnoticed_gives_way_to_the_next() -> None:
    async def test(gateway: Gateway) -> None:
        before, after = gateway.device(), gateway.device()
        await before.enter()
        await after.enter()
        assert gateway.count("telemetry_streams") == 1
        assert await after.report(1) == 1
        await before.send(pb.FromDevice(report=pb.Numbered(number=2)))
        assert (await before.end())[0] == grpc.StatusCode.ABORTED
        assert await after.report(2) == 2

    run(test)


def test_devices_of_one_name_are_told_apart_where_nobody_proves_anything() -> None:
    async def test(gateway: Gateway) -> None:
        devices = [gateway.device() for _ in range(3)]
        for number, device in enumerate(devices):
            await device.enter("localhost", session=bytes([number]))
            await device.report(1)
        assert gateway.store.names() == ("localhost", "localhost-2", "localhost-3")
        assert gateway.count("telemetry_streams") == 3

    run(test)


@pytest.mark.parametrize(
    ("first", "details"),
    [
        (b"\xff\xff\xff", "The first message is no proof."),
        (b"", "The first message is no proof."),
        (pb.FromDevice(report=pb.Numbered(number=1)), "The first message is no proof."),
        (b"\x0a" + bytes(MAX_REPORT_BYTES), "The first message is no proof."),
        (pb.FromDevice(proof=pb.Proof(telemetry_version=9, session=b"s")), "Telemetry version 9 is not 1"),
        (pb.FromDevice(proof=pb.Proof(telemetry_version=1)), "A session has 1 to 64 bytes, not 0."),
        (pb.FromDevice(proof=pb.Proof(telemetry_version=1, session=bytes(65))), "1 to 64 bytes, not 65."),
    ],
    ids=["noise", "empty", "report", "large", "version", "session", "long session"],
)
def test_who_begins_otherwise_is_not_let_in(first: pb.FromDevice | bytes, details: str) -> None:
    async def test(gateway: Gateway) -> None:
        device = gateway.device()
        await device.read()
        await device.send(first)
        code, said = await device.end()
        assert code == grpc.StatusCode.UNAUTHENTICATED
        assert details in said
        reasons = ("no_proof", "bad_proof")
        assert sum(gateway.count("telemetry_streams_refused_total", reason) for reason in reasons) == 1

    run(test)


def test_who_says_nothing_is_not_waited_for() -> None:
    async def test(gateway: Gateway) -> None:
        device = gateway.device()
        await device.read()
        assert await device.end() == (grpc.StatusCode.UNAUTHENTICATED, "No proof came within 0.1 s.")
        assert gateway.count("telemetry_streams_refused_total", "no_proof") == 1

    run(test, proof_seconds=0.1)


def test_who_reports_nothing_is_not_kept() -> None:
    async def test(gateway: Gateway) -> None:
        device = gateway.device()
        await device.enter()
        assert await device.end() == (grpc.StatusCode.DEADLINE_EXCEEDED, "No report has come for 0.1 s.")
        assert gateway.count("telemetry_streams") == 0

    run(test, silence_seconds=0.1)


def test_there_are_only_so_many_streams() -> None:
    async def test(gateway: Gateway) -> None:
        first = gateway.device()
        await first.enter("one")
        assert await first.report(1) == 1
        second = gateway.device()
        with pytest.raises(aio.AioRpcError):
            await second.enter("two")
        assert (await second.end())[0] == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert gateway.count("telemetry_streams_refused_total", "too_many") == 1
        assert await first.report(2) == 2

    run(test, most_streams=1)


def test_those_who_have_proved_nothing_take_no_place_of_those_who_have() -> None:
    async def test(gateway: Gateway) -> None:
        first = gateway.device()
        await first.enter()
        silent = gateway.device()
        await silent.read()
        refused = gateway.device()
        assert (await refused.end())[0] == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await first.report(1) == 1

    run(test, most_streams=1)


def test_a_malformed_report_is_acknowledged_counted_and_dropped() -> None:
    async def test(gateway: Gateway) -> None:
        device = gateway.device()
        await device.enter()
        assert await device.report(1) == 1
        bad = pb.DeviceReport(machine=pb.Machine(gpu_utilisation=7.0))
        await device.send(pb.FromDevice(report=pb.Numbered(number=2, report=bad)))
        assert (await device.read()).acknowledged.number == 2
        assert await device.report(3) == 3
        assert gateway.count("telemetry_reports_total", "malformed") == 1
        assert gateway.count("telemetry_reports_total", "accepted") == 2
        assert gateway.count("telemetry_reports_lost_total") == 0

    run(test)


@pytest.mark.parametrize(
    ("message", "details"),
    [
        (b"\xff\xff\xff", "Message cannot be decoded"),
        (pb.FromDevice(), "Message is no report."),
        (pb.FromDevice(report=pb.Numbered(number=0)), "number is 0"),
        (pb.FromDevice(report=pb.Numbered(number=2**64 - 1)), "number is 18446744073709551615"),
        (pb.FromDevice(report=pb.Numbered(number=2**62)), "at most 1000000 can be lost"),
        (pb.FromDevice(report=pb.Numbered(number=2, age_seconds=-1.0)), "age_seconds is -1.0"),
        (pb.FromDevice(report=pb.Numbered(number=2, age_seconds=float("nan"))), "age_seconds is nan"),
    ],
    ids=["noise", "empty", "zero", "huge", "far", "future", "nan"],
)
def test_what_cannot_be_acknowledged_ends_the_stream(message: pb.FromDevice | bytes, details: str) -> None:
    async def test(gateway: Gateway) -> None:
        device, other = gateway.device(), gateway.device()
        await other.enter("other")
        await device.enter()
        await device.report(1)
        await device.send(message)
        code, said = await device.end()
        assert code == grpc.StatusCode.INVALID_ARGUMENT
        assert details in said
        assert gateway.count("telemetry_reports_total", "malformed") == 1
        assert await other.report(1) == 1

    run(test)


def test_an_oversized_report_ends_the_stream_and_is_counted() -> None:
    async def test(gateway: Gateway) -> None:
        device = gateway.device()
        await device.enter()
        await device.send(
            pb.FromDevice(report=pb.Numbered(number=1)).SerializeToString() + bytes(MAX_REPORT_BYTES + 64)
        )
        code, said = await device.end()
        assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "reports may have 65536" in said
        assert gateway.count("telemetry_reports_total", "oversized") == 1

    run(test)


def test_a_monstrous_message_never_gets_into_memory() -> None:
    async def test(gateway: Gateway) -> None:
        device, other = gateway.device(), gateway.device()
        await other.enter("other")
        await device.enter()
        await device.send(bytes(5 * MAX_REPORT_BYTES))
        code, said = await device.end()
        assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "larger than max" in said
        await gateway.until(lambda: gateway.count("telemetry_streams") == 1)
        assert await other.report(1) == 1

    run(test)


def test_a_flood_is_left_unread() -> None:
    sent = 0

    async def test(gateway: Gateway) -> None:
        async def flood(device: FakeDevice) -> None:
            nonlocal sent
            while True:
                sent += 1
                report = pb.DeviceReport(device_class="x" * 100)
                await device.call.write(
                    pb.FromDevice(report=pb.Numbered(number=sent, report=report)).SerializeToString()
                )

        device, other = gateway.device(), gateway.device()
        await device.enter()
        await other.enter("other")
        task = asyncio.create_task(flood(device))
        before = -1
        while before != sent:  # until its writes do not return any more
            before = sent
            await asyncio.sleep(0.3)
        assert 3 <= gateway.count("telemetry_reports_total", "accepted") <= 5
        assert sent < 2000
        assert await other.report(1) == 1
        task.cancel()

    run(test, burst=3, reports_per_second=0.01)


def test_what_was_kept_offline_comes_in_one_go() -> None:
    async def test(gateway: Gateway) -> None:
        device = gateway.device()
        await device.enter()
        for number in range(1, 721):
            message = pb.FromDevice(report=pb.Numbered(number=number, age_seconds=5.0 * (720 - number)))
            await device.send(message)
        acknowledged = [(await device.read()).acknowledged.number for _ in range(720)]
        assert acknowledged == list(range(1, 721))
        assert gateway.count("telemetry_reports_total", "accepted") == 720
        assert gateway.count("device_reporting", "kitchen", "unknown") == 1

    run(test)


def test_a_device_that_is_revoked_is_put_out_at_its_next_report(tmp_path: Path) -> None:
    path = tmp_path / "devices.json"

    class Open(EnrolledOnly):
        """Skips the proof, which has tests of its own."""

        def admit(self, proof: pb.Proof, nonce: bytes) -> Caller:
            return Caller("kitchen", "key")

    device = Device(name="kitchen", node_id=1, fingerprint="", public_key="key", enrolled_at="")
    write_registry(path, {"kitchen": device})

    async def test(gateway: Gateway) -> None:
        stream = gateway.device()
        await stream.enter()
        assert await stream.report(1) == 1
        write_registry(path, {})
        await stream.send(pb.FromDevice(report=pb.Numbered(number=2)))
        assert await stream.end() == (grpc.StatusCode.UNAUTHENTICATED, "Device 'kitchen' was revoked.")
        assert gateway.store.names() == ()

    run(test, Open(path, lambda text: None))
