"""Reports reach a real gRPC gateway, now or later; whatever the gateway does, the device goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import ssh

from clients.telemetry_push import TelemetryPush
from clients.telemetry_stream import Gateway
from neuroflux_fl.backoff import Backoff
from neuroflux_fl.device_report import DeviceReport
from neuroflux_fl.wire import telemetry_pb2 as pb
from neuroflux_fl.wire.telemetry import MAX_REPORT_BYTES, METHOD, SERVICE, TELEMETRY_VERSION, report_from_proto
from server.certificates import create_certificates
from server.node_keys import make_private_key, private_key_file

NONCE = bytes(range(32))
SECONDS = 30.0


@dataclass
class GatewayDouble:
    """protos/telemetry.proto as it is written, and nothing else; does to devices what a test wants."""

    interval_seconds: float = 0.05
    largest_report_bytes: int = MAX_REPORT_BYTES
    telemetry_version: int = TELEMETRY_VERSION
    says: str = "everything"
    refusal: tuple[grpc.StatusCode, str] | None = None
    credentials: Any = None
    proofs: list[pb.Proof] = field(default_factory=list)
    numbered: list[pb.Numbered] = field(default_factory=list)
    port: int = 0
    _server: Any = None

    @property
    def address(self) -> str:
        return f"localhost:{self.port}"

    @property
    def numbers(self) -> list[int]:
        return [numbered.number for numbered in list(self.numbered)]

    def start(self) -> None:
        """Serve, on the same port as before if there was one."""
        self._server = grpc.server(ThreadPoolExecutor(8))
        handler = grpc.stream_stream_rpc_method_handler(
            self._report,
            request_deserializer=pb.FromDevice.FromString,
            response_serializer=pb.FromGateway.SerializeToString,
        )
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler}),))
        if self.credentials is None:
            self.port = self._server.add_insecure_port(f"localhost:{self.port}")
        else:
            self.port = self._server.add_secure_port(f"localhost:{self.port}", self.credentials)
        self._server.start()

    def stop(self) -> None:
        """Be gone at once."""
        self._server.stop(None).wait(10)

    def _report(self, messages: Iterator[pb.FromDevice], context: Any) -> Iterator[pb.FromGateway]:
        if self.says == "nothing":
            over = threading.Event()
            context.add_callback(over.set)
            over.wait(SECONDS)
            return
        yield pb.FromGateway(challenge=pb.Challenge(telemetry_version=self.telemetry_version, nonce=NONCE))
        self.proofs.append(next(messages).proof)
        if self.refusal is not None:
            context.abort(*self.refusal)
        welcome = pb.Welcome(interval_seconds=self.interval_seconds, largest_report_bytes=self.largest_report_bytes)
        yield pb.FromGateway(welcome=welcome)
        for message in messages:
            self.numbered.append(message.report)
            if self.says == "everything":
                yield pb.FromGateway(acknowledged=pb.Acknowledged(number=message.report.number))


@dataclass
class Device:
    """A push, and all its news."""

    push: TelemetryPush
    said: list[str] = field(default_factory=list)

    def heard(self, text: str) -> bool:
        self.said += self.push.news()
        return any(text in line for line in self.said)


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def make_gateway() -> Iterator[Callable[..., GatewayDouble]]:
    made: list[GatewayDouble] = []

    def make(**options: Any) -> GatewayDouble:
        gateway = GatewayDouble(**options)
        made.append(gateway)
        gateway.start()
        return gateway

    yield make
    for gateway in made:
        gateway.stop()


MakeGateway = Callable[..., GatewayDouble]


@pytest.fixture
def make_device() -> Iterator[Callable[..., Device]]:
    made: list[Device] = []

    def make(
        *addresses: str,
        report: Callable[[], DeviceReport] = DeviceReport,
        kept_reports: int = 720,
        patience_seconds: float = 20.0,
        **to: Any,
    ) -> Device:
        push = TelemetryPush(
            Gateway(addresses=addresses, **to),
            report,
            kept_reports=kept_reports,
            interval_seconds=0.05,
            patience_seconds=patience_seconds,
            pauses=Backoff(first_seconds=0.05, largest_seconds=0.1),
        )
        made.append(Device(push))
        push.start()
        return made[-1]

    yield make
    for device in made:
        began = time.monotonic()
        device.push.stop()
        assert time.monotonic() - began < 5
        assert not any(thread.is_alive() for thread in device.push._threads)


MakeDevice = Callable[..., Device]


def nobody() -> str:
    return "localhost:1"


def test_reports_arrive_in_order_and_are_acknowledged(make_gateway: MakeGateway, make_device: MakeDevice) -> None:
    gateway = make_gateway()
    report = DeviceReport(device_class="pi", agent_restarts=2)
    device = make_device(gateway.address, name="shelf", report=lambda: report)

    wait_for(lambda: len(gateway.numbered) >= 5)

    assert gateway.numbers == list(range(1, len(gateway.numbers) + 1))
    assert report_from_proto(gateway.numbered[0].report) == report
    assert all(0 <= numbered.age_seconds < SECONDS for numbered in gateway.numbered)
    (proof,) = gateway.proofs
    assert (proof.name, proof.public_key, proof.signature, len(proof.session)) == ("shelf", "", b"", 16)
    wait_for(lambda: len(device.push.buffer) <= 1)
    wait_for(lambda: device.heard(f"Telemetry goes to {gateway.address}."))
    assert device.push.interval_seconds == gateway.interval_seconds


def test_a_gateway_that_is_killed_and_comes_back_gets_what_it_missed(
    make_gateway: MakeGateway, make_device: MakeDevice
) -> None:
    gateway = make_gateway()
    device = make_device(gateway.address)
    wait_for(lambda: len(gateway.numbered) >= 3)

    gateway.stop()
    wait_for(lambda: device.heard("Telemetry waits and training goes on"))
    wait_for(lambda: len(device.push.buffer) >= 5)
    gateway.start()

    wait_for(lambda: len(gateway.proofs) == 2)
    wait_for(lambda: len(device.push.buffer) <= 1)
    assert sorted(set(gateway.numbers)) == list(range(1, max(gateway.numbers) + 1)), "nothing is missing"
    assert len({proof.session for proof in gateway.proofs}) == 1
    late = [numbered for numbered in gateway.numbered if numbered.age_seconds > 0.1]
    assert late, "what waited says how long"


def test_a_device_that_is_offline_for_long_loses_the_oldest(make_gateway: MakeGateway, make_device: MakeDevice) -> None:
    gateway = make_gateway()
    gateway.stop()
    device = make_device(gateway.address, kept_reports=4)
    wait_for(lambda: (kept := device.push.buffer.after(0, 0)) is not None and kept.number > 6)
    assert len(device.push.buffer) == 4

    gateway.start()

    wait_for(lambda: len(gateway.numbered) >= 8)
    assert gateway.numbers[0] > 6
    assert gateway.numbers == list(range(gateway.numbers[0], gateway.numbers[0] + len(gateway.numbers)))


def test_what_was_not_acknowledged_is_sent_again(make_gateway: MakeGateway, make_device: MakeDevice) -> None:
    gateway = make_gateway(says="no acknowledgement")
    device = make_device(gateway.address, patience_seconds=0.5)

    wait_for(lambda: device.heard("did not answer for 0.5 s"))
    gateway.says = "everything"

    wait_for(lambda: len(gateway.proofs) >= 2 and len(device.push.buffer) <= 1)
    assert gateway.numbers.count(1) >= 2


def test_a_gateway_that_says_nothing_is_given_up(make_gateway: MakeGateway, make_device: MakeDevice) -> None:
    silent, good = make_gateway(says="nothing"), make_gateway()

    make_device(silent.address, good.address, patience_seconds=0.5)

    wait_for(lambda: len(good.numbered) >= 2)


def test_trouble_is_told_once_for_each_reason(make_gateway: MakeGateway, make_device: MakeDevice) -> None:
    refused = (grpc.StatusCode.UNAUTHENTICATED, "This key is not enrolled here.")
    gateway = make_gateway(refusal=refused)
    device = make_device(nobody(), gateway.address)

    wait_for(lambda: len(gateway.proofs) >= 4)
    wait_for(lambda: device.heard("refuses this device: This key is not enrolled here."))

    assert device.heard("localhost:1: no telemetry gateway can be reached")
    assert len(device.said) == 2
    gateway.refusal = None
    wait_for(lambda: device.heard(f"Telemetry goes to {gateway.address}."))


def test_an_address_that_is_not_the_gateway_is_no_trouble_where_another_is(
    make_gateway: MakeGateway, make_device: MakeDevice
) -> None:
    gateway = make_gateway()
    device = make_device(nobody(), gateway.address)

    wait_for(lambda: device.heard(f"Telemetry goes to {gateway.address}."))

    assert len(device.said) == 1


def test_a_server_without_a_gateway(make_device: MakeDevice) -> None:
    server = grpc.server(ThreadPoolExecutor(2))
    port = server.add_insecure_port("localhost:0")
    server.start()
    try:
        device = make_device(f"localhost:{port}")
        wait_for(lambda: device.heard("there is no telemetry gateway"))
    finally:
        server.stop(None).wait(10)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"telemetry_version": TELEMETRY_VERSION + 1}, "install the same release on both"),
        ({"interval_seconds": 0.0}, "a report every 0 s, which cannot be meant"),
        ({"interval_seconds": float("nan")}, "a report every nan s"),
    ],
)
def test_a_gateway_that_speaks_otherwise(
    make_gateway: MakeGateway, make_device: MakeDevice, options: dict[str, Any], complaint: str
) -> None:
    gateway = make_gateway(**options)
    device = make_device(gateway.address)

    wait_for(lambda: device.heard(complaint))
    assert not gateway.numbered


def test_a_report_that_is_too_large_is_left_out(make_gateway: MakeGateway, make_device: MakeDevice) -> None:
    gateway = make_gateway(largest_report_bytes=60)
    classes = iter(["pi", "x" * 100])
    make_device(gateway.address, report=lambda: DeviceReport(device_class=next(classes, "pi")))

    wait_for(lambda: len(gateway.numbered) >= 3)

    assert gateway.numbers[:2] == [1, 3]


def test_a_sensor_that_fails_costs_a_report_and_nothing_else(
    make_gateway: MakeGateway, make_device: MakeDevice
) -> None:
    gateway = make_gateway()
    faults = [OSError("no such bus"), OSError("no such bus"), ValueError("reading is upside down")]

    def report() -> DeviceReport:
        if faults:
            raise faults.pop(0)
        return DeviceReport()

    device = make_device(gateway.address, report=report)

    wait_for(lambda: len(gateway.numbered) >= 2)
    assert device.heard("A telemetry report could not be made: OSError: no such bus")
    assert sum("could not be made" in line for line in device.said) == 1


@dataclass
class Secured:
    """A gateway with TLS, and a bundle for a device."""

    gateway: GatewayDouble
    authority: Path
    key_file: Path
    key: ec.EllipticCurvePrivateKey


@pytest.fixture
def secured(make_gateway: MakeGateway, tmp_path: Path) -> Secured:
    folder = tmp_path / "certificates"
    create_certificates(folder, ["localhost"])
    pair = [((folder / "server.key").read_bytes(), (folder / "server.crt").read_bytes())]
    key, key_file = make_private_key(), tmp_path / "node.key"
    key_file.write_bytes(private_key_file(key))
    gateway = make_gateway(credentials=grpc.ssl_server_credentials(pair))
    return Secured(gateway, folder / "ca.crt", key_file, key)


def test_an_enrolled_device_proves_itself_over_tls(secured: Secured, make_device: MakeDevice) -> None:
    make_device(secured.gateway.address, root_certificate=secured.authority, key=secured.key_file)

    wait_for(lambda: len(secured.gateway.numbered) >= 2)

    (proof,) = secured.gateway.proofs
    public = ssh.load_ssh_public_key(proof.public_key.encode())
    assert isinstance(public, ec.EllipticCurvePublicKey)
    assert public == secured.key.public_key()
    public.verify(proof.signature, b"neuroflux-telemetry-v1" + NONCE, ec.ECDSA(hashes.SHA384()))


def test_a_gateway_of_another_authority_learns_nothing(
    secured: Secured, make_device: MakeDevice, tmp_path: Path
) -> None:
    create_certificates(tmp_path / "other", ["localhost"])
    device = make_device(secured.gateway.address, root_certificate=tmp_path / "other" / "ca.crt", key=secured.key_file)

    wait_for(lambda: device.heard("no telemetry gateway can be reached"))
    assert not secured.gateway.proofs


@pytest.mark.parametrize("lost", ["authority", "key_file"])
def test_a_bundle_that_is_damaged(secured: Secured, make_device: MakeDevice, lost: str) -> None:
    getattr(secured, lost).unlink()
    device = make_device(secured.gateway.address, root_certificate=secured.authority, key=secured.key_file)

    wait_for(lambda: device.heard("cannot be read: No such file or directory"))
