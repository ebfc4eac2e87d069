"""A fleet of real processes on this machine: server and enrolled devices over TLS, all in one folder, ended by pid."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from clients.client_commands import ClientState
from neuroflux_fl import die_with_parent
from server.flower_cli import ask_flower
from server.state_folder import ServerState
from server.superlink import Endpoint, superlink_command

_MARK = "NEUROFLUX_BENCHMARK_FLEET"
_PROGRAMS = {
    "flower-superlink": "superlink",
    "flower-superexec": "superexec",
    "flower-supernode": "supernode",
    "flwr-clientapp": "clientapp",
    "flwr-serverapp": "serverapp",
    "clients.agent": "agent",
    "server.telemetry_gateway": "gateway",
}
_TICK_SECONDS = 0.2
_ENDING_SECONDS = 25.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetDevice:
    """One device to be."""

    name: str
    budget: str
    partition_id: int
    partitions: int
    data: str = "digits"
    agent: bool = True
    state: Path | None = None
    """Its state folder; None makes one in the fleet's."""
    launcher: tuple[str, ...] = ()
    """Put before its command, for example ``ip netns exec NAME``."""
    arguments: tuple[str, ...] = ()
    """Further ones of its ``neuroflux-fl client``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetProcess:
    """One process of the fleet's Flower programs or agents."""

    pid: int
    started: int
    """In the kernel's clock ticks: with the pid, it names a process for good."""
    owner: str
    """Name of the device, or ``server``."""
    program: str
    """superlink, superexec, supernode, clientapp, serverapp, agent or gateway."""
    resident_bytes: int


class RealFleet:
    """Server and devices as a user starts them; its block ends every process that it led to.

    Args:
        root: An empty folder for everything.
        devices: Who takes part.
        server_arguments: Of ``neuroflux-fl server``, beside address, state and certificates.
        host: Address of this machine that the server listens on.
        threads: Of torch, for every process.
    """

    def __init__(
        self,
        root: Path,
        devices: Sequence[FleetDevice],
        server_arguments: Sequence[str],
        *,
        host: str = "127.0.0.1",
        threads: int = 1,
    ) -> None:
        self.root = root
        self.devices = {device.name: device for device in devices}
        self.server_state = ServerState(root / "server")
        self.left_behind: list[str] = []
        """Processes that outlived the commands that were to end them, known once the block has ended."""
        self._endpoint = Endpoint(host=host, port=_free_port(host), certificates=root / "certs")
        self.metrics_port = _free_port(host)
        """Of the gateway, on the loopback; its ``/metrics`` and ``/targets`` tell of the fleet."""
        self._server_arguments = list(server_arguments)
        self._threads = threads
        self._mark = uuid.uuid4().hex
        self._environment = os.environ | {_MARK: self._mark, "OMP_NUM_THREADS": str(threads)}
        self._commands: dict[str, subprocess.Popen[bytes]] = {}
        self._owners = {
            str(self.server_state.flwr_home): "server",
            **{str(self.client_state(name).flwr_home): name for name in self.devices},
        }
        self._known: dict[tuple[int, int], dict[str, str]] = {}

    def __enter__(self) -> RealFleet:
        self._signals = {number: signal.signal(number, _leave) for number in (signal.SIGTERM, signal.SIGHUP)}
        try:
            self._command("certs", str(self.root / "certs"), "--host", self._endpoint.host)
            self.start_server()
            self.wait(lambda: self._server_listens() or self.server_exit() is not None, 120, "the server to listen")
            if self.server_exit() is not None:
                raise RuntimeError(f"The server cannot be started: {self.log_of('server').read_text()[-500:]}")
            for name in self.devices:
                self._command(
                    "enroll", name, "--state", str(self.server_state.root), "--out", str(self.root / f"bundle-{name}")
                )
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def client_state(self, name: str) -> ClientState:
        """Names in a device's state folder."""
        return ClientState((self.devices[name].state or self.root / name).resolve())

    def log_of(self, command: str) -> Path:
        """What ``neuroflux-fl server`` (``server``) or a device's ``neuroflux-fl client`` (its name) has printed."""
        return self.root / f"{command}.log"

    def start_server(self) -> None:
        """Start ``neuroflux-fl server``, or start it again on the same state."""
        endpoint = self._endpoint
        self._start(
            "server", "server", "--state", str(self.server_state.root), "--host", endpoint.host,
            "--port", str(endpoint.port), "--metrics-port", str(self.metrics_port),
            "--certs", str(endpoint.certificates), *self._server_arguments,
        )  # fmt: skip

    def start_device(self, name: str) -> None:
        """Start a device's ``neuroflux-fl client``, or start it again on the same state and key."""
        device = self.devices[name]
        self._start(
            name, "client", "--server", self._endpoint.local_address, "--bundle", str(self.root / f"bundle-{name}"),
            "--data", device.data, "--budget", device.budget, "--state", str(self.client_state(name).root),
            "--device-class", device.budget, "--partition-id", str(device.partition_id),
            "--partitions", str(device.partitions), "--threads", str(self._threads),
            *(() if device.agent else ("--no-agent",)), *device.arguments, launcher=device.launcher,
        )  # fmt: skip

    def processes(self, owner: str | None = None, program: str | None = None) -> list[FleetProcess]:
        """The processes that are alive, of all owners and programs or of the given ones."""
        found = []
        for pid in _pids():
            with suppress(OSError, ValueError, IndexError):
                process = self._look_at(pid)
                if process is not None and owner in (None, process.owner) and program in (None, process.program):
                    found.append(process)
        return found

    def kill(self, owner: str, program: str | None = None) -> int:
        """``kill -9`` a program of a device or of the server; without a program the command itself. Returns how many.

        What a killed command had started is left to end by itself.
        """
        if program is None:
            self._commands[owner].kill()
            self._commands[owner].wait()
            return 1
        processes = self.processes(owner, program)
        for process in processes:
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        return len(processes)

    def stop(self, owner: str) -> None:
        """SIGTERM to a command, and wait for its end."""
        self._commands[owner].terminate()
        self._commands[owner].wait(_ENDING_SECONDS)

    def server_exit(self) -> int | None:
        """Exit code of ``neuroflux-fl server``; None while it runs."""
        return self._commands["server"].poll()

    def wait(
        self, until: Callable[[], bool], seconds: float, what: str, each_tick: Callable[[], None] | None = None
    ) -> None:
        """Return as soon as ``until`` holds, and look at the fleet meanwhile with ``each_tick``.

        Raises:
            TimeoutError: it did not hold in time.
        """
        end = time.monotonic() + seconds
        while True:
            if each_tick is not None:
                each_tick()
            if until():
                return
            if time.monotonic() > end:
                raise TimeoutError(f"Waited {seconds:.0f} s for {what}.")
            time.sleep(_TICK_SECONDS)

    def summary(self) -> dict[str, Any]:
        """Content of ``run.json``; empty where there is none."""
        return _read_json(self.server_state.out / "run.json")

    def flower_runs(self) -> list[dict[str, Any]]:
        """``flwr ls`` after the server has ended: its SuperLink is started once more, with no device near."""
        with self.log_of("superlink-again").open("ab") as log:
            superlink = subprocess.Popen(
                _tied(superlink_command(self.server_state, self._endpoint)),
                cwd=self.root,
                env=self.server_state.flower_environment() | {_MARK: self._mark},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            self.wait(self._server_listens, 60, "the SuperLink to listen")
            runs: list[dict[str, Any]] = ask_flower(self.server_state, ("ls",))["runs"]
            return runs
        finally:
            superlink.terminate()
            superlink.wait(_ENDING_SECONDS)

    def _command(self, *arguments: str) -> None:
        done = subprocess.run(
            _product(*arguments), cwd=self.root, env=self._environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"neuroflux-fl {' '.join(arguments)} ended with {done.returncode}: {done.stderr}")

    def _start(self, key: str, *arguments: str, launcher: Sequence[str] = ()) -> None:
        with self.log_of(key).open("ab") as log:
            self._commands[key] = subprocess.Popen(
                _tied([*launcher, *_product(*arguments)]),
                cwd=self.root,
                env=self._environment | {"COLUMNS": "200", "NO_COLOR": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _server_listens(self) -> bool:
        with suppress(OSError), socket.create_connection((self._endpoint.host, self._endpoint.port), timeout=1.0):
            return True
        return False

    def _look_at(self, pid: int) -> FleetProcess | None:
        folder = Path("/proc") / str(pid)
        fields = (folder / "stat").read_text().rpartition(")")[2].split()
        started = int(fields[19])
        environment = self._known.get((pid, started))
        if environment is None:
            raw = (folder / "environ").read_bytes().decode(errors="replace")
            environment = dict(entry.partition("=")[::2] for entry in raw.split("\0"))
            self._known[pid, started] = environment = {key: environment.get(key, "") for key in (_MARK, "FLWR_HOME")}
        owner = self._owners.get(environment["FLWR_HOME"])
        if fields[0] == "Z" or environment[_MARK] != self._mark or owner is None:
            return None
        words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")[:4]
        program = next((_PROGRAMS[name] for word in words if (name := Path(word).name) in _PROGRAMS), None)
        if program is None:
            return None
        pages = int((folder / "statm").read_text().split()[1])
        return FleetProcess(
            pid=pid,
            started=started,
            owner=owner,
            program=program,
            resident_bytes=pages * os.sysconf("SC_PAGE_SIZE"),
        )

    def _end(self) -> None:
        """End the commands as a user would, then whatever they did not end."""
        for number in self._signals:
            signal.signal(number, signal.SIG_IGN)
        for process in self._commands.values():
            if process.poll() is None:
                process.terminate()
        end = time.monotonic() + _ENDING_SECONDS
        for process in self._commands.values():
            try:
                process.wait(max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        # What was killed on purpose may still be on its way out, and so may its children.
        patience = time.monotonic() + 10
        while (remaining := self._marked()) and time.monotonic() < patience:
            time.sleep(_TICK_SECONDS)
        self.left_behind = [f"{pid}: {command}" for pid, command in remaining.items()]
        for pid in remaining:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for number, handler in self._signals.items():
            signal.signal(number, handler)

    def _marked(self) -> dict[int, str]:
        """Command by pid of every living process that inherited this fleet's mark."""
        wanted = f"{_MARK}={self._mark}".encode()
        found = {}
        for pid in _pids():
            folder = Path("/proc") / str(pid)
            with suppress(OSError):
                if wanted in (folder / "environ").read_bytes().split(b"\0"):
                    command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                    if command:  # a zombie has none
                        found[pid] = command
        return found


def median(values: Sequence[float]) -> float:
    """The middle value, or the mean of the two; not a number where there is none."""
    ordered = sorted(values)
    half = len(ordered) // 2
    if not ordered:
        return float("nan")
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def set_arguments(settings: Sequence[str]) -> list[str]:
    """Run settings, each as ``key=value``, as ``--set`` options."""
    return [part for setting in settings for part in ("--set", setting)]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _product(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "neuroflux_fl", *arguments]


def _tied(command: Sequence[str]) -> list[str]:
    """The command, ended when this process dies, even of SIGKILL."""
    if not sys.platform.startswith("linux"):
        return list(command)
    tie = [sys.executable, "-I", "-S", die_with_parent.__file__, str(os.getpid()), str(int(signal.SIGTERM))]
    return [*tie, *command]


def _leave(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _pids() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]


def _free_port(host: str) -> int:
    """One whose neighbour is free as well: devices look for the gateway there."""
    while True:
        with socket.create_server((host, 0)) as listener:
            port: int = listener.getsockname()[1]
            with suppress(OSError, OverflowError), socket.create_server((host, port + 1)):
                return port
