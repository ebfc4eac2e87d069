"""What a report says of a run is what its folder says."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from neuroflux_fl.errors import StorageError
from neuroflux_fl.sizes import MIB
from server.report.facts import read_facts, results_folder
from server.report.findings import findings
from server.report.names import name_of_node, natural_order
from server.run_status import RunStatus, write_status

WriteRun = Callable[..., Path]


def test_a_finished_run(write_run: WriteRun, tmp_path: Path) -> None:
    run = read_facts(write_run(tmp_path / "out"), time.time())

    assert (run.state, run.name, run.rounds_planned, run.units, run.seconds) == ("finished", "sample", 6, 8, 180.0)
    assert run.chosen is not None
    assert (run.chosen.unit, run.chosen.parameters, run.full_parameters) == (4, 64_000, 512_000)
    assert run.tested
    assert run.simulated
    assert run.total("bytes_up") == 8 * 6 * 500_000
    over = [device.name for device in run.devices if device.over_budget]
    assert over == ["device-4"]
    assert run.devices[3].budget_share == pytest.approx(1.07)


def test_a_run_that_goes_on_has_no_chosen_exit_and_the_latest_accuracies(write_run: WriteRun, tmp_path: Path) -> None:
    run = read_facts(write_run(tmp_path / "out", rounds=5, finished=False), time.time())

    assert (run.state, run.chosen) == ("running", None)
    assert [exit.unit for exit in run.exits] == list(range(8))
    last = run.rounds[-1]
    assert run.exits[7].test == last.test[7]
    assert run.exits[7].validation is None  # it is of the round before
    assert run.tasks == {
        "sent": 40, "answered": 39, "failed": 0, "late_used": 1, "late_dropped": 0, "never_answered": 0, "resent": 0,
    }  # fmt: skip


def test_a_run_that_is_long_silent_has_stopped(write_run: WriteRun, tmp_path: Path) -> None:
    out = write_run(tmp_path / "out", rounds=2, finished=False)

    run = read_facts(out, time.time() + 3600)

    assert run.state == "stopped"
    assert "60 minutes" in run.state_note


def test_a_failed_run_says_why_in_printable_text(write_run: WriteRun, tmp_path: Path) -> None:
    out = write_run(tmp_path / "out", rounds=1, finished=False)
    write_status(out, RunStatus(phase="failed", error="No quorum\x1b[31m.", error_kind="FleetError"))

    run = read_facts(out, time.time())

    assert (run.state, run.state_note) == ("failed", "The run failed: No quorum?[31m.")


def test_names_are_those_of_the_enrolment_in_natural_order(write_run: WriteRun, tmp_path: Path) -> None:
    names = ("board-10", "board-9", "evil\x1b]0;x\x07\u202e")
    out = write_run(tmp_path / "state/out", devices=4, names=names, classes=("a\nb",))

    run = read_facts(results_folder(tmp_path / "state"), time.time())

    assert run.folder == out
    assert [device.name for device in run.devices] == ["board-9", "board-10", "device-4", "evil?]0;x??"]
    assert {device.totals.device_class for device in run.devices} == {"a?b"}
    assert not run.simulated


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="holds no run"):
        read_facts(tmp_path, time.time())


def test_long_ids_are_shown_by_their_end() -> None:
    assert [name_of_node(node_id) for node_id in (7, 918346958909006233)] == ["device-7", "device-…006233"]


def test_natural_order() -> None:
    assert sorted(["b10", "b9", "10", "9", "", "a"], key=natural_order) == ["", "9", "10", "a", "b9", "b10"]


def test_findings_name_what_is_wrong_and_who(write_run: WriteRun, tmp_path: Path) -> None:
    found = findings(read_facts(write_run(tmp_path / "out"), time.time()))

    assert [sentence.partition(":")[0] for sentence in found] == ["Memory", "Updates", "Tasks", "Stragglers"]
    assert "1 of 8 devices (device-4)" in found[0]
    assert f"{24 * 1.07:.1f} MiB of 24.0 MiB" in found[0]
    assert "1 not finite" in found[1]
    assert "device-3 (1)" in found[2]
    assert "device-2 (6x)" in found[3]


def test_nothing_is_found_where_nothing_is_wrong(write_run: WriteRun, tmp_path: Path) -> None:
    out = write_run(tmp_path / "out", devices=1, rounds=1)
    summary = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps(summary | {"tasks": {"sent": 1, "answered": 1}}))

    run = read_facts(out, time.time())

    assert run.devices[0].totals.measured_peak_bytes < 6 * MIB
    assert findings(run) == ()
