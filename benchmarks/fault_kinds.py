"""The faults that can be injected into a real fleet, and what some of them need around the fleet."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.fleet_watch import FleetWatch
from benchmarks.real_fleet import FleetProcess, RealFleet

VICTIM = "device-0"
_STRAGGLER_PERIOD_SECONDS = 0.5
_STRAGGLER_SHARE = 0.1
_FROZEN_SECONDS = 50.0
_DISK_MIB = 160


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What a fault needs to be made before the fleet."""

    host: str = "127.0.0.1"
    """Where the server listens."""
    victim_state: Path | None = None
    victim_launcher: tuple[str, ...] = ()
    cable: str = ""
    """The victim's network interface, at the server's end."""
    disk: Path | None = None
    """Mount that the victim's state folder is on."""


@dataclass(slots=True, kw_only=True)
class Trial:
    """One fleet in the middle of a round, about to meet with a fault."""

    fleet: RealFleet
    watch: FleetWatch
    around: Surroundings
    cut_seconds: float
    away_seconds: float
    lasted: float = 0.0
    """Seconds that the fault was kept up."""

    def kill(self, owner: str, program: str | None = None) -> None:
        """Mark the fault and ``kill -9``.

        Raises:
            RuntimeError: there was nothing to kill.
        """
        self.watch.fault()
        if not self.fleet.kill(owner, program):
            raise RuntimeError(f"{owner} has no {program} to kill.")

    def hold(self, seconds: float, until: Callable[[], bool] = lambda: False) -> None:
        """Keep the fault up for so long, or until something holds."""
        began = time.monotonic()
        self.fleet.wait(
            lambda: time.monotonic() >= began + seconds or until(), seconds + 60, "the end of a pause", self.watch.look
        )
        self.lasted = time.monotonic() - began


Injection = Callable[[Trial], Callable[[], None] | None]
"""Breaks something; what it returns is called when the run is over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One kind of fault."""

    what: str
    """For people."""
    inject: Injection
    concerned: str = VICTIM
    """Who has to train again: a device, ``all`` of them, or ``any``; empty where nobody stops."""
    settings: tuple[str, ...] = ()
    """Of the run, beside those of all."""
    surroundings: Callable[[Path], AbstractContextManager[Surroundings]] = field(
        default=lambda _: nullcontext(Surroundings())
    )
    commands: tuple[str, ...] = ()
    """Programs that must be there, with the right to use them as root."""

    def impossible(self) -> str:
        """Why it cannot be tried here; empty where it can."""
        missing = [command for command in self.commands if shutil.which(command) is None]
        if missing:
            return f"needs the command {missing[0]}"
        return "needs root" if self.commands and os.geteuid() != 0 else ""


def _killed(owner: str, program: str) -> Injection:
    return lambda trial: trial.kill(owner, program)


def _server_killed(trial: Trial) -> None:
    trial.kill("server")
    trial.hold(5.0)
    trial.fleet.start_server()


def _superlink_frozen(trial: Trial) -> None:
    """It never goes on: whoever watches over it must notice."""
    trial.watch.fault()
    for superlink in trial.fleet.processes("server", "superlink"):
        _signal(superlink, signal.SIGSTOP)


def _power_lost(trial: Trial) -> None:
    trial.watch.fault()
    processes = trial.fleet.processes(VICTIM)
    trial.fleet.kill(VICTIM)
    for process in processes:
        _signal(process, signal.SIGKILL)
    trial.fleet.start_device(VICTIM)


def _stopped_and_started(trial: Trial) -> None:
    trial.watch.fault()
    trial.fleet.stop(VICTIM)
    trial.fleet.start_device(VICTIM)


def _all_gone(trial: Trial) -> None:
    trial.watch.fault()
    for name in trial.fleet.devices:
        trial.fleet.kill(name)
    trial.hold(trial.away_seconds)
    for name in trial.fleet.devices:
        trial.fleet.start_device(name)


def _cable_pulled(trial: Trial) -> None:
    trial.watch.fault()
    _run("ip", "link", "set", trial.around.cable, "down")
    try:
        trial.hold(trial.cut_seconds)
    finally:
        _run("ip", "link", "set", trial.around.cable, "up")


def _disk_filled(trial: Trial) -> None:
    """Full until the round is over without the device, and for 90 s at most."""
    if trial.around.disk is None:
        raise RuntimeError("The device's state is on no disk of its own.")
    ballast = trial.around.disk / "ballast"
    rounds = len(trial.watch.round_ends)
    trial.watch.fault()

    def over() -> bool:
        _fill(ballast)
        return len(trial.watch.round_ends) > rounds

    _fill(ballast)
    trial.hold(90.0, over)
    ballast.unlink()
    trial.watch.fault()  # what counts is how it recovers from here


def _slowed_down(trial: Trial) -> Callable[[], None]:
    """The agent may run a tenth of the time, from now on."""
    trial.watch.fault()
    over = threading.Event()

    def slow_down() -> None:
        while not over.is_set():
            agents = trial.fleet.processes(VICTIM, "agent")
            for agent in agents:
                _signal(agent, signal.SIGSTOP)
            over.wait(_STRAGGLER_PERIOD_SECONDS * (1 - _STRAGGLER_SHARE))
            for agent in agents:
                _signal(agent, signal.SIGCONT)
            over.wait(_STRAGGLER_PERIOD_SECONDS * _STRAGGLER_SHARE)

    thread = threading.Thread(target=slow_down)
    thread.start()

    def end() -> None:
        over.set()
        thread.join()

    return end


def _frozen(trial: Trial) -> None:
    """For longer than the round waits, and shorter than the device's supervisor does."""
    trial.watch.fault()
    agents = trial.fleet.processes(VICTIM, "agent")
    for agent in agents:
        _signal(agent, signal.SIGSTOP)
    trial.hold(_FROZEN_SECONDS)
    for agent in agents:
        _signal(agent, signal.SIGCONT)


@contextmanager
def _own_network(_: Path) -> Iterator[Surroundings]:
    """A bridge with the server's address, and a network namespace whose only cable leads to it."""
    number = os.getpid()
    bridge, cable, inside, space = f"nfb{number}", f"nfh{number}", f"nfd{number}", f"nf{number}"
    server, device = (f"10.203.{number % 250 + 1}.{last}" for last in (1, 2))
    try:
        _run("ip", "link", "add", bridge, "type", "bridge")
        _run("ip", "address", "add", f"{server}/24", "dev", bridge)
        _run("ip", "link", "set", bridge, "up")
        _run("ip", "netns", "add", space)
        _run("ip", "link", "add", cable, "type", "veth", "peer", "name", inside, "netns", space)
        _run("ip", "link", "set", cable, "master", bridge, "up")
        _run("ip", "-n", space, "address", "add", f"{device}/24", "dev", inside)
        _run("ip", "-n", space, "link", "set", inside, "up")
        _run("ip", "-n", space, "link", "set", "lo", "up")
        yield Surroundings(host=server, victim_launcher=("ip", "netns", "exec", space), cable=cable)
    finally:
        for command in (("netns", "delete", space), ("link", "delete", cable), ("link", "delete", bridge)):
            subprocess.run(["ip", *command], stderr=subprocess.DEVNULL, check=False)


@contextmanager
def _small_disk(folder: Path) -> Iterator[Surroundings]:
    """A small file system for the victim's state folder."""
    disk = folder / "disk"
    disk.mkdir()
    _run("mount", "-t", "tmpfs", "-o", f"size={_DISK_MIB}m", "tmpfs", str(disk))
    try:
        yield Surroundings(victim_state=disk / "state", disk=disk)
    finally:
        _run("umount", "--lazy", str(disk))


def _fill(ballast: Path) -> None:
    """Take every free byte."""
    block = bytes(64 * 1024)
    with suppress(OSError), ballast.open("ab", buffering=0) as file:
        while file.write(block):
            pass


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")


def _signal(process: FleetProcess, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(process.pid, number)


FAULTS = {
    "none": Fault(what="nothing, for comparison", inject=lambda trial: trial.watch.fault(), concerned=""),
    "supernode": Fault(what="kill -9 of a device's SuperNode", inject=_killed(VICTIM, "supernode")),
    "clientapp": Fault(what="kill -9 of a device's ClientApp", inject=_killed(VICTIM, "clientapp")),
    "agent": Fault(what="kill -9 of a device's agent", inject=_killed(VICTIM, "agent")),
    "superexec": Fault(what="kill -9 of a device's SuperExec", inject=_killed(VICTIM, "superexec")),
    "device-power": Fault(what="kill -9 of all of a device, started again at once", inject=_power_lost),
    "device-restart": Fault(what="a device stopped (SIGTERM) and started again", inject=_stopped_and_started),
    "serverapp": Fault(
        what="kill -9 of the ServerApp's process", inject=_killed("server", "serverapp"), concerned="any"
    ),
    "superlink": Fault(what="kill -9 of the SuperLink", inject=_killed("server", "superlink"), concerned="any"),
    "superlink-frozen": Fault(
        what="the SuperLink stops answering and does not end", inject=_superlink_frozen, concerned="any"
    ),
    "server-superexec": Fault(
        what="kill -9 of the server's SuperExec", inject=_killed("server", "superexec"), concerned="any"
    ),
    "server": Fault(what="kill -9 of neuroflux-fl server, started again", inject=_server_killed, concerned="any"),
    "all-gone": Fault(what="kill -9 of all neuroflux-fl client, back later", inject=_all_gone, concerned="all"),
    "network": Fault(
        what="a device's network cable pulled, plugged in later", inject=_cable_pulled, surroundings=_own_network,
        commands=("ip",),
    ),
    "disk-full": Fault(
        what="a device's disk full for the rest of the round", inject=_disk_filled, surroundings=_small_disk,
        commands=("mount", "umount"),
    ),
    "straggler": Fault(
        what="a device ten times slower, with a deadline", inject=_slowed_down, concerned="",
        settings=("deadline-seconds=30",),
    ),
    "frozen": Fault(
        what="a device's agent stands still past a deadline, then goes on", inject=_frozen, concerned="",
        settings=("deadline-seconds=30",),
    ),
}  # fmt: skip
"""By name."""
