"""What came of every task of every round, a line each: the ground of the rounds' timeline."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from neuroflux_fl.errors import StorageError
from neuroflux_fl.output_folder import write_text

ANSWERS_FILE = "answers.jsonl"
FATES = ("answered", "failed", "missing", "late_used", "late_dropped")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One training task and what came of it. One that was missing has another line in the round in which it came."""

    round: int
    """In which the answer came, or was missing."""
    node_id: int
    sent_at: float
    """Seconds of the run at which the device was first asked."""
    seconds: float | None = None
    """From then until the answer; None where none came."""
    fate: str = "missing"
    """answered, failed, missing (at the round's end), late_used, or late_dropped."""
    profile: float = 0.0
    """Seconds that the device says it spent on this; likewise the next three."""
    train: float = 0.0
    cache: float = 0.0
    evaluate: float = 0.0
    samples: int = 0
    """Training samples processed, passes counted."""
    bytes_up: int = 0


def read_answers(folder: Path) -> tuple[Answer, ...]:
    """All answers in the order of their rounds; a line that is still being written is left out.

    Raises:
        StorageError: the file cannot be read, or is not one of these.
    """
    answers = []
    for number, line in enumerate(_whole_lines(folder), start=1):
        try:
            answers.append(_answer(line))
        except (ValueError, TypeError) as error:
            raise StorageError(
                f"File {folder / ANSWERS_FILE} is damaged in line {number} ({error}): delete it to do without the "
                "rounds' timeline."
            ) from error
    return tuple(answers)


def append_answers(folder: Path, answers: Iterable[Answer]) -> None:
    """Add the answers of a round; they are on the disk when this returns.

    Raises:
        StorageError: that is not possible.
    """
    path = folder / ANSWERS_FILE
    try:
        with path.open("a") as file:
            file.write(_lines(answers))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise StorageError(f"Cannot write {path}: {error.strerror}. Free some space, then use --resume.") from error


def drop_answers_after(folder: Path, round: int) -> None:
    """Leave out the answers of later rounds, which a resumed run is going to ask for again, and what a crash cut short.

    Raises:
        StorageError: the file cannot be read or written.
    """
    kept = []
    for line in _whole_lines(folder):
        try:
            answer = _answer(line)
        except (ValueError, TypeError):
            break  # Answers of rounds that count were on the disk before their state was.
        if answer.round <= round:
            kept.append(answer)
    if (folder / ANSWERS_FILE).exists():
        write_text(folder / ANSWERS_FILE, _lines(kept))


def _whole_lines(folder: Path) -> list[bytes]:
    path = folder / ANSWERS_FILE
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StorageError(f"File {path} cannot be read: {error.strerror}.") from error
    return content[: content.rfind(b"\n") + 1].splitlines()


def _answer(line: bytes) -> Answer:
    return Answer(**json.loads(line))


def _lines(answers: Iterable[Answer]) -> str:
    return "".join(json.dumps(asdict(answer), separators=(",", ":")) + "\n" for answer in answers)
