"""What can be seen of a real fleet from outside while it runs: its status file, device journals, agents, processes."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.real_fleet import FleetProcess, RealFleet
from clients.agent_client import AgentStatus, agent_status
from neuroflux_fl.errors import NeurofluxError

_STATUS_TIMEOUT_SECONDS = 0.5
_TRAIN_DONE = re.compile(r"^(\S+ \S+) agent: train \(.*\) done in [0-9.]+ s$", re.MULTILINE)
_WARNING = re.compile(r"WARNING|ERROR|Device \d+ failed|Round \d+:|.*Training ends with|.*Error")
_STANDING = re.compile(
    r"^\d\d:\d\d:\d\d (?:connected to|connecting to|training|evaluating|waiting|running|starting|finished|idle"
    r"|train |evaluate|capabilities|device agent is starting|test accuracy|validation accuracy|devices that|\d+ tasks"
    r"|\S+ does not answer|Joining|State:|Let only)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Journal:
    """How far a device's training task is, as its own journal says."""

    round: int
    blocks: tuple[str, ...]
    """Each finished block's report, as JSON: two trainings of one block differ in their seconds."""
    planned: int
    """Blocks of the plan."""
    finished: bool
    own_seconds: float
    """All that the device spent on the task so far."""

    @property
    def in_the_middle(self) -> bool:
        """Some blocks are finished, some are not."""
        return not self.finished and 0 < len(self.blocks) < self.planned


@dataclass(frozen=True, slots=True, kw_only=True)
class Retraining:
    """A block that had been finished and was trained again in the same round."""

    device: str
    round: int
    block: int
    """Its place in the plan."""


@dataclass(slots=True)
class _DeviceView:
    journal: Journal | None = None
    journal_mtime: int = 0
    agent: AgentStatus | None = None
    clientapps: frozenset[tuple[int, int]] = frozenset()
    resident: dict[str, int] = field(default_factory=dict)
    """Largest seen, by program."""
    finished_tasks: list[Journal] = field(default_factory=list)

    @property
    def at_work(self) -> tuple[frozenset[tuple[int, int]], int] | None:
        """Which processes are at a training task; None where none are."""
        busy = self.agent is not None and self.agent.busy_with.startswith("train")
        return (self.clientapps, self.agent.pid) if busy and self.agent and self.clientapps else None


class FleetWatch:
    """Looks at a fleet each time ``look`` is called, a few times a second, and remembers what it saw."""

    def __init__(self, fleet: RealFleet) -> None:
        self._fleet = fleet
        self.devices = {name: _DeviceView() for name in fleet.devices}
        self.statuses: list[dict[str, Any]] = []
        """Every content of ``status.json`` that was seen."""
        self.round_ends: list[tuple[float, dict[str, Any]]] = []
        """Unix time and record of every finished round, in the order in which they were finished."""
        self.retrainings: list[Retraining] = []
        self._fault_at: float | None = None
        self._before: dict[str, tuple[frozenset[tuple[int, int]], int] | None] = {}
        self._old_clientapps: dict[str, frozenset[tuple[int, int]]] = {}
        self._logs_at_fault: dict[str, int] = {}
        self.trained_again: dict[str, float] = {}
        """By device: seconds from the fault until processes that were not at it before it had a training task."""

    @property
    def status(self) -> dict[str, Any]:
        """What the run said of itself last."""
        return self.statuses[-1] if self.statuses else {}

    def look(self) -> None:
        """Take one look."""
        self._look_at_run()
        processes = self._fleet.processes()
        for name, view in self.devices.items():
            self._look_at_journal(name, view)
            self._look_at_processes(name, view, [process for process in processes if process.owner == name])
            self._look_for_recovery(name, view)

    def fault(self) -> None:
        """Now something is broken: ``trained_again`` counts from here, or from the last call where there are several,
        and ``events`` are collected from the first."""
        self._fault_at = time.time()
        self.trained_again.clear()
        for name, view in self.devices.items():
            self._before[name] = view.at_work
            self._old_clientapps[name] = view.clientapps
        for command in ("server", *self.devices):
            path = self._fleet.log_of(command)
            self._logs_at_fault.setdefault(command, path.stat().st_size if path.exists() else 0)

    def events(self) -> list[str]:
        """What server and devices have told their users since the fault, but for how things stand."""
        found = []
        for command, start in self._logs_at_fault.items():
            text = self._fleet.log_of(command).read_bytes()[start:].decode(errors="replace")
            for line in text.splitlines():
                if re.match(r"\d\d:\d\d:\d\d ", line) and not _STANDING.match(line):
                    found.append((line[:8], f"{line[:8]} {command}: {line[9:]}"))
        return [text for _, text in sorted(found, key=lambda event: event[0])]

    def serverapp_warnings(self) -> list[str]:
        """What the ServerApps have warned of, in the logs that the server saved; what differs in numbers alone, once
        with its count."""
        counts: dict[str, int] = {}
        for path in sorted(self._fleet.server_state.logs.glob("serverapp-*.log")):
            for line in path.read_text(errors="replace").splitlines():
                plain = " ".join(re.sub(r"\x1b\[\d*m", "", line).split())
                if _WARNING.match(plain):
                    text = re.sub(r"\d+\.\d+", "...", plain)
                    counts[text] = counts.get(text, 0) + 1
        return [f"{text} (x {count})" if count > 1 else text for text, count in counts.items()]

    def round_seconds(self) -> list[float]:
        """Wall time from each round's end to the next one's, the first from the start of training."""
        starts = [s["updated_at"] for s in self.statuses if s["phase"] == "training"]
        times = [*starts[:1], *(seen_at for seen_at, _ in self.round_ends)]
        return [end - start for start, end in pairwise(times)]

    def phase_seconds(self, phase: str) -> list[float]:
        """How long each phase of that name lasted, from one change of the status to the next."""
        lasted, began = [], None
        for status in self.statuses:
            if began is None and status["phase"] == phase:
                began = status["updated_at"]
            elif began is not None and status["phase"] != phase:
                lasted.append(status["updated_at"] - began)
                began = None
        return lasted

    def _look_at_run(self) -> None:
        out = self._fleet.server_state.out
        status = _read(out / "status.json")
        if status and status != self.status:
            self.statuses.append(status)
        known = {record["round"] for _, record in self.round_ends}
        for record in _lines(out / "rounds.jsonl"):
            if record["round"] not in known:
                self.round_ends.append((time.time(), record))

    def _look_at_journal(self, name: str, view: _DeviceView) -> None:
        path = self._fleet.client_state(name).device / "task.json"
        try:
            changed = path.stat().st_mtime_ns
        except OSError:
            return
        if changed == view.journal_mtime:
            return
        journal = _journal(_read(path))
        if journal is None:
            return
        before, view.journal, view.journal_mtime = view.journal, journal, changed
        if before is not None and before.round == journal.round:
            kept = len(journal.blocks) >= len(before.blocks) and journal.blocks[: len(before.blocks)] == before.blocks
            if not kept:
                self._note_retraining(name, before, journal)
        if journal.finished and (before is None or before != journal):
            view.finished_tasks.append(journal)

    def _note_retraining(self, name: str, before: Journal, journal: Journal) -> None:
        good = 0
        while good < min(len(before.blocks), len(journal.blocks)) and before.blocks[good] == journal.blocks[good]:
            good += 1
        for block in range(good, len(before.blocks)):
            again = Retraining(device=name, round=journal.round, block=block)
            if again not in self.retrainings:
                self.retrainings.append(again)

    def _look_at_processes(self, name: str, view: _DeviceView, processes: list[FleetProcess]) -> None:
        for process in processes:
            view.resident[process.program] = max(view.resident.get(process.program, 0), process.resident_bytes)
        view.clientapps = frozenset((p.pid, p.started) for p in processes if p.program == "clientapp")
        view.agent = None
        socket = self._fleet.client_state(name).run / "agent.sock"
        if self._fleet.devices[name].agent and socket.exists():
            try:
                view.agent = agent_status(socket, _STATUS_TIMEOUT_SECONDS)
            except NeurofluxError:
                view.agent = None

    def _look_for_recovery(self, name: str, view: _DeviceView) -> None:
        if self._fault_at is None or name in self.trained_again:
            return
        now = time.time()
        at_work, before = view.at_work, self._before[name]
        new_clientapp = bool(view.clientapps - self._old_clientapps[name])
        new_agent = at_work is not None and before is not None and at_work[1] != before[1]
        if at_work is not None and (new_clientapp or new_agent):
            self.trained_again[name] = now - self._fault_at
        elif new_clientapp:
            # A task that was finished before the fault is answered from the journal, too fast to be seen at it.
            since = max(self._fault_at, now - 2.0)
            done = [when for when in self._train_tasks_done(name) if when >= since]
            if done:
                self.trained_again[name] = done[0] - self._fault_at

    def _train_tasks_done(self, name: str) -> Iterator[float]:
        log = self._fleet.client_state(name).logs / "agent.log"
        if log.exists():
            for found in _TRAIN_DONE.finditer(log.read_text(errors="replace")):
                yield datetime.strptime(found.group(1), "%Y-%m-%d %H:%M:%S,%f").timestamp()


def _journal(values: dict[str, Any]) -> Journal | None:
    try:
        report = values["report"]
        plan = report.get("plan", {}).get("blocks", [])
        return Journal(
            round=int(report.get("round", 0)),
            blocks=tuple(json.dumps(block, sort_keys=True) for block in report.get("blocks", [])),
            planned=len(plan),
            finished=bool(values["finished"]),
            own_seconds=sum(float(seconds) for seconds in report.get("seconds", {}).values()),
        )
    except (KeyError, TypeError, ValueError):
        return None


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in path.read_text().splitlines()]
    except (OSError, ValueError):
        return []  # a line is being written
