"""Who holds a round up: answers that take much longer than the round's others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from statistics import median

from server.answer_log import Answer

STRAGGLER = 2.0
"""An answer that took longer than this many times its round's median is a straggler's."""
_FEWEST = 3
"""Answers that a median needs to say anything."""


def seconds_by_round(answers: Iterable[Answer]) -> dict[int, list[float]]:
    """Time of every answer that came in time."""
    taken: defaultdict[int, list[float]] = defaultdict(list)
    for answer in answers:
        if answer.fate == "answered" and answer.seconds is not None:
            taken[answer.round].append(answer.seconds)
    return dict(taken)


def typical_seconds(answers: Iterable[Answer]) -> dict[int, float]:
    """Median time until the answer, by round, where enough answers came in time."""
    taken = seconds_by_round(answers)
    return {round: median(seconds) for round, seconds in taken.items() if len(seconds) >= _FEWEST}


def is_straggler(answer: Answer, typical: Mapping[int, float]) -> bool:
    """Whether an answer that came in time took much longer than its round's median."""
    taken = answer.seconds if answer.fate == "answered" else None
    return taken is not None and taken > STRAGGLER * typical.get(answer.round, float("inf"))
