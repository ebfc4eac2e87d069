"""The gateway as a process: real devices' side, real TLS and keys, and everything that may be wrong around it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from clients.telemetry_push import TelemetryPush
from clients.telemetry_stream import Gateway as Destination
from neuroflux_fl.backoff import Backoff
from neuroflux_fl.device_report import DeviceReport, TrainingReading
from server.certificates import create_certificates
from server.device_registry import Device, read_registry, write_registry
from server.gateway_settings import GatewaySettings, gateway_command
from server.node_keys import fingerprint, make_private_key, private_key_file, public_key_line
from server.state_folder import ServerState
from server.superlink import Endpoint

INTERVAL = 0.1
STALE = 1.5
Values = dict[tuple[str, ...], float]


@dataclass
class Fleet:
    """A gateway of a server that has TLS, and the devices that report to it."""

    root: Path
    settings: GatewaySettings
    state: ServerState
    process: subprocess.Popen[bytes] | None = None
    pushes: list[TelemetryPush] = field(default_factory=list)
    samples: int = 0

    def start(self) -> None:
        with (self.root / "gateway.log").open("ab") as log:
            self.process = subprocess.Popen(gateway_command(self.state, self.settings), stdout=log, stderr=log)
        self.until(lambda: self.page("/targets") is not None)

    def kill(self, number: signal.Signals = signal.SIGKILL) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(20)

    def log(self) -> str:
        return (self.root / "gateway.log").read_text()

    def enroll(self, name: str, *, registered: bool = True) -> Destination:
        """A device with a key, and its way to the gateway."""
        key = make_private_key()
        path = self.root / f"{name}.key"
        path.write_bytes(private_key_file(key))
        public = key.public_key()
        devices = read_registry(self.state.devices_file)
        device = Device(
            name=name, node_id=len(devices) + 1, fingerprint=fingerprint(public), public_key=public_key_line(public),
            enrolled_at="",
        )  # fmt: skip
        if registered:
            write_registry(self.state.devices_file, devices | {name: device})
        address = f"localhost:{self.settings.endpoint.port}"
        return Destination(addresses=(address,), root_certificate=self.root / "certs" / "ca.crt", key=path, name=name)

    def push(self, destination: Destination, device_class: str = "pi") -> TelemetryPush:
        """Start reporting; ended with the fleet."""

        def make_report() -> DeviceReport:
            self.samples += 1
            return DeviceReport(device_class=device_class, training=TrainingReading(samples=self.samples))

        pauses = Backoff(first_seconds=0.1, largest_seconds=0.3)
        push = TelemetryPush(destination, make_report, interval_seconds=INTERVAL, pauses=pauses)
        self.pushes.append(push)
        push.start()
        return push

    def page(self, path: str) -> str | None:
        address = f"http://127.0.0.1:{self.settings.metrics_port}{path}"
        try:
            with urllib.request.urlopen(address, timeout=10) as answer:
                return str(answer.read().decode())
        except OSError:
            return None

    def values(self, metric: str) -> Values:
        """Values of a metric by the values of its labels, in the order of the labels' names."""
        return {
            tuple(value for _, value in sorted(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(self.page("/metrics") or "")
            for sample in family.samples
            if sample.name == f"neuroflux_{metric}"
        }

    def until(self, condition: Callable[[], bool], seconds: float = 30.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.05)


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(listener.getsockname()[1]) for listener in sockets]
    for listener in sockets:
        listener.close()
    return ports


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gateway") / "certs"
    create_certificates(folder, ["localhost"])
    return folder


@pytest.fixture
def fleet(tmp_path: Path, certificates: Path) -> Iterator[Fleet]:
    (tmp_path / "certs").symlink_to(certificates)
    port, metrics_port = free_ports(2)
    settings = GatewaySettings(
        endpoint=Endpoint(host="127.0.0.1", port=port, certificates=certificates), metrics_port=metrics_port,
        run="run-1", stale_seconds=STALE, interval_seconds=INTERVAL,
    )  # fmt: skip
    state = ServerState(tmp_path / "state")
    state.root.mkdir()
    made = Fleet(tmp_path, settings, state)
    yield made
    for push in made.pushes:
        push.stop()
    if made.process is not None:
        with suppress(ProcessLookupError):
            made.process.kill()
        made.process.wait(20)


def test_devices_report_by_their_enrolled_names_until_they_stop(fleet: Fleet) -> None:
    fleet.start()
    one, two = (replace(fleet.enroll(name), name="another") for name in ("one", "two"))
    push = fleet.push(one)
    fleet.push(two, "nano")

    fleet.until(lambda: fleet.values("device_reporting") == {("one", "pi"): 1, ("two", "nano"): 1})
    assert set(fleet.values("device_samples_total")) == {("one", "pi", "run-1"), ("two", "nano", "run-1")}
    assert fleet.values("telemetry_streams") == {(): 2}

    push.stop()
    fleet.until(lambda: fleet.values("device_reporting") == {("one", "pi"): 0, ("two", "nano"): 1})
    assert set(fleet.values("device_samples_total")) == {("two", "nano", "run-1")}
    assert fleet.kill(signal.SIGTERM) == 0


def test_a_gateway_that_is_killed_and_comes_back_gets_what_was_kept(fleet: Fleet) -> None:
    fleet.start()
    push = fleet.push(fleet.enroll("one"))
    fleet.until(lambda: len(fleet.values("device_reporting")) == 1)

    fleet.kill()
    fleet.until(lambda: len(push.buffer) > 10)  # it goes on reporting, to its own memory
    kept = len(push.buffer)
    fleet.start()

    fleet.until(lambda: fleet.values("telemetry_reports_total")["accepted",] > kept)
    assert fleet.values("telemetry_reports_lost_total") == {(): 0}
    assert fleet.values("device_reporting") == {("one", "pi"): 1}
    fleet.until(lambda: len(push.buffer) <= 2)


def test_of_what_a_silent_gateway_missed_every_report_has_come_or_is_counted_as_lost(fleet: Fleet) -> None:
    fleet.start()
    made = 0

    def make_report() -> DeviceReport:
        nonlocal made
        made += 1
        return DeviceReport(device_class="pi")

    push = TelemetryPush(
        fleet.enroll("one"), make_report, interval_seconds=INTERVAL, kept_reports=5,
        pauses=Backoff(first_seconds=0.1, largest_seconds=0.3),
    )  # fmt: skip
    fleet.pushes.append(push)
    push.start()
    fleet.until(lambda: len(fleet.values("device_reporting")) == 1)
    assert fleet.process is not None

    fleet.process.send_signal(signal.SIGSTOP)
    before = made
    fleet.until(lambda: made >= before + 15)
    fleet.process.send_signal(signal.SIGCONT)
    fleet.until(lambda: len(push.buffer) <= 1)
    push.stop()
    fleet.until(lambda: fleet.values("telemetry_streams") == {(): 0})

    accepted = fleet.values("telemetry_reports_total")["accepted",]
    lost = fleet.values("telemetry_reports_lost_total")[()]
    assert accepted >= before - 2
    # What was on its way at the end may have come or not.
    assert made - 5 <= accepted + lost <= made


def test_who_is_not_enrolled_gets_nowhere_and_who_is_revoked_is_put_out(fleet: Fleet) -> None:
    fleet.start()
    stranger = fleet.push(fleet.enroll("stranger", registered=False))
    fleet.push(fleet.enroll("one"))
    fleet.until(lambda: fleet.values("device_reporting") == {("one", "pi"): 1})
    fleet.until(lambda: fleet.values("telemetry_streams_refused_total")["unknown_key",] > 0)
    assert any("not enrolled" in line for line in stranger.news())

    devices = read_registry(fleet.state.devices_file)
    write_registry(fleet.state.devices_file, {"one": replace(devices["one"], revoked_at="2026-01-01T00:00:00+00:00")})

    fleet.until(lambda: fleet.values("telemetry_streams_refused_total")["revoked",] > 0)
    fleet.until(lambda: fleet.values("device_reporting") == {})
    assert fleet.values("telemetry_streams") == {(): 0}


def test_pages_tell_of_the_run_and_survive_damage_to_its_files(fleet: Fleet, write_run: Callable[..., Path]) -> None:
    fleet.start()
    fleet.push(fleet.enroll("one"))
    fleet.until(lambda: len(fleet.values("device_reporting")) == 1)
    assert fleet.values("round") == {}
    assert fleet.page("/targets") == "[]"
    assert fleet.page("/anything") is None

    write_run(fleet.state.out, devices=2)
    assert list(fleet.values("round").values()) == [6]
    fleet.until(fleet.state.telemetry_file.exists)
    written = json.loads(fleet.state.telemetry_file.read_text())
    assert [(row["device"], row["reporting"]) for row in written["devices"]] == [("one", True)]

    (fleet.state.out / "setting.json").write_text("{")
    assert fleet.values("round") == {}
    assert fleet.values("device_reporting") == {("one", "pi"): 1}
    assert fleet.page("/targets") == "[]"
    fleet.page("/metrics")
    assert fleet.log().count("setting.json cannot be read") == 2  # once for each page


def test_a_folder_that_cannot_be_written_is_told_of_once(fleet: Fleet) -> None:
    fleet.state.out.mkdir()
    fleet.state.telemetry_file.mkdir()  # nothing can be renamed to this
    fleet.start()
    fleet.push(fleet.enroll("one"))

    fleet.until(lambda: "Cannot write" in fleet.log())
    time.sleep(0.5)
    assert fleet.log().count("Cannot write") == 1
    assert fleet.values("device_reporting") == {("one", "pi"): 1}


@pytest.mark.parametrize("taken", ["metrics", "reports"])
def test_a_port_that_is_taken_is_a_clear_end(fleet: Fleet, taken: str) -> None:
    port = fleet.settings.metrics_port if taken == "metrics" else fleet.settings.endpoint.port
    with socket.create_server(("127.0.0.1", port)):
        done = subprocess.run(
            gateway_command(fleet.state, fleet.settings), capture_output=True, text=True, timeout=60, check=False
        )
    assert done.returncode == 2
    assert f"port {port} of 127.0.0.1 cannot be opened" in done.stderr
    assert "Traceback" not in done.stderr


def test_it_needs_no_torch() -> None:
    # It is to run beside the server for weeks, on whatever that has.
    code = "import sys, server.telemetry_gateway; print(sorted({'torch', 'flwr', 'ray'} & sys.modules.keys()))"
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True, env=environment
    )
    assert done.stdout == "[]\n"
