"""Every metric that the catalogue says is the server's comes out of a run's folder, from its first moment on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from neuroflux_fl import metrics as m
from neuroflux_fl.exposition import exposition, make_registry
from neuroflux_fl.metrics import CATALOGUE, Metric, Observations, Sample
from server.fleet_samples import fleet_samples, remaining_seconds, rounds_without_improvement
from server.fleet_state import FleetState, RoundRecord
from server.run_folder import RunFolder
from server.run_status import PHASES
from server.schedule import ScheduleState
from server.update_checks import REASONS

SETTING: dict[str, Any] = {
    "run": "trial",
    "started_at": 1000.0,
    "config": {"num-server-rounds": 8},
    "data": {},
    "versions": {"neuroflux-fl": "0.1", "python": "3.11", "torch": "2.13", "flwr": "1.41"},
    "machine": "",
    "units": [{"unit": unit, "exit_parameters": 100 * (unit + 1)} for unit in range(4)],
}
FIRST = RoundRecord(
    round=1,
    stage=0,
    exits={0: 0.25, 1: 0.5},
    test={1: 0.375},
    contributors={0: 2, 1: 3},
    seconds=4.0,
    bytes_up=300,
    bytes_down=200,
    rejected={"not_finite": 2},
    tasks=5,
    failed=1,
    missing=2,
    resent=3,
    late_dropped=1,
    ended_at=1010.0,
    elapsed_seconds=5.0,
    aggregation_seconds=0.25,
    device_seconds=9.0,
    samples=70,
    below_quorum=True,
    update_error=0.03,
)
SECOND = replace(
    FIRST, round=2, stage=1, exits={2: 0.625}, test={2: 0.75, 3: 0.5}, contributors={2: 4}, seconds=8.0, failed=0,
    rejected={"malformed": 1, "not_finite": 1}, late_used=2, ended_at=1020.0, below_quorum=False, update_error=0.01,
)  # fmt: skip
STATE = FleetState(round=2, schedule=ScheduleState(stage_index=1), history=(FIRST, SECOND), seconds=14.0)
STATUS = {"phase": "training", "round": 3, "nodes": 6, "wanted": 5, "answered": 2, "seconds": 15.5}
BEGUN = RunFolder(path=Path(), setting=SETTING)
RUNNING = replace(BEGUN, state=STATE, status=STATUS)


def values(run: RunFolder) -> dict[tuple[Metric, tuple[str, ...]], float]:
    """By metric and labels without the run's."""
    found: dict[tuple[Metric, tuple[str, ...]], float] = {}
    for sample in fleet_samples(run):
        if isinstance(sample, Sample):
            assert sample.metric.labels[:1] != ("run",) or sample.labels[0] == run.setting["run"]
            labels = sample.labels[1:] if sample.metric.labels[:1] == ("run",) else sample.labels
            assert (sample.metric, labels) not in found
            found[sample.metric, labels] = sample.value
    return found


def test_every_metric_of_the_server_is_there() -> None:
    assert {sample.metric for sample in fleet_samples(RUNNING)} == {
        metric for metric in CATALOGUE if metric.set_by == "server"
    }
    assert b"neuroflux_round_seconds_bucket" in exposition(make_registry(lambda: fleet_samples(RUNNING)))


def test_before_the_first_round_all_but_what_nobody_can_know_is_there() -> None:
    unknown = {m.EXIT_ACCURACY, m.REMAINING_SECONDS}

    found = values(BEGUN)

    server = {metric for metric in CATALOGUE if metric.set_by == "server" and metric.kind != "histogram"}
    assert {metric for metric, _ in found} == server - unknown
    assert all(value == 0 for (metric, _), value in found.items() if metric.kind == "counter")
    assert {labels[0] for metric, labels in found if metric is m.UPDATES_REJECTED} == set(REASONS)
    assert [item.values for item in fleet_samples(BEGUN) if isinstance(item, Observations)] == [(), ()]
    assert found[m.LAST_ROUND_TIMESTAMP, ()] == 1000.0
    assert found[m.PHASE, ("starting",)] == 1


def test_counters_are_sums_over_the_rounds() -> None:
    found = values(RUNNING)

    expected = {
        (m.UPDATES_REJECTED, ("not_finite",)): 3,
        (m.UPDATES_REJECTED, ("malformed",)): 1,
        (m.UPDATES_REJECTED, ("duplicate",)): 0,
        (m.ROUNDS_BELOW_QUORUM, ()): 1,
        (m.TASKS, ("answered",)): (5 - 3) + (5 - 2),
        (m.TASKS, ("failed",)): 1,
        (m.TASKS, ("missing",)): 4,
        (m.TASKS_RESENT, ()): 6,
        (m.LATE_ANSWERS, ("used",)): 2,
        (m.LATE_ANSWERS, ("dropped",)): 2,
        (m.TRAFFIC_BYTES, ("up",)): 600,
        (m.TRAFFIC_BYTES, ("down",)): 400,
        (m.SAMPLES, ()): 140,
        (m.DEVICE_SECONDS, ()): 18,
    }
    assert {key: found[key] for key in expected} == expected
    observed = {item.metric: item.values for item in fleet_samples(RUNNING) if isinstance(item, Observations)}
    assert observed == {m.ROUND_SECONDS: (4.0, 8.0), m.AGGREGATION_SECONDS: (0.25, 0.25)}


def test_gauges_tell_of_the_present() -> None:
    found = values(RUNNING)

    expected = {
        (m.BUILD, ("0.1", "3.11", "2.13", "1.41")): 1,
        (m.ROUND, ()): 2,
        (m.ROUNDS_PLANNED, ()): 8,
        (m.STAGE, ()): 1,
        (m.NODES_CONNECTED, ()): 6,
        (m.ANSWERS_WANTED, ()): 5,
        (m.ANSWERS_RECEIVED, ()): 2,
        (m.RUN_SECONDS, ()): 15.5,
        (m.REMAINING_SECONDS, ()): 6 * 6.0,
        (m.LAST_ROUND_TIMESTAMP, ()): 1020.0,
        (m.UPDATE_ERROR, ()): 0.03,
        # The first stage's exits keep the accuracy that they were left with.
        (m.EXIT_ACCURACY, ("0", "validation")): 0.25,
        (m.EXIT_ACCURACY, ("1", "test")): 0.375,
        (m.EXIT_ACCURACY, ("2", "test")): 0.75,
        (m.EXIT_PARAMETERS, ("3",)): 400,
        # Contributors are those of the last round.
        (m.UNIT_CONTRIBUTORS, ("0",)): 0,
        (m.UNIT_CONTRIBUTORS, ("2",)): 4,
    }
    assert {key: found[key] for key in expected} == expected
    assert found[m.SERVER_DISK_FREE, ()] <= found[m.SERVER_DISK_SIZE, ()]


@pytest.mark.parametrize("phase", PHASES)
def test_exactly_one_phase_is_the_present_one(phase: str) -> None:
    found = values(replace(RUNNING, status={**STATUS, "phase": phase}))

    assert {labels[0]: value for (metric, labels), value in found.items() if metric is m.PHASE} == {
        name: float(name == phase) for name in PHASES
    }
    waits = phase in ("training", "evaluating")
    assert (found[m.ANSWERS_WANTED, ()], found[m.ANSWERS_RECEIVED, ()]) == ((5, 2) if waits else (0, 0))


def test_finished_run_has_the_final_accuracies_and_nothing_left_to_do() -> None:
    exits = [{"unit": 2, "validation_accuracy": 0.875, "test_accuracy": None, "parameters": 300}]

    found = values(replace(RUNNING, summary={"exits": exits}))

    assert found[m.PHASE, ("finished",)] == 1
    assert found[m.REMAINING_SECONDS, ()] == 0
    assert found[m.EXIT_ACCURACY, ("2", "validation")] == 0.875
    assert found[m.EXIT_ACCURACY, ("2", "test")] == 0.75


def with_rounds(*records: RoundRecord, finished: bool = False) -> RunFolder:
    schedule = ScheduleState(stage_index=records[-1].stage if records else 0, finished=finished)
    return replace(BEGUN, state=FleetState(round=len(records), schedule=schedule, history=records))


def test_estimate_is_of_the_last_five_rounds() -> None:
    records = [replace(FIRST, seconds=seconds) for seconds in (100.0, 1.0, 2.0, 3.0, 4.0, 5.0)]

    assert remaining_seconds(with_rounds(*records)) == 2 * 3.0
    assert remaining_seconds(with_rounds(*records, finished=True)) == 0
    assert remaining_seconds(with_rounds(*records, *records)) == 0
    assert remaining_seconds(with_rounds()) is None


def test_rounds_without_improvement_are_those_of_the_present_stage() -> None:
    def of(*rounds: tuple[int, dict[int, float], dict[int, float]]) -> int:
        records = [replace(FIRST, stage=stage, exits=exits, test=test) for stage, exits, test in rounds]
        return rounds_without_improvement(with_rounds(*records))

    assert of() == 0
    assert of((0, {0: 0.5}, {})) == 0
    # The best exit counts, whichever unit it is at, and a tie is no improvement.
    assert of((0, {0: 0.5}, {}), (0, {0: 0.1, 1: 0.5}, {}), (0, {0: 0.4}, {})) == 2
    assert of((0, {0: 0.5}, {}), (0, {0: 0.4}, {}), (0, {1: 0.6}, {})) == 0
    # Test accuracy counts where there is one; a round that measured nothing does not.
    assert of((0, {0: 0.5}, {0: 0.3}), (0, {0: 0.6}, {0: 0.2}), (0, {}, {})) == 1
    # A new stage starts anew.
    assert of((0, {0: 0.9}, {}), (0, {0: 0.8}, {}), (1, {2: 0.5}, {})) == 0
    assert of((0, {0: 0.9}, {}), (1, {2: 0.5}, {}), (1, {2: 0.4}, {})) == 1
