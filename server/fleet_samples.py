"""A run's folder as samples of the catalogue: what its server knows of it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence

from neuroflux_fl import metrics as m
from neuroflux_fl.metrics import Metric, Observations, Sample
from server.fleet_state import FleetState, RoundRecord, task_counts
from server.run_folder import RunFolder
from server.run_status import PHASES
from server.update_checks import REASONS

_ROUNDS_AVERAGED = 5
"""For the estimate of the time to the end."""


def fleet_samples(run: RunFolder) -> Iterator[Sample | Observations]:
    """Everything that the catalogue says is set by the server.

    Counters are sums over the rounds in the run's state, so that a resumed run counts on, and are there from the start.
    """
    labels = (str(run.setting["run"]),)
    history = run.state.history if run.state is not None else ()
    yield from _build(run)
    yield from _disk(run)
    yield from _moment(run, history, labels)
    yield from _exits(run, history, labels)
    yield from _counters(history, labels)
    yield Observations(m.ROUND_SECONDS, labels, tuple(record.seconds for record in history))
    yield Observations(m.AGGREGATION_SECONDS, labels, tuple(record.aggregation_seconds for record in history))


def phase_of(run: RunFolder) -> str:
    """One of ``PHASES``."""
    if run.summary is not None:
        return "finished"
    return str((run.status or {}).get("phase", "starting"))


def remaining_seconds(run: RunFolder) -> float | None:
    """Rounds left times the mean of the last rounds; None where no round tells how long one takes."""
    state = run.state or FleetState()
    if phase_of(run) == "finished" or state.schedule.finished:
        return 0.0
    recent = [record.seconds for record in state.history[-_ROUNDS_AVERAGED:]]
    left = max(0, _rounds_planned(run) - state.round)
    return left * sum(recent) / len(recent) if recent else None


def rounds_without_improvement(run: RunFolder) -> int:
    """Measured rounds of the present stage since the best of all its exits last became better."""
    state = run.state or FleetState()
    best, rounds = None, 0
    for record in state.history:
        accuracies = record.test or record.exits
        if record.stage != state.schedule.stage_index or not accuracies:
            continue
        accuracy = max(accuracies.values())
        if best is None or accuracy > best:
            best, rounds = accuracy, 0
        else:
            rounds += 1
    return rounds


def _build(run: RunFolder) -> Iterator[Sample]:
    versions = run.setting["versions"]
    names = ("neuroflux-fl", "python", "torch", "flwr")
    yield Sample(m.BUILD, tuple(str(versions.get(name, "")) for name in names), 1.0)


def _disk(run: RunFolder) -> Iterator[Sample]:
    usage = shutil.disk_usage(run.path)
    yield Sample(m.SERVER_DISK_FREE, (), usage.free)
    yield Sample(m.SERVER_DISK_SIZE, (), usage.total)


def _moment(run: RunFolder, history: tuple[RoundRecord, ...], labels: tuple[str, ...]) -> Iterator[Sample]:
    """Where the run stands."""
    state, status, phase = run.state or FleetState(), run.status or {}, phase_of(run)
    for name in PHASES:
        yield Sample(m.PHASE, (*labels, name), float(name == phase))
    waits = phase in ("training", "evaluating")
    ended_at = history[-1].ended_at if history else run.setting["started_at"]
    gauges: tuple[tuple[Metric, float | None], ...] = (
        (m.ROUND, state.round),
        (m.ROUNDS_PLANNED, _rounds_planned(run)),
        (m.STAGE, state.schedule.stage_index),
        (m.NODES_CONNECTED, status.get("nodes", 0)),
        (m.ANSWERS_WANTED, status.get("wanted", 0) if waits else 0),
        (m.ANSWERS_RECEIVED, status.get("answered", 0) if waits else 0),
        (m.RUN_SECONDS, max(state.seconds, status.get("seconds", 0.0))),
        (m.REMAINING_SECONDS, remaining_seconds(run)),
        (m.LAST_ROUND_TIMESTAMP, ended_at),
        (m.ROUNDS_WITHOUT_IMPROVEMENT, rounds_without_improvement(run)),
        (m.UPDATE_ERROR, max((record.update_error for record in history), default=0.0)),
    )
    for metric, value in gauges:
        if value is not None:
            yield Sample(metric, labels, value)


def _exits(run: RunFolder, history: tuple[RoundRecord, ...], labels: tuple[str, ...]) -> Iterator[Sample]:
    """By unit: the latest accuracies, sizes, and the last round's contributors."""
    accuracies: dict[tuple[str, int], float] = {}
    for record in history:
        accuracies |= {("validation", unit): accuracy for unit, accuracy in record.exits.items()}
        accuracies |= {("test", unit): accuracy for unit, accuracy in record.test.items()}
    for row in (run.summary or {}).get("exits", ()):
        scored = {"validation": row["validation_accuracy"], "test": row["test_accuracy"]}
        accuracies |= {(split, row["unit"]): accuracy for split, accuracy in scored.items() if accuracy is not None}
    for (split, unit), accuracy in accuracies.items():
        yield Sample(m.EXIT_ACCURACY, (*labels, str(unit), split), accuracy)
    contributors = history[-1].contributors if history else {}
    for row in run.setting["units"]:
        with_unit = (*labels, str(row["unit"]))
        yield Sample(m.EXIT_PARAMETERS, with_unit, row["exit_parameters"])
        yield Sample(m.UNIT_CONTRIBUTORS, with_unit, contributors.get(row["unit"], 0))


def _counters(history: Sequence[RoundRecord], labels: tuple[str, ...]) -> Iterator[Sample]:
    tasks = task_counts(history)
    sums: tuple[tuple[Metric, tuple[str, ...], float], ...] = (
        *((m.UPDATES_REJECTED, (reason,), sum(r.rejected.get(reason, 0) for r in history)) for reason in REASONS),
        (m.ROUNDS_BELOW_QUORUM, (), sum(record.below_quorum for record in history)),
        (m.TASKS, ("answered",), tasks["answered"]),
        (m.TASKS, ("failed",), tasks["failed"]),
        (m.TASKS, ("missing",), sum(record.missing for record in history)),
        (m.TASKS_RESENT, (), tasks["resent"]),
        (m.LATE_ANSWERS, ("used",), tasks["late_used"]),
        (m.LATE_ANSWERS, ("dropped",), tasks["late_dropped"]),
        (m.TRAFFIC_BYTES, ("up",), sum(record.bytes_up for record in history)),
        (m.TRAFFIC_BYTES, ("down",), sum(record.bytes_down for record in history)),
        (m.SAMPLES, (), sum(record.samples for record in history)),
        (m.DEVICE_SECONDS, (), sum(record.device_seconds for record in history)),
    )
    for metric, more, value in sums:
        yield Sample(metric, (*labels, *more), value)


def _rounds_planned(run: RunFolder) -> int:
    return int(run.setting["config"].get("num-server-rounds", 0))
