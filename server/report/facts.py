"""What a report tells about a run, gathered from its folder: plain values, ready to be drawn or written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from server.answer_log import Answer
from server.device_registry import names_by_node
from server.device_totals import DeviceTotals
from server.fleet_state import RoundRecord, task_counts
from server.report.names import clean, name_of_node, natural_order
from server.run_folder import RunFolder, read_run_folder
from server.state_folder import ServerState

_QUIET_SECONDS = 900.0
"""A run that has written nothing for longer is said to have stopped: rounds of real boards take minutes."""
_RESULTS = re.compile(r"out(-\d+)?")
"""Folders in which a server keeps the results of its runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitFacts:
    """One exit: of the finished model, or as last measured where the run goes on."""

    unit: int
    parameters: int | None
    """Of the model that ends here, head included; None where the folder does not tell."""
    validation: float | None = None
    test: float | None = None
    chosen: bool = False

    @property
    def accuracy(self) -> float | None:
        """On test images where there are any, else on the devices' validation images."""
        return self.validation if self.test is None else self.test


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFacts:
    """One device with the name that people know it by."""

    name: str
    totals: DeviceTotals

    @property
    def peak_bytes(self) -> int:
        """The largest measured peak, or the predicted one where none was measured."""
        return self.totals.measured_peak_bytes or self.totals.predicted_peak_bytes

    @property
    def budget_share(self) -> float | None:
        """Largest peak over budget; None without a budget."""
        return self.peak_bytes / self.totals.budget_bytes if self.totals.budget_bytes else None

    @property
    def over_budget(self) -> bool:
        """Whether any block was measured above the budget."""
        return bool(self.totals.budget_bytes) and self.totals.measured_peak_bytes > (self.totals.budget_bytes or 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """A run at one moment."""

    folder: Path
    name: str
    state: str
    """finished, failed, running or stopped."""
    state_note: str
    """One sentence that explains the state."""
    started_at: float | None
    read_at: float
    """Unix time at which the folder was read."""
    config: Mapping[str, Any]
    versions: Mapping[str, str]
    data: Mapping[str, Any]
    machine: str
    unit_parameters: Mapping[int, int]
    """Parameters of the exit at each unit."""
    rounds: tuple[RoundRecord, ...]
    rounds_planned: int
    seconds: float
    devices: tuple[DeviceFacts, ...]
    """In natural order of their names."""
    answers: tuple[Answer, ...]
    exits: tuple[ExitFacts, ...]
    tasks: Mapping[str, int]
    status: Mapping[str, Any]
    telemetry: Mapping[str, Any]

    @property
    def chosen(self) -> ExitFacts | None:
        """The exit that is handed out; None while the run goes on."""
        return next((exit for exit in self.exits if exit.chosen), None)

    @property
    def units(self) -> int:
        """Units of the network, as far as the folder tells."""
        known = [*self.unit_parameters, *(exit.unit for exit in self.exits)]
        for device in self.devices:
            known += [*device.totals.untrained_units, *(block.last_unit for block in device.totals.blocks)]
        return max(known, default=-1) + 1

    @property
    def full_parameters(self) -> int | None:
        """Parameters of the network at full depth."""
        return self.unit_parameters.get(max(self.unit_parameters)) if self.unit_parameters else None

    @property
    def tested(self) -> bool:
        """Whether the server measured accuracy on test images."""
        return any(record.test for record in self.rounds)

    @property
    def simulated(self) -> bool:
        """Whether the devices were simulated."""
        return any(device.totals.device_class.startswith("simulated-") for device in self.devices)

    def device_names(self) -> dict[int, str]:
        """Name by node id."""
        return {device.totals.node_id: device.name for device in self.devices}

    def total(self, field: str) -> float:
        """Sum over the devices of one of ``DeviceTotals``' numbers."""
        return float(sum(getattr(device.totals, field) for device in self.devices))


def results_folder(path: Path) -> Path:
    """``path``, or its ``out`` where it is a server's state folder."""
    out = ServerState(path).out
    return out if out.is_dir() else path


def read_facts(out: Path, now: float) -> RunFacts:
    """Read the folder ``out`` and gather the facts of its run.

    Raises:
        StorageError: nothing of a run is there, or what is there is damaged.
    """
    return gather_facts(read_run_folder(out), now)


def gather_facts(run: RunFolder, now: float) -> RunFacts:
    """The facts of a run's folder that was read at ``now`` (Unix time).

    Raises:
        StorageError: the names of the devices cannot be read.
    """
    status = run.status or {}
    summary = run.summary or {}
    rounds = run.state.history if run.state is not None else ()
    config = dict(run.setting["config"] or summary.get("config") or {})
    parameters = {int(row["unit"]): int(row["exit_parameters"]) for row in run.setting["units"]}
    state, note = _state(run, now)
    return RunFacts(
        folder=run.path,
        name=clean(str(run.setting["run"] or config.get("run-name") or run.path.resolve().name)),
        state=state,
        state_note=clean(note),
        started_at=run.setting["started_at"] or None,
        read_at=now,
        config=config,
        versions=run.setting["versions"] or summary.get("versions") or {},
        data=run.setting["data"] or summary.get("data") or {},
        machine=str(run.setting["machine"] or summary.get("machine") or ""),
        unit_parameters=parameters or {row["unit"]: row["parameters"] for row in summary.get("exits", ())},
        rounds=rounds,
        rounds_planned=int(config.get("num-server-rounds") or status.get("rounds") or len(rounds)),
        seconds=float(
            summary.get("seconds") or max(status.get("seconds", 0.0), run.state.seconds if run.state else 0.0)
        ),
        devices=_devices(run),
        answers=run.answers,
        exits=_exits(summary, rounds, parameters),
        tasks=summary.get("tasks") or task_counts(rounds),
        status=status,
        telemetry=run.telemetry or {},
    )


def _state(run: RunFolder, now: float) -> tuple[str, str]:
    status = run.status or {}
    if run.summary is not None:
        return "finished", "The run is complete."
    if status.get("phase") == "failed":
        return "failed", f"The run failed: {str(status.get('error', '')).rstrip('.')}."
    quiet = max(0.0, now - float(status.get("updated_at") or run.setting["started_at"] or now))
    if quiet <= _QUIET_SECONDS:
        return "running", "The run goes on: figures are those of the finished rounds."
    return "stopped", f"The run is not complete and has written nothing for {quiet / 60:.0f} minutes."


def _devices(run: RunFolder) -> tuple[DeviceFacts, ...]:
    names: dict[int, str] = {}
    folder = run.path.resolve()
    if _RESULTS.fullmatch(folder.name):
        names = names_by_node(ServerState(folder.parent).devices_file)
    totals = run.state.devices if run.state is not None else ()
    found = (
        DeviceFacts(
            name=clean(names.get(row.node_id) or name_of_node(row.node_id)),
            totals=replace(row, device_class=clean(row.device_class)),
        )
        for row in totals
    )
    return tuple(sorted(found, key=lambda device: natural_order(device.name)))


def _exits(
    summary: Mapping[str, Any], rounds: tuple[RoundRecord, ...], parameters: Mapping[int, int]
) -> tuple[ExitFacts, ...]:
    if summary:
        chosen = (summary.get("chosen_exit") or {}).get("unit")
        return tuple(
            ExitFacts(
                unit=row["unit"],
                parameters=row["parameters"],
                validation=row["validation_accuracy"],
                test=row["test_accuracy"],
                chosen=row["unit"] == chosen,
            )
            for row in summary["exits"]
        )
    validation: dict[int, float] = {}
    test: dict[int, float] = {}
    for record in rounds:  # the latest measurement of each wins
        validation |= record.exits
        test |= record.test
    return tuple(
        ExitFacts(
            unit=unit,
            parameters=parameters.get(unit),
            # Measured as the round began: beside the test accuracy of its end it would mislead.
            validation=None if unit in test else validation.get(unit),
            test=test.get(unit),
        )
        for unit in sorted(validation.keys() | test.keys())
    )
