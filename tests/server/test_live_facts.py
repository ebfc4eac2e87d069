"""A run as it is watched: what devices tell wins over what the server remembers."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from neuroflux_fl.sizes import MIB
from server.live_facts import live_facts
from server.run_folder import read_run_folder

WriteRun = Callable[..., Path]


def test_devices_that_report_are_shown_as_they_are_now(write_run: WriteRun, tmp_path: Path) -> None:
    out = write_run(tmp_path / "out", devices=6, rounds=3, finished=False, reporting=True)

    run = live_facts(read_run_folder(out), time.time())
    devices = {device.name: device for device in run.devices}

    assert (run.phase, run.round, run.rounds_done, run.rounds, run.ended) == ("training", 4, 3, 6, False)
    assert (run.wanted, run.answered) == (6, 3)
    assert run.remaining_seconds == 3 * 28.0
    first = devices["device-1"]
    assert (first.state, first.memory_bytes, first.memory_is_live) == ("training", 6 * MIB * 3 // 4, True)
    assert (first.batch_size, first.samples_per_second, first.celsius) == (8, 480.0, 51.0)
    assert devices["device-6"].state == "silent"
    assert not devices["device-6"].memory_is_live
    assert devices["device-2"].straggler
    # One that was ever over its budget is shown with that.
    assert devices["device-4"].over_budget
    assert devices["device-4"].memory_bytes == int(24 * MIB * 1.07)
    assert [device.name for device in run.devices][:1] == ["device-4"]
    assert run.devices[-1].in_trouble is False


def test_without_reports_the_last_answers_tell(write_run: WriteRun, tmp_path: Path) -> None:
    out = write_run(tmp_path / "out", devices=4, rounds=2, planned=6, finished=False)

    devices = {device.name: device for device in live_facts(read_run_folder(out), time.time()).devices}

    assert devices["device-1"].state == "answered"
    assert devices["device-3"].state == "missing"
    assert devices["device-1"].memory_is_live is False
    assert devices["device-1"].samples_per_second is not None


def test_a_device_that_only_the_gateway_knows_is_shown(write_run: WriteRun, tmp_path: Path) -> None:
    out = write_run(tmp_path / "out", devices=3, rounds=0, finished=False, reporting=True)

    run = live_facts(read_run_folder(out), time.time())

    assert sorted(device.name for device in run.devices) == ["device-1", "device-2", "device-3"]
    assert run.exits == ()


def test_a_run_that_stands_still_says_so(write_run: WriteRun, tmp_path: Path) -> None:
    out = write_run(tmp_path / "out", devices=2, rounds=1, finished=False, reporting=True)

    run = live_facts(read_run_folder(out), time.time() + 7200)

    assert "120 minutes" in run.warnings[0]
    # What devices reported so long ago is not shown as the present.
    assert {device.state for device in run.devices} == {"answered"}
    assert not any(device.memory_is_live for device in run.devices)


def test_reports_of_a_gateway_that_has_ended_are_not_shown(write_run: WriteRun, tmp_path: Path) -> None:
    out = write_run(tmp_path / "out", devices=2, rounds=1, finished=False, reporting=True)

    run = live_facts(read_run_folder(out), time.time() + 120)

    assert run.phase == "training"
    assert {device.state for device in run.devices} == {"answered"}
