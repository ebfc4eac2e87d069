"""A server that is started again goes on with its run, and with no other."""

from __future__ import annotations

from pathlib import Path

import pytest

from neuroflux_fl.errors import StorageError, UsageError
from neuroflux_fl.run_config import RunConfig
from server.run_folder import ROUNDS_FILE, RUN_FILE
from server.run_record import RunRecord, require_same_settings, set_aside_results
from server.run_status import STATUS_FILE
from server.state_folder import ServerState


def record(**settings: object) -> RunRecord:
    config = RunConfig(**settings)  # type: ignore[arg-type]
    return RunRecord(asked=config.to_flat(), config={**config.to_flat(), "out": "/results"})


def test_a_record_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "server.json"
    assert RunRecord.load(path) is None

    saved = record(num_server_rounds=7).submitted(2**63 + 5).submitted(6)
    saved.save(path)

    assert RunRecord.load(path) == saved
    assert saved.run_ids == (2**63 + 5, 6)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 99}', '{"format": 1, "asked": {}}'])
def test_a_damaged_record(tmp_path: Path, text: str) -> None:
    path = tmp_path / "server.json"
    path.write_text(text)

    with pytest.raises(StorageError, match="is damaged"):
        RunRecord.load(path)


def test_the_same_settings_go_on_and_others_do_not(tmp_path: Path) -> None:
    before = record(num_server_rounds=7)

    require_same_settings(before, RunConfig(num_server_rounds=7).to_flat(), tmp_path)
    with pytest.raises(UsageError, match=r"unfinished run with num-server-rounds 7, now 8: .* --new-run"):
        require_same_settings(before, RunConfig(num_server_rounds=8).to_flat(), tmp_path)


def test_files_have_the_names_that_the_run_gives_them(tmp_path: Path) -> None:
    state = ServerState(tmp_path)

    assert [state.run_file, state.rounds_file, state.status_file] == [
        tmp_path / "out" / name for name in (RUN_FILE, ROUNDS_FILE, STATUS_FILE)
    ]


def test_results_are_kept_when_a_new_run_begins(tmp_path: Path) -> None:
    state = ServerState(tmp_path)
    assert set_aside_results(state) is None
    for number in (1, 2):
        state.out.mkdir()
        (state.out / "run.json").write_text(str(number))
        assert set_aside_results(state) == tmp_path / f"out-{number}"

    assert [(tmp_path / f"out-{number}" / "run.json").read_text() for number in (1, 2)] == ["1", "2"]
    assert not state.out.exists()
