"""A run with its files: prepares the folder, drives the fleet, chooses the exit, writes what a reader wants later."""

from __future__ import annotations

import json
import platform
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from flwr.serverapp import Grid
from numpy.typing import NDArray

from neuroflux_fl.data import ImageData
from neuroflux_fl.errors import StorageError
from neuroflux_fl.exits import choose_exit, exit_parameters, save_exit
from neuroflux_fl.fleet_model import run_data, run_network
from neuroflux_fl.local_network import LocalNetwork
from neuroflux_fl.output_folder import prepare_folder, write_text
from neuroflux_fl.packing import unit_key
from neuroflux_fl.run_config import RunConfig
from neuroflux_fl.unit_store import UnitStore
from server.central_test import CentralTest
from server.device_totals import DeviceTotals
from server.fleet import Fleet, FleetResult, Observer
from server.fleet_state import FleetState, RoundRecord
from server.run_status import StatusListener

RUN_FILE = "run.json"
ROUNDS_FILE = "rounds.jsonl"
_PACKAGES = ("neuroflux-fl", "torch", "torchvision", "flwr", "numpy", "protobuf")


def execute_run(
    grid: Grid,
    config: RunConfig,
    *,
    observer: Observer | None = None,
    on_status: StatusListener | None = None,
    resume: bool = False,
) -> dict[str, Any]:
    """Run a fleet and return its summary, the content of ``run.json``.

    With ``config.out`` set, the folder gets ``run.json``, ``rounds.jsonl`` (a line as each round ends), the chosen
    exit, and the state from which an interrupted run goes on.

    Raises:
        NeurofluxError: bad data, a folder that cannot be written, a fleet that cannot go on.
    """
    out = Path(config.out) if config.out else None
    if out is not None:
        prepare_folder(out)
    data = run_data(config)
    network = run_network(config)
    tester = CentralTest(network, data) if config.server_tests else None
    try:
        resume_from = _saved_state(out) if resume and out is not None else None
        if out is not None:
            _start_rounds_file(out, resume_from[0].history if resume_from else ())

        def observe(record: RoundRecord, devices: Sequence[DeviceTotals]) -> None:
            if out is not None:
                _append_round(out, record)
            if observer is not None:
                observer(record, devices)

        def checkpoint(state: FleetState, arrays: dict[int, NDArray[np.float32]]) -> None:
            if out is not None:
                state.save(out, {unit_key(unit): array for unit, array in arrays.items()})

        fleet = Fleet(
            grid, config, network, observer=observe, checkpoint=checkpoint, tester=tester, on_status=on_status
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
    chosen = choose_exit(scores, config.tolerance) if scores else None
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
        "config": config.to_flat(),
        "data": {"name": data.name, "train": len(data.train), "test": len(data.test), "classes": data.classes},
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        "machine": platform.platform(),
        "devices": [_device_row(device) for device in result.state.devices],
        "rounds": [asdict(record) for record in result.state.history],
        "exits": exits,
        "chosen_exit": next((row for row in exits if row["unit"] == chosen), None),
        "tasks": _task_counts(result.state.history),
        "bytes_up": sum(device.bytes_up for device in result.state.devices),
        "bytes_down": sum(device.bytes_down for device in result.state.devices),
        "samples": sum(device.samples for device in result.state.devices),
        "device_seconds": sum(device.device_seconds for device in result.state.devices),
        "seconds": result.state.seconds,
    }


def _task_counts(history: Sequence[RoundRecord]) -> dict[str, int]:
    """Where every task went: ``sent`` is the sum of all others but ``resent``."""
    sent = sum(record.tasks for record in history)
    failed = sum(record.failed for record in history)
    missing = sum(record.missing for record in history)
    late_used = sum(record.late_used for record in history)
    late_dropped = sum(record.late_dropped for record in history)
    return {
        "sent": sent,
        "answered": sent - failed - missing,
        "failed": failed,
        "late_used": late_used,
        "late_dropped": late_dropped,
        "never_answered": missing - late_used - late_dropped,
        "resent": sum(record.resent for record in history),
    }


def _device_row(device: DeviceTotals) -> dict[str, Any]:
    blocks = [{"first_unit": first, "last_unit": last, "batch_size": batch} for first, last, batch in device.blocks]
    return {
        **asdict(device),
        "blocks": blocks,
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


def _start_rounds_file(out: Path, history: Sequence[RoundRecord]) -> None:
    if history:
        write_text(out / ROUNDS_FILE, "".join(json.dumps(asdict(record)) + "\n" for record in history))
    else:
        (out / ROUNDS_FILE).unlink(missing_ok=True)


def _append_round(out: Path, record: RoundRecord) -> None:
    path = out / ROUNDS_FILE
    try:
        with path.open("a") as file:
            file.write(json.dumps(asdict(record)) + "\n")
    except OSError as error:
        raise StorageError(f"Cannot write {path}: {error.strerror}. Free some space, then use --resume.") from error


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
