"""Keeps a device in its fleet: agent, SuperNode and task runner run, whatever ends them, until it is told to stop."""

from __future__ import annotations

import re
import signal
import socket
import time
from contextlib import suppress
from dataclasses import dataclass, field

from clients.agent_client import AgentStatus, agent_status
from clients.client_commands import RUNTIME_HOST, ClientOptions, agent_command, superexec_command, supernode_command
from clients.device_telemetry import DeviceTelemetry
from clients.server_check import server_trouble
from clients.supernode_log import Connection, key_unusable, other_release, port_taken, read_connection, refused
from neuroflux_fl.backoff import Backoff
from neuroflux_fl.errors import NeurofluxError
from neuroflux_fl.sizes import format_bytes
from neuroflux_fl.stop_request import StopRequest
from neuroflux_fl.supervision import Child, Ended, Watcher, stop_all

_REMEMBER_SECONDS = 10.0
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_FLOWER_FORGETS_SECONDS = 75.0
"""A SuperLink takes a device for connected up to 60 s after its last sign of life, and lets it in only then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How often things are looked at, in seconds."""

    tick: float = 0.25
    agent: float = 10.0
    """Between two looks at the agent."""
    agent_timeout: float = 3.0
    """Time it has to answer."""
    agent_patience: float = 60.0
    """Silence after which an agent that lives is taken for hung."""
    agent_start: float = 180.0
    """The same after its start: slow boards import for minutes."""
    probe_after: float = 10.0
    """Time without a connection after which the way to the server is looked into."""
    probe: float = 60.0
    """Between two such looks."""
    backoff: Backoff = field(default_factory=Backoff)


class DeviceSupervisor:
    """One client on one state folder, which the caller has prepared and locked."""

    def __init__(self, options: ClientOptions, watcher: Watcher, pace: Pace | None = None) -> None:
        """Nothing is started yet."""
        self._options = options
        self._watcher = watcher
        self._pace = pace = pace or Pace()
        self._port = options.port
        environment, logs = options.environment(), options.state.logs
        self._supernode = Child(
            "SuperNode", self._start_supernode, log=logs / "supernode.log", environment=environment,
            backoff=pace.backoff,
        )  # fmt: skip
        self._superexec = Child(
            "SuperExec", lambda: superexec_command(options, self._port), log=logs / "superexec.log",
            environment=options.training_environment(), backoff=pace.backoff,
        )  # fmt: skip
        self._app_at_work = False
        self._agent: Child | None = None
        if (path := options.agent_socket) is not None:
            self._agent = Child(
                "Device agent", lambda: agent_command(path), log=logs / "agent.log",
                environment=options.training_environment(), backoff=pace.backoff, death_signal=signal.SIGKILL,
            )  # fmt: skip
        self._agent_status: AgentStatus | None = None
        self._agent_heard_at = self._next_agent_look = 0.0
        self._connection = Connection()
        self._node_id: int | None = None
        """Of the present SuperNode, once the server has let it in."""
        self._away_since: float | None = None
        self._next_probe = 0.0
        self._trouble = ""
        self._told: dict[str, str] = {}
        self._telemetry = DeviceTelemetry(options)

    def run(self, stop: StopRequest) -> None:
        """Keep the device in its fleet until ``stop``; everything that was started has ended then.

        Raises:
            StorageError: the state folder cannot be written.
            UsageError: the port for metrics cannot be opened; nothing has been started then.
        """
        with self._telemetry.running():
            try:
                if self._agent is not None:
                    self._agent.start()
                self._supernode.start()
                self._away_since = time.monotonic()
                while stop.received is None:
                    self._look_after_agent()
                    self._look_after_connection()
                    self._look_into_trouble()
                    self._tell_telemetry()
                    self._watcher.show(self._lines(), self._key())
                    time.sleep(self._pace.tick)
            finally:
                # The SuperNode takes its leave of the server; the agent is needed until no task runs any more.
                stop_all([self._superexec, self._supernode])
                if self._agent is not None:
                    stop_all([self._agent])

    def _start_supernode(self) -> list[str]:
        self._port = self._options.port or _free_port()
        return supernode_command(self._options, self._port)

    def _look_after_agent(self) -> None:
        agent, now = self._agent, time.monotonic()
        if agent is None:
            return
        starts = agent.starts
        ended = agent.tick()
        if ended is not None:
            self._agent_status = None
            self._note(ended, _last_words(ended, agent))
        if agent.starts > starts:
            self._agent_heard_at, self._next_agent_look = now, now + self._pace.tick
        path = self._options.agent_socket
        if agent.pid is None or path is None or now < self._next_agent_look:
            return
        try:
            self._agent_status = agent_status(path, self._pace.agent_timeout)
            self._agent_heard_at = now
            self._next_agent_look = now + min(self._pace.agent, self._telemetry.look_seconds or self._pace.agent)
        except NeurofluxError:
            starting = self._agent_status is None
            self._next_agent_look = now + (1.0 if starting else self._pace.agent_timeout)
            if now - self._agent_heard_at > (self._pace.agent_start if starting else self._pace.agent_patience):
                self._watcher.note(f"Device agent has not answered for {now - self._agent_heard_at:.0f} s: killed.")
                self._agent_status = None
                agent.kill()

    def _look_after_connection(self) -> None:
        ended = self._supernode.tick()
        if ended is not None:
            self._trouble = self._why(ended)
            self._note(ended, self._trouble)
            self._node_id, self._connection = None, Connection()
            self._away_since = time.monotonic()
            self._next_probe = self._away_since + self._pace.probe_after
            # Its tasks and their tokens went with the SuperNode, and the next one may have another port.
            self._superexec.stop(grace_seconds=3.0)
        if self._supernode.pid is not None:
            self._read_log()
        if self._node_id is not None:
            self._superexec.start()
        ended = self._superexec.tick()
        if ended is not None:
            self._note(ended, _last_words(ended, self._superexec))
            if self._app_at_work:
                # A ClientApp whose SuperExec is gone says farewell, after which Flower 1.41 answers its message never.
                self._watcher.note("A ClientApp was lost with it: the SuperNode is started anew, to tell the server.")
                self._supernode.kill()
        self._app_at_work = self._superexec.runs_something() is not False

    def _note(self, ended: Ended, why: str) -> None:
        """Tell of an end, unless it is one more of many for the same reason."""
        if ended.noteworthy or self._told.get(ended.name) != why:
            self._told[ended.name] = why
            self._watcher.note(f"{ended.describe()} {why}".rstrip())

    def _read_log(self) -> None:
        self._connection = read_connection(self._supernode.recent_output())
        if self._node_id is None and self._connection.node_id is not None:
            self._node_id = self._connection.node_id
            self._watcher.note(f"Connected to {self._options.server} as node {self._node_id}.")
        present = self._node_id is not None and self._connection.server_answers
        if present:
            self._away_since, self._trouble = None, ""
            self._remember_connection()
        elif self._away_since is None:
            self._away_since = time.monotonic()
            self._next_probe = self._away_since + self._pace.probe_after

    def _remember_connection(self) -> None:
        path = self._options.state.last_connected
        if self._seconds_since_connection() > _REMEMBER_SECONDS:
            with suppress(OSError):  # It serves a message only.
                path.touch(mode=0o600)

    def _seconds_since_connection(self) -> float:
        try:
            return max(0.0, time.time() - self._options.state.last_connected.stat().st_mtime)
        except OSError:
            return float("inf")

    def _tell_telemetry(self) -> None:
        self._telemetry.tell(
            connected=self._node_id is not None and self._connection.server_answers,
            agent_restarts=0 if self._agent is None else max(0, self._agent.starts - 1),
            status=self._agent_status,
        )
        for text in self._telemetry.news():
            self._watcher.note(text)

    def _look_into_trouble(self) -> None:
        """While the server is away, find out why and say so, once for each reason."""
        now = time.monotonic()
        if self._away_since is None or now < max(self._next_probe, self._away_since + self._pace.probe_after):
            return
        self._next_probe = now + self._pace.probe
        trouble = self._server_trouble()
        if trouble is not None and trouble != self._trouble:
            self._trouble = trouble
            self._watcher.note(f"No connection, trying again: {trouble}")

    def _server_trouble(self) -> str | None:
        bundle = self._options.bundle
        return server_trouble(self._options.server, None if bundle is None else bundle.root_certificate)

    def _why(self, ended: Ended) -> str:
        """One sentence on why the SuperNode ended; empty where that is known."""
        log = self._supernode.recent_output()
        if ended.exit_code < 0:
            return ""
        if refused(log):
            if self._seconds_since_connection() < _FLOWER_FORGETS_SECONDS:
                return (
                    "The server still takes this device's last connection for alive, which lasts up to 60 s (or has "
                    "just revoked it)."
                )
            return (
                "The server does not know this device: it was never enrolled there, or it was revoked. "
                "neuroflux-fl devices on the server lists those that it knows."
            )
        if port_taken(log):
            return f"Port {self._port} of {RUNTIME_HOST} is taken by another program."
        if key_unusable(log):
            return "The key in the bundle is none that Flower can use: enroll the device again."
        if other_release(log):
            return "Server and device have different releases of Flower: install the same flwr on both."
        if self._node_id is not None and ended.exit_code == 0:
            return "The server no longer lets this device in: was it revoked?"
        return self._server_trouble() or f"See {self._supernode.log}."

    def _lines(self) -> list[str]:
        server = self._options.server
        if self._node_id is None:
            first = f"connecting to {server}" + (f": {self._trouble}" if self._trouble else "")
        elif not self._connection.server_answers:
            first = f"{server} does not answer; trying again" + (f": {self._trouble}" if self._trouble else "")
        else:
            first = f"connected to {server} as node {self._node_id}"
        return [first, self._work()]

    def _work(self) -> str:
        status = self._agent_status
        if self._agent is None:
            return self._connection.working_on or "idle"
        if status is None:
            return "device agent is starting"
        memory = f", {format_bytes(status.resident_bytes)} resident" if status.resident_bytes else ""
        return f"{status.busy_with or 'idle'}; {status.tasks_done} tasks done{memory}"

    def _key(self) -> tuple[object, ...]:
        busy = self._agent_status.busy_with if self._agent_status is not None else self._connection.working_on
        return (self._node_id, self._connection.server_answers, busy)


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind((RUNTIME_HOST, 0))
        port: int = listener.getsockname()[1]
        return port


def _last_words(ended: Ended, child: Child) -> str:
    """The last line that a child printed, as the end of a message; nothing of one that was cut off."""
    lines = [line for raw in child.recent_output().splitlines() if (line := _COLOURS.sub("", raw).strip())]
    return f"It said: {lines[-1]}" if lines and ended.exit_code > 0 else ""
