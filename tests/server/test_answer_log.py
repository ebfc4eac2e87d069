"""Answers come back as written; a line cut short by a kill is no error."""

from __future__ import annotations

from pathlib import Path

import pytest

from neuroflux_fl.errors import StorageError
from server.answer_log import ANSWERS_FILE, Answer, append_answers, drop_answers_after, read_answers

FIRST = (
    Answer(
        round=1, node_id=2**63, sent_at=0.1 + 0.2, seconds=1 / 3, fate="answered", profile=0.1, train=0.2, cache=0.3,
        evaluate=0.4, samples=50, bytes_up=2**40,
    ),
    Answer(round=1, node_id=4, sent_at=0.5),
)  # fmt: skip
SECOND = (Answer(round=2, node_id=4, sent_at=0.5, seconds=9.0, fate="late_used"),)


def test_rounds_come_back_in_order(tmp_path: Path) -> None:
    assert read_answers(tmp_path) == ()

    append_answers(tmp_path, FIRST)
    append_answers(tmp_path, SECOND)

    assert read_answers(tmp_path) == (*FIRST, *SECOND)
    assert len((tmp_path / ANSWERS_FILE).read_text().splitlines()) == 3


def test_line_that_is_being_written_is_left_out(tmp_path: Path) -> None:
    append_answers(tmp_path, FIRST)
    whole = (tmp_path / ANSWERS_FILE).read_text()

    for length in range(len(whole)):
        (tmp_path / ANSWERS_FILE).write_text(whole[:length])
        assert read_answers(tmp_path) == FIRST[: whole[:length].count("\n")]


def test_later_rounds_are_dropped_and_half_a_line_with_them(tmp_path: Path) -> None:
    drop_answers_after(tmp_path, 1)
    assert not (tmp_path / ANSWERS_FILE).exists()
    append_answers(tmp_path, (*FIRST, *SECOND))
    with (tmp_path / ANSWERS_FILE).open("a") as file:
        file.write("\0\0\0\n" + '{"round":2,')  # what a crash of the machine leaves

    drop_answers_after(tmp_path, 1)
    append_answers(tmp_path, SECOND)

    assert read_answers(tmp_path) == (*FIRST, *SECOND)
    assert [path.name for path in tmp_path.iterdir()] == [ANSWERS_FILE]


@pytest.mark.parametrize("line", ["garbage", "[]", '{"round": 1}', '{"round": 1, "node_id": 2, "sent_at": 0, "x": 1}'])
def test_damaged_file_is_a_storage_error(tmp_path: Path, line: str) -> None:
    (tmp_path / ANSWERS_FILE).write_text(line + "\n")

    with pytest.raises(StorageError, match=r"answers\.jsonl is damaged in line 1 \(.*\): delete it"):
        read_answers(tmp_path)


def test_folder_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="Cannot write"):
        append_answers(tmp_path / "missing", FIRST)
