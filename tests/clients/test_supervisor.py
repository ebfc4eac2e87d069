"""A device stays in its fleet whatever ends: real child processes in the place of Flower and of the agent."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import pytest

from clients import supervisor as module
from clients.agent_client import AgentStatus
from clients.client_commands import ClientOptions, ClientState
from clients.supervisor import DeviceSupervisor, Pace
from clients.telemetry_options import TelemetryOptions
from neuroflux_fl.backoff import Backoff
from neuroflux_fl.device_report import TrainingReading
from neuroflux_fl.errors import FleetError
from neuroflux_fl.stop_request import StopRequest

QUICK = Pace(
    tick=0.02, agent=0.1, agent_timeout=0.1, agent_patience=0.3, agent_start=0.6, probe_after=0.1, probe=0.1,
    backoff=Backoff(first_seconds=0.02, largest_seconds=0.05),
)  # fmt: skip
Value = TypeVar("Value")
FOREVER = "import time; time.sleep(600)"
JOINED = f"print('SuperNode ID: 7', flush=True); {FOREVER}"
AT_WORK = f"import subprocess; subprocess.Popen(['sleep', '600']); {FOREVER}"
REFUSED = "print('Exit Code: 305\\n[code: 2004] Failed to activate SuperNode.'); raise SystemExit(1)"


@dataclass
class Notes:
    """A watcher that remembers."""

    notes: list[str] = field(default_factory=list)
    shown: list[str] = field(default_factory=list)

    @property
    def last(self) -> str:
        return self.shown[-1] if self.shown else ""

    def note(self, text: str) -> None:
        self.notes.append(text)

    def show(self, lines: Sequence[str], key: object) -> None:
        self.shown.append("; ".join(lines))


@dataclass
class Client:
    """A supervisor at work in a thread of its own, and what a test does to it."""

    supervisor: DeviceSupervisor
    watcher: Notes
    stop: StopRequest
    thread: threading.Thread
    state: ClientState

    def wait_for(self, condition: Callable[[], Value | None], seconds: float = 20.0) -> Value:
        deadline = time.monotonic() + seconds
        while not (value := condition()):
            assert time.monotonic() < deadline, self.watcher.notes
            assert self.thread.is_alive()
            time.sleep(0.01)
        return value

    def noted(self, text: str) -> bool:
        return any(text in note for note in self.watcher.notes)

    def pid(self, marker: str) -> int | None:
        """None also while it is in the midst of an exec, when a process has no command line for a moment."""
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                if f"{marker} {self.state.root}" in path.read_bytes().replace(b"\0", b" ").decode():
                    return int(path.parent.name)
            except OSError:
                continue
        return None

    def kill(self, marker: str) -> None:
        pid = self.wait_for(lambda: self.pid(marker))
        os.kill(pid, signal.SIGKILL)
        self.wait_for(lambda: self.pid(marker) not in (None, pid))

    def end(self) -> None:
        self.stop.received = signal.SIGTERM
        self.thread.join(30)
        assert not self.thread.is_alive()


MakeClient = Callable[..., Client]


@pytest.fixture
def make_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeClient]:
    made: list[Client] = []

    def make(
        supernode: str = JOINED,
        superexec: str = FOREVER,
        agent: str | None = None,
        trouble: str | None = None,
        gateways: tuple[str, ...] = (),
    ) -> Client:
        state = ClientState(tmp_path)
        state.logs.mkdir()

        def stand_in(marker: str, code: str) -> list[str]:
            return [sys.executable, "-I", "-S", "-c", code, marker, str(tmp_path)]

        monkeypatch.setattr(module, "supernode_command", lambda _, port: [*stand_in("supernode", supernode), str(port)])
        monkeypatch.setattr(module, "superexec_command", lambda _, port: [*stand_in("superexec", superexec), str(port)])
        monkeypatch.setattr(module, "agent_command", lambda _: stand_in("agent", agent or FOREVER))
        monkeypatch.setattr(module, "server_trouble", lambda *_: trouble)
        options = ClientOptions(
            state=state,
            server="fleet.example.org:8443",
            bundle=None,
            node_config={},
            agent_socket=None if agent is None else tmp_path / "agent.sock",
            telemetry=TelemetryOptions(gateways=gateways),
        )
        watcher, stop = Notes(), StopRequest()
        supervisor = DeviceSupervisor(options, watcher, QUICK)
        client = Client(supervisor, watcher, stop, threading.Thread(target=supervisor.run, args=(stop,)), state)
        made.append(client)
        client.thread.start()
        return client

    yield make
    for client in made:
        client.end()


def test_the_task_runner_waits_for_the_connection(make_client: MakeClient) -> None:
    client = make_client(supernode=FOREVER)
    client.wait_for(lambda: client.pid("supernode"))
    client.wait_for(lambda: len(client.watcher.shown) > 5)

    assert client.pid("superexec") is None
    assert client.watcher.last == "connecting to fleet.example.org:8443; idle"


def test_all_is_up_and_all_is_ended(make_client: MakeClient) -> None:
    client = make_client()
    client.wait_for(lambda: client.pid("superexec"))

    assert client.noted("Connected to fleet.example.org:8443 as node 7.")
    assert client.state.last_connected.exists()
    client.end()

    assert client.pid("supernode") is client.pid("superexec") is None


def test_a_task_runner_that_is_killed_is_replaced(make_client: MakeClient) -> None:
    client = make_client()

    client.kill("superexec")

    client.wait_for(lambda: client.noted("SuperExec was ended by signal 9 (Killed)"))
    assert not client.noted("SuperNode")


def test_a_task_runner_that_is_killed_at_work_takes_the_supernode_along(make_client: MakeClient) -> None:
    client = make_client(superexec=AT_WORK)
    client.wait_for(lambda: client.supervisor._app_at_work)
    node = client.wait_for(lambda: client.pid("supernode"))

    client.kill("superexec")

    client.wait_for(lambda: client.pid("supernode") not in (None, node))
    client.wait_for(lambda: client.noted("A ClientApp was lost with it"))


def test_a_supernode_that_is_killed_takes_its_task_runner_along(make_client: MakeClient) -> None:
    client = make_client()
    runner = client.wait_for(lambda: client.pid("superexec"))

    client.kill("supernode")

    client.wait_for(lambda: client.pid("superexec") not in (None, runner))
    assert sum("Connected to" in note for note in client.watcher.notes) == 2


def test_an_end_without_error_is_an_end_too(make_client: MakeClient) -> None:
    client = make_client(supernode="import time; print('SuperNode ID: 7', flush=True); time.sleep(0.3)")

    client.wait_for(lambda: client.noted("exit code 0"))
    client.wait_for(lambda: client.noted("The server no longer lets this device in: was it revoked?"))
    client.wait_for(lambda: sum("Connected to" in note for note in client.watcher.notes) >= 2)


def test_a_device_that_is_not_enrolled_is_told_so(make_client: MakeClient) -> None:
    client = make_client(supernode=REFUSED)

    client.wait_for(lambda: client.noted("never enrolled there, or it was revoked"))
    client.wait_for(lambda: sum("exit code 1" in note for note in client.watcher.notes) >= 3)
    client.wait_for(lambda: client.watcher.last.startswith("connecting to fleet.example.org:8443: The server does not"))


def test_a_device_that_was_just_connected_is_told_to_wait(make_client: MakeClient, tmp_path: Path) -> None:
    (tmp_path / "last-connected").touch()
    client = make_client(supernode=REFUSED)

    client.wait_for(lambda: client.noted("last connection for alive, which lasts up to 60 s"))
    assert not client.noted("never enrolled")


def test_what_stands_in_the_way_is_said_once(make_client: MakeClient) -> None:
    client = make_client(supernode=FOREVER, trouble="nobody is at home")

    client.wait_for(lambda: client.noted("No connection, trying again: nobody is at home"))
    client.wait_for(lambda: "connecting to fleet.example.org:8443: nobody is at home" in client.watcher.last)
    before = len(client.watcher.shown)
    client.wait_for(lambda: len(client.watcher.shown) > before + 20)
    assert sum("nobody is at home" in note for note in client.watcher.notes) == 1


def test_a_server_that_goes_away_is_shown(make_client: MakeClient) -> None:
    away = "print('SuperNode ID: 7\\nConnection attempt failed, retrying in 1.0 seconds', flush=True)"
    client = make_client(supernode=f"{away}; {FOREVER}", trouble="the cable is out")

    client.wait_for(lambda: "does not answer; trying again: the cable is out" in client.watcher.last)


def test_an_agent_that_is_killed_is_replaced(make_client: MakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        module, "agent_status", lambda *_: AgentStatus(pid=1, tasks_done=3, busy_with="train", resident_bytes=2**20)
    )
    client = make_client(agent=FOREVER)
    client.wait_for(lambda: "train; 3 tasks done, 1.0 MiB resident" in client.watcher.last)

    client.kill("agent")

    client.wait_for(lambda: client.noted("Device agent was ended by signal 9"))


def test_telemetry_learns_what_the_supervisor_knows(make_client: MakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    training = TrainingReading(run="run-1", samples=7)
    status = AgentStatus(pid=1, tasks_done=3, busy_with="", resident_bytes=2**20, training=training)
    monkeypatch.setattr(module, "agent_status", lambda *_: status)
    client = make_client(agent=FOREVER, gateways=("localhost:1",))
    report = client.supervisor._telemetry.report

    client.wait_for(lambda: report().training == training and report().connected)
    assert report().agent_restarts == 0
    client.kill("agent")

    client.wait_for(lambda: report().agent_restarts == 1 and report().training == training)


def test_telemetry_that_fails_in_every_way_disturbs_nobody(
    make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("a sensor is on fire")

    monkeypatch.setattr("clients.device_telemetry.REPORT_SECONDS", 0.05)
    monkeypatch.setattr("clients.device_telemetry.MachineSensors.read", fail)
    client = make_client(gateways=("localhost:1",))
    client.wait_for(lambda: client.pid("superexec"))

    client.wait_for(lambda: client.noted("Telemetry waits and training goes on: localhost:1"))
    client.wait_for(lambda: client.noted("A telemetry report could not be made: RuntimeError: a sensor is on fire"))

    client.kill("superexec")
    client.wait_for(lambda: client.noted("SuperExec was ended by signal 9"))


def test_an_agent_that_hangs_is_killed(make_client: MakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [AgentStatus(pid=1, tasks_done=0, busy_with="", resident_bytes=0)]

    def status(path: Path, timeout: float) -> AgentStatus:
        if not answers:
            raise FleetError("no answer")
        return answers.pop()

    monkeypatch.setattr(module, "agent_status", status)
    client = make_client(agent=FOREVER)

    client.wait_for(lambda: client.noted("Device agent has not answered for"))
    client.wait_for(lambda: client.noted("Device agent was ended by signal 9"))


def test_last_words_of_an_agent_that_cannot_start(make_client: MakeClient) -> None:
    client = make_client(
        agent="print('\\x1b[92mone\\x1b[0m\\nerror: socket folder is open to others\\n'); raise SystemExit(2)"
    )

    client.wait_for(lambda: client.noted("exit code 2"))
    assert client.noted("It said: error: socket folder is open")
