"""Runs and devices as the SuperLink knows them, asked of Flower's own command."""

from __future__ import annotations

import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from neuroflux_fl.errors import FleetError
from neuroflux_fl.flower_environment import flower_command
from server.flower_cli import FlowerRefusal, ask_flower
from server.state_folder import CONNECTION, ServerState

COMPLETED = "finished:completed"
_LOG_SECONDS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowerRun:
    """One run."""

    run_id: int
    status: str
    """pending, starting, running, finished:completed, finished:failed or finished:stopped."""
    details: str
    """Why it failed; empty otherwise."""

    @property
    def finished(self) -> bool:
        """Whether Flower is done with it, however it ended."""
        return self.status.startswith("finished")


def submit_command(state: ServerState) -> tuple[str, ...]:
    """What ``flwr`` is asked to start the run of a state folder."""
    return ("run", str(state.app), "--run-config", str(state.run_config_file))


def submit_run(state: ServerState) -> int:
    """Start a run of ``state.app`` with the configuration in ``state.run_config_file``; returns its id.

    Raises:
        FleetError: the SuperLink does not answer.
        FlowerRefusal: it refuses.
    """
    answer = ask_flower(state, submit_command(state))
    try:
        return int(answer["run-id"])
    except (KeyError, TypeError, ValueError) as error:
        raise FleetError(
            "Flower's answer to flwr run has another form than that of flwr 1.41: install that."
        ) from error


def list_runs(state: ServerState) -> list[FlowerRun]:
    """All runs that the SuperLink remembers, the oldest first.

    Raises:
        FleetError: it does not answer.
    """
    try:
        runs = [
            FlowerRun(run_id=int(run["run-id"]), status=str(run["status"]), details=str(run.get("status-details", "")))
            for run in ask_flower(state, ("ls",))["runs"]
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise FleetError("Flower's list of runs has another form than that of flwr 1.41: install that.") from error
    return runs


def stop_unfinished_runs(state: ServerState) -> None:
    """Stop what a server left behind that was killed: its ServerApp died with it, but the SuperLink cannot know.

    Raises:
        FleetError: the SuperLink does not answer.
    """
    for run in list_runs(state):
        if not run.finished:
            with suppress(FlowerRefusal):  # It has ended meanwhile.
                ask_flower(state, ("stop", str(run.run_id)))


def count_online_nodes(state: ServerState) -> int:
    """Number of devices that are connected at present.

    Raises:
        FleetError: the SuperLink does not answer.
    """
    try:
        return sum(node["status"] == "online" for node in ask_flower(state, ("supernode", "list"))["nodes"])
    except (KeyError, TypeError) as error:
        raise FleetError("Flower's list of devices has another form than that of flwr 1.41: install that.") from error


def save_run_log(state: ServerState, run_id: int) -> Path:
    """Write what the ServerApp of a run has logged to a file of its own, as far as it can be had; returns its path."""
    path = state.logs / f"serverapp-{run_id}.log"
    try:
        with path.open("wb") as file:
            subprocess.run(
                [flower_command("flwr"), "log", "--show", str(run_id), CONNECTION],
                cwd=state.flwr_home,
                env=state.flower_environment() | {"PYTHONUTF8": "1", "NO_COLOR": "1", "TERM": "dumb"},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=_LOG_SECONDS,
                check=False,
            )
    except (OSError, subprocess.TimeoutExpired):
        return path  # The log is a help, not a result.
    return path
