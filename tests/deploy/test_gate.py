"""The gate, for real: nginx before a SuperLink with TLS and node keys, and everyone who might knock."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]
import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.proto.control_pb2 import RegisterNodeRequest
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest, PushMessagesRequest
from flwr.proto.message_pb2 import PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from clients.telemetry_push import TelemetryPush
from clients.telemetry_stream import Gateway as Destination
from neuroflux_fl.backoff import Backoff
from neuroflux_fl.device_report import DeviceReport
from neuroflux_fl.flower_environment import flower_command, flower_environment
from neuroflux_fl.wire.telemetry import METHOD, SERVICE
from server.certificates import create_certificates
from server.gateway_settings import GatewaySettings, gateway_command
from server.state_folder import ServerState
from server.superlink import Endpoint

pytestmark = pytest.mark.slow

NGINX = shutil.which("nginx", path=os.environ.get("PATH", "") + os.pathsep + "/usr/sbin")
if NGINX is None:
    pytest.skip("nginx is not installed: the gate cannot be tried", allow_module_level=True)

TEMPLATES = Path(__file__).resolve().parents[2] / "deploy" / "nginx"
FLEET_PATHS = sorted(path for _, path in PROTOBUF_REQUEST_TYPES if path.startswith("/v1/fleet/"))
OTHER_PATHS = sorted(path for _, path in PROTOBUF_REQUEST_TYPES if not path.startswith("/v1/fleet/"))
SELF_SERVICE = ["/v1/fleet/register-node", "/v1/fleet/unregister-node"]
PROTOBUF = {"content-type": "application/protobuf"}
REPORT = f"/{SERVICE}/{METHOD}"


@dataclass(frozen=True, slots=True)
class Gate:
    """A running gate with its SuperLink behind it."""

    address: str
    superlink: str
    telemetry: int
    """Port of the telemetry gateway; nothing listens there unless a test does."""
    state: ServerState
    authority: Path
    access_log: Path
    superlink_log: Path

    def trust(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.authority))

    def send(self, method: str, path: str, body: bytes = b"", *, to: str | None = None, **headers: str) -> int:
        """The status of one request; its path goes out as it is written."""
        connection = http.client.HTTPSConnection(to or self.address, context=self.trust(), timeout=20)
        try:
            connection.request(method, path, body, PROTOBUF | headers)
            return connection.getresponse().status
        finally:
            connection.close()

    def node(self, key: ec.EllipticCurvePrivateKey) -> FleetHttpClient:
        """What a SuperNode with this key talks through."""
        return FleetHttpClient.from_server_address(
            self.address,
            insecure=False,
            root_certificates=self.authority.read_bytes(),
            interceptors=[
                RuntimeVersionHttpInterceptor(component_name="SuperNode"),
                NodeAuthHttpInterceptor(key, key.public_key()),
            ],
        )

    def reached_superlink(self) -> int:
        """How many requests the SuperLink has answered."""
        return self.superlink_log.read_text().count("uvicorn.access]")


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@contextmanager
def running(command: list[str], log: Path, env: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process, ended with all its children."""
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=env, start_new_session=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(10)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)


def wait_until(true: Callable[[], bool], log: Path, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.2)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def render(folder: Path, **values: object) -> None:
    """What ``envsubst`` makes of the template: every value is given, and none is given in vain."""
    template = (TEMPLATES / "gate.conf.template").read_text()
    assert set(re.findall(r"\$\{(\w+)\}", template)) == set(values)
    (folder / "gate.conf").write_text(re.sub(r"\$\{(\w+)\}", lambda found: str(values[found[1]]), template))
    shutil.copy(TEMPLATES / "nginx.conf", folder)


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    root = tmp_path_factory.mktemp("gate")
    certificates = root / "certs"
    create_certificates(certificates, ["fleet.example.org"])
    port, superlink_port, telemetry = free_port(), free_port(), free_port()
    state = ServerState(root / "state")
    state.flwr_home.mkdir(parents=True)
    state.flwr_config.write_text(
        f'[superlink.fleet]\naddress = "127.0.0.1:{superlink_port}"\nroot-certificates = "{certificates / "ca.crt"}"\n'
    )
    state.secret.write_bytes(os.urandom(48))
    render(
        root,
        GATE_LISTEN=f"127.0.0.1:{port}",
        GATE_CERTIFICATES=certificates,
        GATE_SUPERLINK=f"127.0.0.1:{superlink_port}",
        GATE_TELEMETRY=f"127.0.0.1:{telemetry}",
        GATE_ACCESS_LOG=root / "access.log",
    )
    superlink = [
        *(flower_command("flower-superlink"), "--host", "127.0.0.1", "--port", str(superlink_port)),
        *("--ssl-ca-certfile", str(certificates / "ca.crt"), "--ssl-certfile", str(certificates / "server.crt")),
        *("--ssl-keyfile", str(certificates / "server.key"), "--enable-supernode-auth", "--isolation", "process"),
        *("--superexec-auth-secret-file", str(state.secret), "--database", str(state.database)),
    ]
    # Workers of a root's nginx are nobody, and could not enter pytest's folders.
    extra = "daemon off;" + (" user root;" if os.geteuid() == 0 else "")
    nginx = [str(NGINX), "-p", str(root), "-c", str(root / "nginx.conf"), "-g", extra]
    environment = state.flower_environment() | {"PYTHONUNBUFFERED": "1"}
    with (
        running(superlink, root / "superlink.log", environment),
        running(nginx, root / "nginx.log", dict(os.environ)),
    ):
        wait_until(lambda: listens(port), root / "nginx.log")
        wait_until(lambda: listens(superlink_port), root / "superlink.log")
        yield Gate(
            address=f"127.0.0.1:{port}",
            superlink=f"127.0.0.1:{superlink_port}",
            telemetry=telemetry,
            state=state,
            authority=certificates / "ca.crt",
            access_log=root / "access.log",
            superlink_log=root / "superlink.log",
        )


def command(*arguments: str, expect: int = 0) -> Any:
    """A command of ours as its users run it."""
    done = subprocess.run(
        [sys.executable, "-m", "neuroflux_fl", *arguments, "--json"],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == expect, done.stderr
    return json.loads(done.stdout) if expect == 0 else done.stderr


def key_of(bundle: Path) -> ec.EllipticCurvePrivateKey:
    key = load_ssh_private_key((bundle / "node.key").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


def status_of(call: Callable[[], object]) -> int:
    """Status of a call through Flower's own client."""
    try:
        call()
    except httpx.HTTPStatusError as error:
        return error.response.status_code
    return 200


def activation(key: ec.EllipticCurvePrivateKey) -> ActivateNodeRequest:
    return ActivateNodeRequest(public_key=public_key_to_bytes(key.public_key()), heartbeat_interval=30)


def test_control_is_open_to_anyone_behind_the_gate_and_not_there_before_it(gate: Gate) -> None:
    key = public_key_to_bytes(ec.generate_private_key(ec.SECP384R1()).public_key())
    intruder = RegisterNodeRequest(public_key=key).SerializeToString()
    assert gate.send("POST", "/v1/control/register-node", intruder) == 404
    assert command("devices", "--state", str(gate.state.root))["unlisted_node_ids"] == []
    # This is why there is a gate: who reaches the SuperLink lets himself in. The list of devices shows it at least.
    assert gate.send("POST", "/v1/control/register-node", intruder, to=gate.superlink) == 200
    assert gate.send("POST", "/v1/control/list-nodes", to=gate.superlink) == 200
    assert gate.send("GET", "/docs", to=gate.superlink) == 200
    assert len(command("devices", "--state", str(gate.state.root))["unlisted_node_ids"]) == 1

    before = gate.reached_superlink()
    others = [*OTHER_PATHS, *SELF_SERVICE, "/v1/runtime/responses", "/health", "/docs", "/openapi.json", "/"]
    assert {path: gate.send("POST", path) for path in others} == dict.fromkeys(others, 404)
    assert {path: gate.send("GET", path) for path in others} == dict.fromkeys(others, 404)
    assert len(OTHER_PATHS) > 60
    assert gate.reached_superlink() == before


@pytest.mark.parametrize(
    "path",
    [
        "/v1/fleet/../control/list-nodes",
        "/v1/fleet/%2e%2e/control/list-nodes",
        "/v1/fleet/..%2fcontrol%2flist-nodes",
        "/v1/fleet%2f..%2fcontrol/list-nodes",
        "/v1/control/list-nodes/../../fleet/pull-messages",
        "/v1/control/list-nodes%3f/../../fleet/pull-messages",
        "/v1/control/list-nodes%0a/../../fleet/pull-messages",
        "//v1/control/list-nodes",
        "/v1//fleet/pull-messages",
        "/v1/fleet/./pull-messages",
        "/v1/fleet/pull-messages/",
        "/v1/fleet/pull-messages?to=/v1/control/list-nodes",
        "/v1/fleet/pull-messages%0a",
        "/v1/fleet/push-object?x",
        "/V1/FLEET/pull-messages",
        "/%76%31/control/list-nodes",
        "https://127.0.0.1/v1/control/list-nodes",
    ],
)
def test_no_other_spelling_gets_through(gate: Gate, path: str) -> None:
    before = gate.reached_superlink()

    assert gate.send("POST", path) in (400, 404)
    assert gate.reached_superlink() == before


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_devices_only_post(gate: Gate, method: str) -> None:
    before = gate.reached_superlink()

    assert gate.send(method, "/v1/fleet/pull-messages") == 405
    assert gate.send(method, "/v1/fleet/push-object") == 405
    assert gate.reached_superlink() == before


def test_anonymous_calls_of_the_fleet_are_refused_by_flower(gate: Gate) -> None:
    calls = [path for path in FLEET_PATHS if path not in SELF_SERVICE]
    before = gate.reached_superlink()

    assert {path: gate.send("POST", path) for path in calls} == dict.fromkeys(calls, 401)
    assert gate.reached_superlink() == before + len(calls) == before + 10


def test_a_key_that_was_never_enrolled_gets_nothing(gate: Gate) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    with gate.node(key) as node:
        # Its signature is right, so Flower looks for it, and does not find it.
        assert status_of(lambda: node.ActivateNode(activation(key))) == 412
        assert status_of(lambda: node.PullMessages(PullMessagesRequest(node=Node(node_id=1)))) == 401


def test_an_enrolled_device_works_and_nobody_else_can_speak_for_it(gate: Gate, tmp_path: Path) -> None:
    state = str(gate.state.root)
    enrolled = [
        command("enroll", name, "--state", state, "--out", str(tmp_path / name))["node_id"] for name in ("one", "two")
    ]
    key, node_id = key_of(tmp_path / "one"), int(enrolled[0])
    with gate.node(key) as node:
        assert node.ActivateNode(activation(key)).node_id == node_id
        assert status_of(lambda: node.PullMessages(PullMessagesRequest(node=Node(node_id=node_id)))) == 200
        other = PullMessagesRequest(node=Node(node_id=int(enrolled[1])))
        assert status_of(lambda: node.PullMessages(other)) == 401

    listed = {row["name"]: row["status"] for row in command("devices", "--state", state)["devices"]}
    assert listed["one"] == "online"
    assert listed["two"] == "never-connected"

    command("revoke", "one", "--state", state)
    with gate.node(key) as node:
        assert status_of(lambda: node.PullMessages(PullMessagesRequest(node=Node(node_id=node_id)))) == 401
        assert status_of(lambda: node.ActivateNode(activation(key))) == 412
    listed = {row["name"]: row["status"] for row in command("devices", "--state", state)["devices"]}
    assert listed["one"] == "revoked"
    # Flower keeps a key that was ever used, so it can never come back under another name.
    message = command(
        *("enroll", "three", "--state", state, "--out", str(tmp_path / "three")),
        *("--public-key", str(tmp_path / "one" / "node.key.pub")),
        expect=2,
    )
    assert "was revoked with device 'one'" in message
    assert not (tmp_path / "three").exists()


def test_a_real_supernode_joins_through_the_gate_until_it_is_revoked(gate: Gate, tmp_path: Path) -> None:
    state, bundle, log = str(gate.state.root), tmp_path / "bundle", tmp_path / "supernode.log"
    # A key of ssh-keygen's making, as a device would do it itself.
    made = ["ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "", "-C", "kitchen", "-f", str(tmp_path / "own.key")]
    own = shutil.which("ssh-keygen") is not None
    if own:
        subprocess.run(made, check=True, timeout=20)
    given = ["--public-key", str(tmp_path / "own.key.pub")] if own else []
    command("enroll", "kitchen-pi", "--state", state, "--out", str(bundle), *given)
    key = tmp_path / "own.key" if own else bundle / "node.key"
    supernode = [
        *(flower_command("flower-supernode"), "--superlink", gate.address, "--port", str(free_port())),
        *("--root-certificates", str(bundle / "ca.crt"), "--auth-supernode-private-key", str(key)),
    ]

    def seen() -> str:
        rows = command("devices", "--state", state)["devices"]
        return str(next(row["status"] for row in rows if row["name"] == "kitchen-pi"))

    assert seen() == "never-connected"
    with running(supernode, log, flower_environment(tmp_path / "home")) as process:
        wait_until(lambda: seen() == "online", log)
        command("revoke", "kitchen-pi", "--state", state)
        # It is told 401 at its next question, and ends itself.
        wait_until(lambda: process.poll() is not None, log)
    assert seen() == "revoked"


def test_bodies_are_bounded_by_what_devices_send(gate: Gate) -> None:
    piece = PushObjectRequest(node=Node(node_id=1), object_content=bytes(5 * 2**20 + 4096)).SerializeToString()

    assert gate.send("POST", "/v1/fleet/push-object", piece) == 401  # it got as far as Flower
    assert gate.send("POST", "/v1/fleet/push-object", bytes(16 * 2**20 + 1)) == 413
    assert gate.send("POST", "/v1/fleet/push-messages", bytes(2**20 + 1)) == 413


def test_the_log_holds_no_proof_of_identity(gate: Gate) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    sent: list[str] = []
    with gate.node(key) as node:
        node._client.event_hooks["request"].append(lambda request: sent.extend(request.headers.values()))
        status_of(lambda: node.PushMessages(PushMessagesRequest(node=Node(node_id=7))))
    gate.send("POST", "/v1/fleet/pull-messages?token=hunter2")

    log = gate.access_log.read_text() + (gate.access_log.parent / "nginx.log").read_text()
    proofs = [value for value in sent if len(value) > 60]
    assert len(proofs) == 2
    assert '"POST /v1/fleet/push-messages" 401' in log
    assert "hunter2" not in log
    assert not [proof for proof in proofs if proof in log]


@contextmanager
def telemetry_gateway(gate: Gate, folder: Path, certificates: Path | None = None) -> Iterator[Callable[[str], str]]:
    """A gateway behind the gate; the value reads one of its pages."""
    certificates = certificates or gate.authority.parent
    endpoint = Endpoint(host="127.0.0.1", port=gate.telemetry, certificates=certificates)
    settings = GatewaySettings(endpoint=endpoint, metrics_port=free_port(), interval_seconds=0.2)
    log = folder / "gateway.log"
    with running(gateway_command(gate.state, settings), log, dict(os.environ)):
        wait_until(lambda: listens(settings.metrics_port), log)
        yield lambda path: httpx.get(f"http://127.0.0.1:{settings.metrics_port}{path}").text


def push(gate: Gate, bundle: Path) -> TelemetryPush:
    destination = Destination(
        addresses=(gate.address,), root_certificate=bundle / "ca.crt", key=bundle / "node.key", name="anything"
    )
    pauses = Backoff(first_seconds=0.1, largest_seconds=0.3)
    return TelemetryPush(destination, lambda: DeviceReport(device_class="pi"), interval_seconds=0.2, pauses=pauses)


def test_a_device_streams_its_telemetry_through_the_gate(gate: Gate, tmp_path: Path) -> None:
    state, bundle = str(gate.state.root), tmp_path / "bundle"
    node_id = int(command("enroll", "balcony", "--state", state, "--out", str(bundle))["node_id"])
    key, device = key_of(bundle), push(gate, bundle)
    device.start()
    try:
        with telemetry_gateway(gate, tmp_path) as page:
            log = tmp_path / "gateway.log"
            wait_until(lambda: 'device_reporting{device="balcony",device_class="pi"} 1.0' in page("/metrics"), log)
            wait_until(lambda: len(device.buffer) <= 1, log)
            with gate.node(key) as node:  # Flower's HTTP/1.1 beside the stream, on the same port
                assert node.ActivateNode(activation(key)).node_id == node_id
            before = gate.reached_superlink()
            assert gate.send("GET", REPORT) == 405
            assert [gate.send("POST", path) for path in (f"{REPORT}/", f"{REPORT}?a", f"/{REPORT}")] == [404] * 3
            assert [gate.send("POST", f"/{SERVICE}/{method}") for method in ("", "report", "Other")] == [404] * 3
            assert gate.send("POST", "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo") == 404
            assert gate.reached_superlink() == before
            assert "neuroflux_telemetry_streams 1.0" in page("/metrics")

            command("revoke", "balcony", "--state", state)
            wait_until(lambda: 'streams_refused_total{reason="revoked"} 0.0' not in page("/metrics"), log)
            assert "balcony" not in page("/metrics")
    finally:
        device.stop()


def test_without_a_gateway_devices_are_told_to_come_again(gate: Gate) -> None:
    with grpc.secure_channel(gate.address, grpc.ssl_channel_credentials(gate.authority.read_bytes())) as channel:
        with pytest.raises(grpc.RpcError) as raised:
            next(channel.stream_stream(REPORT)(iter(())))
        assert raised.value.code() == grpc.StatusCode.UNAVAILABLE
        for _ in range(5):
            with pytest.raises(grpc.RpcError) as raised:
                # One request, as Flower makes it: it is whole before nginx answers.
                channel.unary_unary("/v1/control/list-nodes")(b"")
            # On a busy machine nginx's reset of the stream may overtake its 404: that answer says nothing.
            if raised.value.code() != grpc.StatusCode.INTERNAL:
                break
        assert raised.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_the_gate_passes_telemetry_to_nobody_but_the_fleets_own_gateway(gate: Gate, tmp_path: Path) -> None:
    create_certificates(tmp_path / "others", ["localhost"])
    with telemetry_gateway(gate, tmp_path, tmp_path / "others"):
        assert gate.send("POST", REPORT) == 502


def test_the_gate_shows_the_certificate_that_devices_trust(gate: Gate) -> None:
    host, port = gate.address.split(":")
    with (
        socket.create_connection((host, int(port)), timeout=10) as plain,
        gate.trust().wrap_socket(plain, server_hostname="fleet.example.org") as secured,
    ):
        assert secured.version() == "TLSv1.3"
    strangers = ssl.create_default_context()
    with (
        socket.create_connection((host, int(port)), timeout=10) as plain,
        pytest.raises(ssl.SSLCertVerificationError),
    ):
        strangers.wrap_socket(plain, server_hostname="fleet.example.org")
