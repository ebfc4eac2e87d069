"""State and weights come back as saved; an interrupted save leaves the old ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from neuroflux_fl.errors import StorageError
from server.device_totals import BlockTotals, DeviceTotals
from server.fleet_state import STATE_FILE, FleetState, RoundRecord
from server.schedule import ScheduleState

STATE = FleetState(
    round=2,
    schedule=ScheduleState(stage_index=1, rounds_in_stage=1, best_accuracy=0.1 + 0.2, previous_stage_accuracy=0.25),
    history=(
        RoundRecord(round=1, stage=0, exits={0: 0.125, 11: 1 / 3}, contributors={0: 4}, seconds=1.5, bytes_up=2**40),
        RoundRecord(round=2, stage=1, rejected={"not_finite": 2}, failed=1, missing=3, bytes_down=7),
    ),
    devices=(
        DeviceTotals(
            node_id=2**63,
            budget_bytes=64,
            samples=50,
            blocks=(
                BlockTotals(first_unit=0, last_unit=1, batch_size=8, measured_peak_bytes=60, seconds=0.1 + 0.2),
                BlockTotals(first_unit=2, last_unit=2, batch_size=16, loss=1 / 3),
            ),
            losses=((1, 0.5), (2, 1 / 3)),
            untrained_units=(3,),
        ),
    ),
    seconds=1 / 3,
)


def test_state_comes_back_from_json_exactly() -> None:
    assert FleetState.from_json(STATE.to_json()) == STATE


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        json.dumps({**json.loads(STATE.to_json()), "format": 3}),
        STATE.to_json().replace('"failed"', '"fialed"'),
        STATE.to_json().replace('"samples"', '"smaples"'),
    ],
)
def test_unreadable_state_is_a_storage_error(text: str) -> None:
    with pytest.raises(StorageError, match="Fleet state cannot be read"):
        FleetState.from_json(text)


def test_state_of_the_format_before_says_so() -> None:
    text = json.dumps({**json.loads(STATE.to_json()), "format": 3})

    with pytest.raises(StorageError, match=r"written by another release\. Start a new run in another folder"):
        FleetState.from_json(text)


def test_save_and_load(tmp_path: Path) -> None:
    arrays: dict[str, np.ndarray] = {
        "unit-000": np.arange(6, dtype=np.float32),
        "strided": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "count": np.array(3, np.int64),
    }

    STATE.save(tmp_path / "run", arrays)
    loaded = FleetState.load(tmp_path / "run")

    assert loaded is not None
    assert loaded[0] == STATE
    assert loaded[1].keys() == arrays.keys()
    for name, array in arrays.items():
        assert (loaded[1][name].dtype, loaded[1][name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(loaded[1][name], array)
    assert [path.name for path in (tmp_path / "run").iterdir()] == [STATE_FILE]
    assert FleetState.peek(tmp_path / "run") == STATE
    FleetState(round=3).save(tmp_path / "run", arrays)
    assert FleetState.peek(tmp_path / "run") == FleetState(round=3)


def test_empty_folder_has_no_state(tmp_path: Path) -> None:
    assert FleetState.load(tmp_path) is None
    assert FleetState.peek(tmp_path) is None


def test_save_that_fails_leaves_the_previous_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Prepare: a good file, then a disk that fails when the next one is synced.
    STATE.save(tmp_path, {"unit-000": np.ones(3, np.float32)})

    def fail(descriptor: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("server.fleet_state.os.fsync", fail)

    # Execute
    with pytest.raises(StorageError, match="disk full"):
        FleetState(round=3).save(tmp_path, {"unit-000": np.zeros(3, np.float32)})

    # Assert
    loaded = FleetState.load(tmp_path)
    assert loaded is not None
    assert loaded[0] == STATE
    assert loaded[1]["unit-000"].tolist() == [1, 1, 1]
    assert [path.name for path in tmp_path.iterdir()] == [STATE_FILE]


def test_damaged_file_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / STATE_FILE).write_bytes(b"\x00" * 40)

    for read in (FleetState.load, FleetState.peek):
        with pytest.raises(StorageError, match="cannot be read"):
            read(tmp_path)
