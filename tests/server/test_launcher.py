"""What the launcher does when something ends: real child processes in Flower's place, and Flower's answers made up."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from neuroflux_fl.backoff import Backoff
from neuroflux_fl.errors import FleetError, StorageError, UsageError
from neuroflux_fl.run_config import RunConfig
from neuroflux_fl.stop_request import StopRequest
from server import gateway_child
from server import launcher as module
from server.flower_cli import FlowerRefusal
from server.flower_runs import FlowerRun
from server.gateway_settings import GatewaySettings
from server.launcher import Launcher, Pace
from server.run_record import RunRecord
from server.run_status import RunStatus, write_status
from server.state_folder import ServerState
from server.superlink import Endpoint, prepare_files

QUICK = Pace(
    tick=0.02, nodes=Backoff(first_seconds=0.05), listing=0.1, ending=0.05, most_resumes=2, last_scrape=0.05,
    resumes=Backoff(first_seconds=0.01, largest_seconds=0.01),
)  # fmt: skip
LISTEN = "import socket, sys, time\ns = socket.create_server(('127.0.0.1', int(sys.argv[1])))\ntime.sleep(600)"
ANSWER = """
import http.server, sys
http.server.HTTPServer(('127.0.0.1', int(sys.argv[1])), http.server.BaseHTTPRequestHandler).serve_forever()
"""
RUN_SOMETHING = """
import os, signal, subprocess
app = subprocess.Popen(['sleep', '600'])
signal.signal(signal.SIGTERM, lambda *_: (app.kill(), os._exit(0)))
app.wait()
"""
RUN_NOTHING = "import time\ntime.sleep(600)"


@dataclass
class Notes:
    """A watcher that remembers."""

    notes: list[str] = field(default_factory=list)
    shown: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def show(self, lines: Sequence[str], key: object) -> None:
        self.shown.append(lines[0])


@dataclass
class Flower:
    """What Flower answers: ``script`` says, for each submission, how the run ends once it has been listed twice."""

    out: Path
    script: list[Callable[[Flower], FlowerRun]] = field(default_factory=list)
    nodes: list[int] = field(default_factory=lambda: [1])
    submissions: list[dict[str, Any]] = field(default_factory=list)
    stopped: int = 0
    listed: int = 0

    def count_online_nodes(self, state: ServerState) -> int:
        return self.nodes.pop(0) if len(self.nodes) > 1 else self.nodes[0]

    def stop_unfinished_runs(self, state: ServerState) -> None:
        self.stopped += 1

    def submit_run(self, state: ServerState) -> int:
        import tomllib

        self.submissions.append(tomllib.loads(state.run_config_file.read_text()))
        self.listed = 0
        return len(self.submissions)

    def list_runs(self, state: ServerState) -> list[FlowerRun]:
        run_id = len(self.submissions)
        self.listed += 1
        if self.listed < 2 or not self.script:
            return [FlowerRun(run_id=run_id, status="running", details="")]
        return [self.script.pop(0)(self)]

    def save_run_log(self, state: ServerState, run_id: int) -> Path:
        return state.logs / f"serverapp-{run_id}.log"


def completed(flower: Flower) -> FlowerRun:
    (flower.out / "run.json").write_text('{"seconds": 1.0}')
    return FlowerRun(run_id=len(flower.submissions), status="finished:completed", details="")


def killed(flower: Flower) -> FlowerRun:
    return FlowerRun(run_id=len(flower.submissions), status="finished:failed", details="No heartbeat received")


def killed_after_a_round(flower: Flower) -> FlowerRun:
    with (flower.out / "rounds.jsonl").open("a") as file:
        file.write("{}\n")
    return killed(flower)


def ended_by_itself(flower: Flower) -> FlowerRun:
    write_status(flower.out, RunStatus(phase="failed", error="No devices came.", error_kind="FleetError"))
    return FlowerRun(run_id=len(flower.submissions), status="finished:failed", details="ServerApp failed with ...")


@dataclass
class Server:
    """A launcher with everything that a test wants to look at."""

    state: ServerState
    launcher: Launcher
    flower: Flower
    watcher: Notes
    stop: StopRequest

    def run(self) -> dict[str, Any] | None:
        return self.launcher.run(self.stop)

    def record(self) -> RunRecord:
        record = RunRecord.load(self.state.server_file)
        assert record is not None
        return record


MakeServer = Callable[..., Server]


@pytest.fixture
def make_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeServer:
    def make(
        *script: Callable[[Flower], FlowerRun],
        superlink: str = LISTEN,
        superexec: str = RUN_NOTHING,
        min_nodes: int = 1,
        run_ids: tuple[int, ...] = (),
        pace: Pace = QUICK,
        gateway: str | None = None,
    ) -> Server:
        state = ServerState(tmp_path / "state")
        port, *telemetry_ports = free_ports(3)
        endpoint = Endpoint(host="127.0.0.1", port=port, certificates=None)
        config = RunConfig(min_nodes=min_nodes, out=str(state.out)).to_flat()
        prepare_files(state, endpoint, config)
        flower = Flower(state.out, list(script))
        for name in ("count_online_nodes", "stop_unfinished_runs", "submit_run", "list_runs", "save_run_log"):
            monkeypatch.setattr(module, name, getattr(flower, name))
        python = [sys.executable, "-I", "-S", "-c"]
        monkeypatch.setattr(module, "superlink_command", lambda *_: [*python, superlink, str(port)])
        monkeypatch.setattr(module, "superexec_command", lambda *_: [*python, superexec])
        watcher = Notes()
        record = RunRecord(asked=config, config=config, run_ids=run_ids)
        telemetry = None
        if gateway is not None:
            report_to = replace(endpoint, port=telemetry_ports[0])
            telemetry = GatewaySettings(endpoint=report_to, metrics_port=telemetry_ports[1])
            monkeypatch.setattr(gateway_child, "gateway_command", lambda *_: [*python, gateway, "telemetry-gateway"])
        launcher = Launcher(state, endpoint, record, watcher, pace, telemetry=telemetry)
        return Server(state, launcher, flower, watcher, StopRequest())

    return make


def free_ports(count: int) -> list[int]:
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(listener.getsockname()[1]) for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


def children() -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == os.getpid() and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found


def gateways() -> list[int]:
    return [pid for pid in children() if b"telemetry-gateway" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def test_a_run_that_completes(make_server: MakeServer) -> None:
    server = make_server(completed)
    before = children()

    summary = server.run()

    assert summary == {"seconds": 1.0}
    (submitted,) = server.flower.submissions
    assert submitted["out"] == str(server.state.out)
    assert server.record().finished
    assert server.record().run_ids == (1,)
    assert children() == before


def test_a_run_that_was_killed_goes_on(make_server: MakeServer) -> None:
    server = make_server(killed_after_a_round, completed)

    assert server.run() is not None

    assert [submission["resume"] for submission in server.flower.submissions] == [True, True]
    assert server.flower.stopped == 2
    assert server.record().run_ids == (1, 2)
    assert any("was lost (No heartbeat received); it goes on after round 1" in note for note in server.watcher.notes)


def test_a_server_that_is_started_again_resumes(make_server: MakeServer) -> None:
    server = make_server(completed, run_ids=(41,))

    server.run()

    assert [submission["resume"] for submission in server.flower.submissions] == [True]
    assert server.record().run_ids == (41, 1)


def test_a_run_that_fails_by_its_own_error_is_not_repeated(make_server: MakeServer) -> None:
    server = make_server(ended_by_itself, completed)
    before = children()

    with pytest.raises(FleetError, match=r"No devices came\. Log: .*serverapp-1\.log\.$"):
        server.run()

    assert len(server.flower.submissions) == 1
    assert not server.record().finished
    assert children() == before


def test_an_error_of_an_earlier_submission_does_not_count(make_server: MakeServer) -> None:
    server = make_server(killed, completed)
    server.state.out.mkdir()
    (server.state.out / "status.json").write_text(json.dumps({"phase": "failed", "error": "old", "updated_at": 1.0}))

    assert server.run() is not None


def test_it_gives_up_where_nothing_moves(make_server: MakeServer) -> None:
    server = make_server(killed_after_a_round, killed, killed, completed)

    with pytest.raises(FleetError, match="failed 3 times without finishing a round, at last with: No heartbeat"):
        server.run()

    assert len(server.flower.submissions) == 3


def test_progress_keeps_it_going(make_server: MakeServer) -> None:
    server = make_server(*[killed_after_a_round] * 6, completed)

    assert server.run() is not None


def test_a_run_that_is_stopped_from_outside(make_server: MakeServer) -> None:
    server = make_server(lambda flower: FlowerRun(run_id=1, status="finished:stopped", details=""))

    with pytest.raises(FleetError, match="stopped from outside"):
        server.run()


def test_a_serverapp_that_vanishes_is_not_waited_for(make_server: MakeServer) -> None:
    def no_app(flower: Flower) -> FlowerRun:
        write_status(flower.out, RunStatus(phase="training"))
        return FlowerRun(run_id=len(flower.submissions), status="running", details="")

    server = make_server(no_app, no_app, completed)

    assert server.run() is not None

    assert len(server.flower.submissions) == 2
    assert any("its ServerApp was killed" in note for note in server.watcher.notes)


def test_a_serverapp_that_lives_is_left_alone(make_server: MakeServer) -> None:
    def at_work(flower: Flower) -> FlowerRun:
        write_status(flower.out, RunStatus(phase="training"))
        return FlowerRun(run_id=1, status="running", details="")

    # The time within which its child must have been started.
    server = make_server(*[at_work] * 4, completed, superexec=RUN_SOMETHING, pace=replace(QUICK, ending=3.0))

    assert server.run() is not None
    assert len(server.flower.submissions) == 1


def test_a_superlink_that_is_killed_is_started_again(make_server: MakeServer) -> None:
    def kill_superlink(flower: Flower) -> FlowerRun:
        killed_now = [pid for pid in children() if b"create_server" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        for pid in killed_now:
            os.kill(pid, signal.SIGKILL)
        return FlowerRun(run_id=1, status="running", details=str(killed_now))

    def wait_for_superlink(flower: Flower) -> FlowerRun:
        if not any("SuperLink was ended by signal 9 (Killed)" in note for note in server.watcher.notes):
            flower.script.insert(0, wait_for_superlink)
            return FlowerRun(run_id=1, status="running", details="")
        return completed(flower)

    server = make_server(kill_superlink, wait_for_superlink)

    assert server.run() is not None
    assert len(server.flower.submissions) == 1


def test_a_superlink_that_hangs_is_killed(make_server: MakeServer) -> None:
    def wait_for_kill(flower: Flower) -> FlowerRun:
        if not any(note.startswith("SuperLink was ended by signal 9") for note in server.watcher.notes):
            flower.script.insert(0, wait_for_kill)
            return FlowerRun(run_id=1, status="running", details="")
        return completed(flower)

    # It accepts connections, as a frozen process does, and says nothing.
    server = make_server(wait_for_kill, pace=replace(QUICK, probe=0.1, patience=0.5))

    assert server.run() is not None
    assert len(server.flower.submissions) == 1
    assert any(re.match(r"SuperLink has not answered for \d+ s: killed", note) for note in server.watcher.notes)


def test_a_superlink_that_answers_anything_is_left_alone(make_server: MakeServer) -> None:
    def at_work(flower: Flower) -> FlowerRun:
        return FlowerRun(run_id=1, status="running", details="")

    server = make_server(*[at_work] * 20, completed, superlink=ANSWER, pace=replace(QUICK, probe=0.1, patience=1.5))

    assert server.run() is not None
    assert not any("killed" in note.lower() for note in server.watcher.notes)


def test_a_server_that_refuses_the_run_is_not_asked_for_ever(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(state: ServerState) -> int:
        raise FlowerRefusal("Server refused run: no such key", None)

    server = make_server(completed)
    monkeypatch.setattr(module, "submit_run", refuse)

    with pytest.raises(FlowerRefusal):
        server.run()


def test_a_server_that_does_not_answer_is_asked_again(make_server: MakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server = make_server(completed)
    silent = [FleetError("Server does not answer.")] * 2

    def submit(state: ServerState) -> int:
        if silent:
            raise silent.pop()
        return server.flower.submit_run(state)

    monkeypatch.setattr(module, "submit_run", submit)

    assert server.run() is not None
    assert server.watcher.notes.count("Server does not answer. Trying again.") == 2


def test_devices_are_waited_for(make_server: MakeServer) -> None:
    server = make_server(completed, min_nodes=2)
    server.flower.nodes = [0, 1, 2]

    server.run()

    waiting = [line for line in server.watcher.shown if line.startswith("waiting")]
    assert list(dict.fromkeys(waiting)) == [
        "waiting for devices: 0 of 2 connected",
        "waiting for devices: 1 of 2 connected",
    ]


def test_stopping_while_it_waits_ends_everything(make_server: MakeServer) -> None:
    server = make_server(min_nodes=2)
    before = children()
    server.watcher.show = lambda lines, key: (  # type: ignore[method-assign]
        setattr(server.stop, "received", signal.SIGTERM) if lines[0].startswith("waiting") else None
    )

    assert server.run() is None

    assert server.flower.submissions == []
    assert children() == before


def test_a_superlink_that_cannot_start_says_why(make_server: MakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_UNSTARTABLE", 1)
    server = make_server(superlink="print('one'); print('database is of another release'); raise SystemExit(1)")

    with pytest.raises(FleetError, match=r"cannot be started: database is of another release Log: .*superlink\.log"):
        server.run()


def test_a_port_that_is_taken(make_server: MakeServer) -> None:
    server = make_server()
    endpoint = server.launcher._endpoint
    with socket.create_server(("127.0.0.1", endpoint.port)), pytest.raises(UsageError, match="Choose another --port"):
        server.run()


def test_a_gateway_runs_beside_the_others_and_ends_with_them(make_server: MakeServer) -> None:
    server = make_server(gateway=RUN_NOTHING)
    before = children()
    seen: list[int] = []

    def look(flower: Flower) -> FlowerRun:
        seen.extend(gateways())
        return completed(flower)

    server.flower.script.append(look)

    assert server.run() is not None
    assert len(seen) == 1
    assert children() == before


def test_a_gateway_outlives_its_run_for_a_last_scrape(make_server: MakeServer) -> None:
    server = make_server(completed, gateway=RUN_NOTHING, pace=replace(QUICK, last_scrape=0.3))
    seen: list[list[int]] = []
    show = server.watcher.show

    def look(lines: Sequence[str], key: object) -> None:
        show(lines, key)
        if lines[0] == "the run is complete":
            seen.append(gateways())

    server.watcher.show = look  # type: ignore[method-assign]

    server.run()

    assert [len(found) for found in seen] == [1]


def test_a_gateway_that_is_killed_is_started_again(make_server: MakeServer) -> None:
    def kill_gateway(flower: Flower) -> FlowerRun:
        for pid in gateways():
            os.kill(pid, signal.SIGKILL)
        return FlowerRun(run_id=1, status="running", details="")

    def wait_for_gateway(flower: Flower) -> FlowerRun:
        if not gateways() or not any("gateway was ended by signal 9" in note for note in server.watcher.notes):
            flower.script.insert(0, wait_for_gateway)
            return FlowerRun(run_id=1, status="running", details="")
        return completed(flower)

    server = make_server(kill_gateway, wait_for_gateway, gateway=RUN_NOTHING)

    assert server.run() is not None
    assert len(server.flower.submissions) == 1


@pytest.mark.parametrize(
    "gateway", ["print('no module of that name'); raise SystemExit(1)", "import os; os.abort()"], ids=["error", "abort"]
)
def test_a_gateway_that_cannot_start_never_stops_training(make_server: MakeServer, gateway: str) -> None:
    def wait_for_note(flower: Flower) -> FlowerRun:
        if not any(note.startswith("Telemetry gateway") for note in server.watcher.notes):
            flower.script.insert(0, wait_for_note)
            return FlowerRun(run_id=1, status="running", details="")
        return completed(flower)

    server = make_server(wait_for_note, gateway=gateway)

    assert server.run() is not None
    if "print" in gateway:
        assert any(note.endswith("Last line of telemetry.log: no module of that name") for note in server.watcher.notes)


def test_a_gateway_whose_command_cannot_be_made_is_left(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> list[str]:
        raise StorageError("Certificate folder has no server.crt.")

    server = make_server(completed, gateway=RUN_NOTHING)
    monkeypatch.setattr(gateway_child, "gateway_command", fail)

    assert server.run() is not None
    message = "Certificate folder has no server.crt. The run goes on without telemetry."
    assert server.watcher.notes.count(message) == 1


@pytest.mark.parametrize("option", ["--telemetry-port", "--metrics-port"])
def test_a_port_of_the_gateway_that_is_taken(make_server: MakeServer, option: str) -> None:
    server = make_server(gateway=RUN_NOTHING)
    gateway = server.launcher._gateway
    assert gateway is not None
    settings = gateway._settings
    port = settings.metrics_port if option == "--metrics-port" else settings.endpoint.port
    with socket.create_server(("127.0.0.1", port)), pytest.raises(UsageError, match=f"Choose another {option}"):
        server.run()
