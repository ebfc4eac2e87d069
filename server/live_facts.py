"""A run as it is watched: where it stands, what each device does at this moment, and what needs a look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from server.answer_log import Answer
from server.fleet_samples import phase_of, remaining_seconds
from server.report.facts import DeviceFacts, RunFacts, gather_facts
from server.report.findings import findings
from server.report.names import clean, natural_order
from server.report.stragglers import is_straggler, typical_seconds
from server.run_folder import RunFolder

_FRESH_SECONDS = 60.0
"""Age at which what the gateway wrote, every few seconds, says nothing about now: it has ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveExit:
    """One exit over the rounds."""

    unit: int
    accuracies: tuple[float, ...]
    """In the order of the rounds that measured it."""
    contributors: int
    """Devices whose update of the unit was used in the last round."""
    parameters: int | None
    chosen: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveDevice:
    """One device at this moment, as far as it tells; None where it does not."""

    name: str
    device_class: str
    state: str
    """training, waiting, offline, silent; without reports of its own what became of its last task."""
    memory_bytes: int | None
    """What training holds now; the largest peak so far where that is not known, or was over the budget."""
    memory_is_live: bool
    budget_bytes: int | None
    batch_size: int | None
    samples_per_second: float | None
    answer_seconds: float | None
    """Until its last answer."""
    celsius: float | None
    over_budget: bool
    straggler: bool

    @property
    def in_trouble(self) -> bool:
        """Whether somebody should have a look."""
        return self.over_budget or self.straggler or self.state in ("silent", "offline", "failed", "missing")


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveRun:
    """One moment of a run."""

    name: str
    phase: str
    error: str
    stage: int
    round: int
    """In progress, from 1; 0 before the first."""
    rounds_done: int
    rounds: int
    nodes: int
    wanted: int
    answered: int
    late: int
    seconds: float
    remaining_seconds: float | None
    tested: bool
    """Whether accuracies are on test images; else on validation images."""
    exits: tuple[LiveExit, ...]
    devices: tuple[LiveDevice, ...]
    """Those in trouble first, then those nearest to their budget."""
    warnings: tuple[str, ...]

    @property
    def ended(self) -> bool:
        """Whether nothing will change any more."""
        return self.phase in ("finished", "failed")


def live_facts(run: RunFolder, now: float) -> LiveRun:
    """What there is to see of a run's folder that was read at ``now`` (Unix time).

    Raises:
        StorageError: the names of the devices cannot be read.
    """
    facts = gather_facts(run, now)
    status = facts.status
    phase = phase_of(run)
    waits = phase in ("training", "evaluating")
    done = len(facts.rounds)
    return LiveRun(
        name=facts.name,
        phase=phase,
        error=clean(str(status.get("error", ""))) if phase == "failed" else "",
        stage=int(status.get("stage", 0)),
        round=int(status.get("round", done)),
        rounds_done=done,
        rounds=facts.rounds_planned,
        nodes=int(status.get("nodes", len(facts.devices))),
        wanted=int(status.get("wanted", 0)) if waits else 0,
        answered=int(status.get("answered", 0)) if waits else 0,
        late=int(status.get("late", 0)) if waits else 0,
        seconds=facts.seconds,
        remaining_seconds=remaining_seconds(run),
        tested=facts.tested,
        exits=_exits(facts),
        devices=_devices(facts, now),
        warnings=(*((facts.state_note,) if facts.state == "stopped" else ()), *findings(facts)),
    )


def _exits(facts: RunFacts) -> tuple[LiveExit, ...]:
    series: dict[int, list[float]] = {}
    for record in facts.rounds:
        for unit, accuracy in (record.test if facts.tested else record.exits).items():
            series.setdefault(unit, []).append(accuracy)
    contributors = facts.rounds[-1].contributors if facts.rounds else {}
    chosen = facts.chosen.unit if facts.chosen is not None else None
    return tuple(
        LiveExit(
            unit=unit, accuracies=tuple(series[unit]), contributors=contributors.get(unit, 0),
            parameters=facts.unit_parameters.get(unit), chosen=unit == chosen,
        )
        for unit in sorted(series)
    )  # fmt: skip


def _devices(facts: RunFacts, now: float) -> tuple[LiveDevice, ...]:
    fresh = facts.state == "running" and now - float(facts.telemetry.get("updated_at", 0.0)) <= _FRESH_SECONDS
    rows = {clean(str(row["device"])): row for row in facts.telemetry.get("devices", ()) if fresh}
    typical = typical_seconds(facts.answers)
    last_answers = {answer.node_id: answer for answer in facts.answers}
    known = {device.name: device for device in facts.devices}
    live = [
        _device(name, known.get(name), rows.get(name), last_answers, typical, facts)
        for name in (*known, *(name for name in rows if name not in known))
    ]

    def interest(device: LiveDevice) -> tuple[Any, ...]:
        share = (device.memory_bytes or 0) / device.budget_bytes if device.budget_bytes else 0.0
        return not device.over_budget, not device.in_trouble, -round(share, 2), natural_order(device.name)

    return tuple(sorted(live, key=interest))


def _device(
    name: str,
    known: DeviceFacts | None,
    row: Mapping[str, Any] | None,
    last_answers: Mapping[int, Answer],
    typical: Mapping[int, float],
    facts: RunFacts,
) -> LiveDevice:
    totals = known.totals if known is not None else None
    answer = last_answers.get(totals.node_id) if totals is not None else None
    report: Mapping[str, Any] = (row or {}).get("report") or {}
    training: Mapping[str, Any] = report.get("training") or {}
    machine: Mapping[str, Any] = report.get("machine") or {}
    reports = bool((row or {}).get("reporting"))
    now_bytes = training.get("training_bytes") if training.get("busy") and reports else None
    peak = known.peak_bytes if known is not None else None
    budget = report.get("budget_bytes") or (totals.budget_bytes if totals is not None else None)
    block = _block_in_training(training if reports else {})
    latest = totals.blocks[-1] if totals is not None and totals.blocks else None
    batch = block.get("batch_size") or (latest.batch_size if latest is not None else None)
    speed = block.get("samples_per_second") or (totals.samples_per_second if totals is not None else None)
    measured = max(
        int(now_bytes or 0), totals.measured_peak_bytes if totals is not None else 0,
        *(int(other.get("measured_peak_bytes") or 0) for other in training.get("blocks", ())), 0,
    )  # fmt: skip
    over = budget is not None and measured > budget
    return LiveDevice(
        name=name,
        device_class=clean(str((row or {}).get("device_class") or (totals.device_class if totals is not None else ""))),
        state=_state(row, training, answer),
        memory_bytes=(measured if over else now_bytes or peak) or None,
        memory_is_live=bool(now_bytes) and not over,
        budget_bytes=budget,
        batch_size=batch,
        samples_per_second=speed or None,
        answer_seconds=answer.seconds if answer is not None else None,
        celsius=(machine.get("gpu_celsius") or machine.get("board_celsius")) if reports else None,
        over_budget=over,
        straggler=answer is not None and is_straggler(answer, typical),
    )


def _state(row: Mapping[str, Any] | None, training: Mapping[str, Any], answer: Answer | None) -> str:
    if row is not None:
        if not row.get("reporting"):
            return "silent"
        if not (row.get("report") or {}).get("connected", True):
            return "offline"
        return "training" if training.get("busy") else "waiting"
    return answer.fate.replace("_", " ") if answer is not None else "-"


def _block_in_training(training: Mapping[str, Any]) -> Mapping[str, Any]:
    """The last block that has a speed: blocks are trained in order."""
    blocks: Sequence[Mapping[str, Any]] = training.get("blocks") or ({},)
    return next((block for block in reversed(blocks) if block.get("samples_per_second")), blocks[0])
