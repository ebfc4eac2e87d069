"""The lines that people see of a run."""

from __future__ import annotations

import json
from pathlib import Path

from server.run_status import RunStatus, write_status
from server.status_view import describe_status, status_key


def written(folder: Path, status: RunStatus) -> dict[str, object]:
    write_status(folder, status)
    content: dict[str, object] = json.loads((folder / "status.json").read_text())
    return content


def test_before_the_run() -> None:
    assert describe_status("starting", {}) == ["starting"]
    assert describe_status("waiting for devices", {"nodes": 1, "wanted": 3}) == [
        "waiting for devices: 1 of 3 connected"
    ]


def test_during_the_run(tmp_path: Path) -> None:
    status = RunStatus(
        phase="training", round=3, rounds=12, stage=1, nodes=4, wanted=4, answered=2, failed=1, late=2,
        contributors={0: 4, 1: 3}, exits={0: 0.41}, test={0: 0.5, 1: 0.625},
    )  # fmt: skip

    assert describe_status("running", written(tmp_path, status)) == [
        "training, round 3 of 12, stage 1, 4 devices connected; 2 of 4 answered, 1 failed, 2 late",
        "test accuracy: exit 0 50.0 %, exit 1 62.5 %",
        "validation accuracy: exit 0 41.0 %",
        "devices that trained each unit: unit 0: 4, unit 1: 3",
    ]


def test_an_answer_more_is_no_news_for_a_log(tmp_path: Path) -> None:
    one, two, next_round = (
        written(tmp_path, RunStatus(phase="training", round=number, answered=answered))
        for number, answered in ((1, 0), (1, 1), (2, 0))
    )

    assert status_key("running", one) == status_key("running", two) != status_key("running", next_round)
