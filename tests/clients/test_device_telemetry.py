"""A device's report and its own page, from what the supervisor tells."""

from __future__ import annotations

import socket
import threading
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from clients import device_telemetry as module
from clients.agent_client import AgentStatus
from clients.client_commands import ClientOptions, ClientState
from clients.device_telemetry import DeviceTelemetry
from clients.telemetry_options import TelemetryOptions
from neuroflux_fl.device_report import TrainingReading
from neuroflux_fl.errors import UsageError

STATUS = AgentStatus(
    pid=1, tasks_done=2, busy_with="train", resident_bytes=5000,
    training=TrainingReading(run="run-7", round=3, busy=True, training_bytes=900, samples=40, losses=((0, 1.5),)),
)  # fmt: skip
MakeTelemetry = Callable[..., DeviceTelemetry]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@pytest.fixture
def make_telemetry(tmp_path: Path) -> MakeTelemetry:
    def make(**telemetry: object) -> DeviceTelemetry:
        options = ClientOptions(
            state=ClientState(tmp_path),
            server="127.0.0.1:1",
            bundle=None,
            node_config={"device-class": "nano", "memory-budget": "64MiB"},
            agent_socket=None,
            telemetry=TelemetryOptions(name="shelf", **telemetry),  # type: ignore[arg-type]
        )
        return DeviceTelemetry(options)

    return make


def page(port: int) -> list[str]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        content: str = answer.read().decode()
    return content.splitlines()


def test_a_report_has_all_that_is_known(make_telemetry: MakeTelemetry) -> None:
    telemetry = make_telemetry(metrics_host="127.0.0.1", metrics_port=free_port())
    with telemetry.running():
        telemetry.tell(connected=True, agent_restarts=2, status=STATUS)
        report = telemetry.report()

        assert (report.device_class, report.budget_bytes, report.connected) == ("nano", 64 * 2**20, True)
        assert (report.agent_restarts, report.machine.resident_bytes) == (2, 5000)
        assert report.machine.disk_size_bytes
        assert report.training == STATUS.training
        telemetry.tell(connected=False, agent_restarts=3, status=None)
        gone = telemetry.report()

    assert (gone.connected, gone.training, gone.machine.resident_bytes) == (False, None, None)


def test_the_devices_own_page(make_telemetry: MakeTelemetry) -> None:
    port = free_port()
    telemetry = make_telemetry(metrics_host="127.0.0.1", metrics_port=port)
    with telemetry.running():
        telemetry.tell(connected=True, agent_restarts=0, status=STATUS)
        labels = 'device="shelf",device_class="nano",run="run-7"'
        lines = page(port)

        assert f"neuroflux_device_training_bytes{{{labels}}} 900.0" in lines
        assert f'neuroflux_device_unit_loss{{{labels},unit="0"}} 1.5' in lines
        assert f"neuroflux_device_samples_total{{{labels}}} 40.0" in lines
        telemetry.tell(connected=True, agent_restarts=1, status=None)
        lines = page(port)

    assert f"neuroflux_device_connected{{{labels}}} 1.0" in lines, "the run's label outlives the agent"
    assert not any(line.startswith("neuroflux_device_training_bytes{") for line in lines)


def test_a_port_that_is_taken(make_telemetry: MakeTelemetry) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        telemetry = make_telemetry(metrics_host="127.0.0.1", metrics_port=other.getsockname()[1])

        with pytest.raises(UsageError, match="cannot be opened"), telemetry.running():
            pass


def test_nothing_runs_where_nobody_wants_it(make_telemetry: MakeTelemetry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MachineSensors", None)
    telemetry = make_telemetry()
    before = threading.active_count()

    with telemetry.running():
        telemetry.tell(connected=True, agent_restarts=0, status=replace(STATUS, training=None))
        assert threading.active_count() == before
        assert telemetry.look_seconds is None
        assert telemetry.news() == []


def test_a_gateway_that_is_away_is_news(make_telemetry: MakeTelemetry) -> None:
    telemetry = make_telemetry(gateways=("localhost:1",))
    with telemetry.running():
        assert telemetry.look_seconds == 5
        said: list[str] = []
        for _ in range(1000):
            said += telemetry.news()
            if said:
                break
            threading.Event().wait(0.01)

    assert "Telemetry waits and training goes on: localhost:1" in said[0]
