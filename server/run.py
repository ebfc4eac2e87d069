"""A run with its files: prepares the folder, drives the fleet, chooses the exit, writes what a reader wants later."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from flwr.serverapp import Grid
from numpy.typing import NDArray

from neuroflux_fl.data import ImageData
from neuroflux_fl.errors import NeurofluxError, StorageError
from neuroflux_fl.exits import choose_exit, exit_parameters, save_exit
from neuroflux_fl.fleet_model import run_data, run_network
from neuroflux_fl.local_network import LocalNetwork
from neuroflux_fl.output_folder import prepare_folder, write_text
from neuroflux_fl.packing import unit_key
from neuroflux_fl.run_config import RunConfig
from neuroflux_fl.unit_store import UnitStore
from server.answer_log import ANSWERS_FILE, Answer, append_answers, drop_answers_after
from server.central_test import CentralTest
from server.device_totals import DeviceTotals
from server.fleet import Fleet, FleetResult, Observer
from server.fleet_state import STATE_FILE, FleetState, RoundRecord, task_counts
from server.run_folder import ROUNDS_FILE, RUN_FILE, TELEMETRY_FILE
from server.run_setting import describe_run, write_setting
from server.run_status import STATUS_FILE, RunStatus, write_status


def execute_run(
    grid: Grid,
    config: RunConfig,
    *,
    observer: Observer | None = None,
    resume: bool = False,
) -> dict[str, Any]:
    """Run a fleet and return its summary, the content of ``run.json``.

    With ``config.out`` set, the folder gets all that ``server.run_folder`` reads, the chosen exit, and the state from
    which an interrupted run goes on.

    Raises:
        NeurofluxError: bad data, a folder that cannot be written, a fleet that cannot go on.
    """
    if not config.out:
        return _run_fleet(grid, config, None, observer, resume)
    out = Path(config.out)
    prepare_folder(out)
    try:
        return _run_fleet(grid, config, out, observer, resume)
    except NeurofluxError as error:
        # Whoever watches the run is told why; whoever supervises it must not start again what would only fail again.
        with suppress(StorageError):
            write_status(out, RunStatus(phase="failed", error=str(error), error_kind=type(error).__name__))
        raise


def _run_fleet(
    grid: Grid, config: RunConfig, out: Path | None, observer: Observer | None, resume: bool
) -> dict[str, Any]:
    data = run_data(config)
    network = run_network(config)
    tester = CentralTest(network, data) if config.server_tests else None
    try:
        resume_from = _saved_state(out) if resume and out is not None else None
        if out is not None:
            _start_files(out, None if resume_from is None else resume_from[0])
            write_setting(out, config, data, network, resumed=resume)

        def observe(record: RoundRecord, devices: Sequence[DeviceTotals]) -> None:
            if out is not None:
                _append_round(out, record)
            if observer is not None:
                observer(record, devices)

        def checkpoint(state: FleetState, arrays: dict[int, NDArray[np.float32]], answers: Sequence[Answer]) -> None:
            if out is not None:
                # In this order: answers of a round that the state does not know are dropped when the run is resumed.
                append_answers(out, answers)
                state.save(out, {unit_key(unit): array for unit, array in arrays.items()})

        fleet = Fleet(
            grid,
            config,
            network,
            observer=observe,
            checkpoint=checkpoint,
            tester=tester,
            on_status=None if out is None else partial(write_status, out),
        )
        result = fleet.run(resume_from)
        summary = summarise(config, data, network, result, tester)
        if out is not None:
            _save_exit(out, config, data, network, result, summary)
            write_text(out / RUN_FILE, json.dumps(summary, indent=2) + "\n")
        return summary
    finally:
        if tester is not None:
            tester.close()


def summarise(
    config: RunConfig, data: ImageData, network: LocalNetwork, result: FleetResult, tester: CentralTest | None
) -> dict[str, Any]:
    """All figures of a run, ready for JSON."""
    scores = result.validation
    chosen = choose_exit(scores, config.standard_errors) if scores else None
    test: dict[int, float] = {}
    if tester is not None and scores:
        first = 0 if config.method == "neuroflux" else max(scores)
        test = tester(result.arrays, first, max(scores))
    exits = [
        {
            "unit": unit,
            "validation_accuracy": score.accuracy,
            "test_accuracy": test.get(unit),
            "parameters": exit_parameters(network, unit),
        }
        for unit, score in sorted(scores.items())
    ]
    return {
        **describe_run(config, data),
        "devices": [_device_row(device) for device in result.state.devices],
        "rounds": [asdict(record) for record in result.state.history],
        "exits": exits,
        "chosen_exit": next((row for row in exits if row["unit"] == chosen), None),
        "tasks": task_counts(result.state.history),
        "bytes_up": sum(device.bytes_up for device in result.state.devices),
        "bytes_down": sum(device.bytes_down for device in result.state.devices),
        "samples": sum(device.samples for device in result.state.devices),
        "device_seconds": sum(device.device_seconds for device in result.state.devices),
        "seconds": result.state.seconds,
    }


def _device_row(device: DeviceTotals) -> dict[str, Any]:
    return {
        **asdict(device),
        "measured_peak_bytes": device.measured_peak_bytes or None,
        "samples_per_second": device.samples_per_second,
    }


def _save_exit(
    out: Path,
    config: RunConfig,
    data: ImageData,
    network: LocalNetwork,
    result: FleetResult,
    summary: dict[str, Any],
) -> None:
    chosen = summary["chosen_exit"]
    if chosen is None:
        return
    with tempfile.TemporaryDirectory(prefix="neuroflux-exit-") as folder:
        store = UnitStore(Path(folder), network)
        for unit in range(chosen["unit"] + 1):
            store.write(unit, result.arrays[unit])
        save_exit(
            out / "exit",
            network,
            store,
            chosen["unit"],
            width=config.width,
            class_names=data.class_names,
            mean=data.mean,
            std=data.std,
            details={"validation_accuracy": chosen["validation_accuracy"], "test_accuracy": chosen["test_accuracy"]},
        )


def _saved_state(out: Path) -> tuple[FleetState, dict[int, NDArray[np.float32]]] | None:
    saved = FleetState.load(out)
    if saved is None:
        return None
    state, arrays = saved
    return state, {int(key.rsplit("-", 1)[1]): array for key, array in arrays.items()}


def _start_files(out: Path, state: FleetState | None) -> None:
    """Bring the folder to where the run stands: after ``state``, or at its beginning."""
    if state is None:
        for name in (STATE_FILE, ROUNDS_FILE, ANSWERS_FILE, STATUS_FILE, RUN_FILE, TELEMETRY_FILE):
            (out / name).unlink(missing_ok=True)
        return
    drop_answers_after(out, state.round)
    write_text(out / ROUNDS_FILE, "".join(json.dumps(asdict(record)) + "\n" for record in state.history))


def _append_round(out: Path, record: RoundRecord) -> None:
    path = out / ROUNDS_FILE
    try:
        with path.open("a") as file:
            file.write(json.dumps(asdict(record)) + "\n")
    except OSError as error:
        raise StorageError(f"Cannot write {path}: {error.strerror}. Free some space, then use --resume.") from error
