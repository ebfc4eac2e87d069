"""A run's folder reads back at every stage of a run; what is no run, or damaged, is named."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from neuroflux_fl.errors import StorageError
from neuroflux_fl.output_folder import write_text
from server.fleet_state import STATE_FILE, FleetState, RoundRecord
from server.run_folder import RUN_FILE, TELEMETRY_FILE, read_run_folder
from server.run_setting import SETTING_FILE
from server.run_status import STATUS_FILE, RunStatus, write_status

SETTING = {"run": "trial", "started_at": 5.0, "config": {}, "data": {}, "versions": {}, "machine": "", "units": []}


def test_folder_fills_as_the_run_goes_on(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="holds no run"):
        read_run_folder(tmp_path)

    (tmp_path / SETTING_FILE).write_text(json.dumps(SETTING))
    begun = read_run_folder(tmp_path)
    assert (begun.setting, begun.state, begun.status, begun.summary, begun.answers) == (SETTING, None, None, None, ())

    write_status(tmp_path, RunStatus(phase="training", round=2))
    state = FleetState(round=1, history=(RoundRecord(round=1, stage=0),))
    state.save(tmp_path, {"unit-000": np.ones(3, np.float32)})
    write_text(tmp_path / TELEMETRY_FILE, '{"updated_at": 1.0, "devices": []}')
    running = read_run_folder(tmp_path)
    assert (running.state, running.summary) == (state, None)
    assert running.status is not None
    assert (running.status["phase"], running.status["round"]) == ("training", 2)
    assert running.telemetry == {"updated_at": 1.0, "devices": []}

    write_text(tmp_path / RUN_FILE, '{"seconds": 3.0}')
    assert read_run_folder(tmp_path).summary == {"seconds": 3.0}


def test_run_that_failed_before_it_found_its_data_has_an_empty_setting(tmp_path: Path) -> None:
    write_status(tmp_path, RunStatus(phase="failed", error="Folder x has no images."))

    run = read_run_folder(tmp_path)

    assert run.setting.keys() == SETTING.keys()
    assert run.setting["run"] == ""


@pytest.mark.parametrize("name", [SETTING_FILE, STATUS_FILE, STATE_FILE, RUN_FILE, TELEMETRY_FILE])
@pytest.mark.parametrize("content", [b"", b"[]", b"\xff\xfe", b'{"half": '])
def test_damaged_file_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / SETTING_FILE).write_text(json.dumps(SETTING))
    (tmp_path / name).write_bytes(content)

    with pytest.raises(StorageError, match=name):
        read_run_folder(tmp_path)


def test_setting_of_another_release_is_refused(tmp_path: Path) -> None:
    (tmp_path / SETTING_FILE).write_text(json.dumps({"run": "trial", "config": {}}))

    with pytest.raises(StorageError, match="lacks data, machine, started_at, units, versions: it was written by"):
        read_run_folder(tmp_path)


def test_files_that_are_replaced_meanwhile_are_never_half_read(tmp_path: Path) -> None:
    (tmp_path / SETTING_FILE).write_text(json.dumps(SETTING))
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            history = tuple(RoundRecord(round=done, stage=0) for done in range(1, number % 50 + 1))
            FleetState(round=len(history), history=history).save(tmp_path, {"unit-000": np.ones(9, np.float32)})
            write_status(tmp_path, RunStatus(phase="training", error="x" * (number % 7000)))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(100):
            run = read_run_folder(tmp_path)
            assert run.state is None or run.state.round == len(run.state.history)
    finally:
        stop.set()
        writer.join()
    assert sorted(os.listdir(tmp_path)) == sorted([SETTING_FILE, STATE_FILE, STATUS_FILE])
