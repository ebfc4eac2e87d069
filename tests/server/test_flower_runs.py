"""What is asked of Flower and how its answers are read; Flower itself answers in tests/test_deployment.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from neuroflux_fl.errors import FleetError
from server import flower_runs
from server.flower_cli import FlowerRefusal
from server.flower_runs import FlowerRun, count_online_nodes, list_runs, stop_unfinished_runs, submit_run
from server.state_folder import ServerState

STATE = ServerState(Path("/state"))
RUNS = {
    "runs": [
        {"run-id": "18446744073709551615", "status": "finished:failed", "status-details": "No heartbeat"},
        {"run-id": "7", "status": "running", "status-details": ""},
    ]
}


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Any]], list[tuple[str, ...]]]:
    def install(answer: dict[str, Any]) -> list[tuple[str, ...]]:
        asked: list[tuple[str, ...]] = []

        def ask(state: ServerState, command: tuple[str, ...]) -> dict[str, Any]:
            assert state is STATE
            asked.append(command)
            return answer

        monkeypatch.setattr(flower_runs, "ask_flower", ask)
        return asked

    return install


def test_a_run_is_submitted_with_its_file(answers: Callable[[dict[str, Any]], list[tuple[str, ...]]]) -> None:
    asked = answers({"run-id": "18446744073709551615"})

    assert submit_run(STATE) == 2**64 - 1
    assert asked == [("run", "/state/app", "--run-config", "/state/run.toml")]


def test_runs(answers: Callable[[dict[str, Any]], list[tuple[str, ...]]]) -> None:
    answers(RUNS)

    runs = list_runs(STATE)

    assert runs == [
        FlowerRun(run_id=2**64 - 1, status="finished:failed", details="No heartbeat"),
        FlowerRun(run_id=7, status="running", details=""),
    ]
    assert [run.finished for run in runs] == [True, False]


def test_only_what_still_runs_is_stopped(answers: Callable[[dict[str, Any]], list[tuple[str, ...]]]) -> None:
    asked = answers(RUNS)

    stop_unfinished_runs(STATE)

    assert asked == [("ls",), ("stop", "7")]


def test_a_run_that_ends_before_it_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(state: ServerState, command: tuple[str, ...]) -> dict[str, Any]:
        if command[0] == "stop":
            raise FlowerRefusal("Run is finished", None)
        return RUNS

    monkeypatch.setattr(flower_runs, "ask_flower", ask)

    stop_unfinished_runs(STATE)


def test_devices_that_are_there(answers: Callable[[dict[str, Any]], list[tuple[str, ...]]]) -> None:
    answers({"nodes": [{"status": status} for status in ("online", "offline", "registered", "online")]})

    assert count_online_nodes(STATE) == 2


@pytest.mark.parametrize("ask", [submit_run, list_runs, count_online_nodes])
def test_answers_of_another_release(
    answers: Callable[[dict[str, Any]], list[tuple[str, ...]]], ask: Callable[[ServerState], object]
) -> None:
    answers({})

    with pytest.raises(FleetError, match=r"flwr 1\.41"):
        ask(STATE)
