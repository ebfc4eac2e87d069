"""What people see of a running server: the content of its run's status file as a few lines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def describe_status(phase: str, status: Mapping[str, Any]) -> list[str]:
    """Lines for people.

    Args:
        phase: what the server does, in a few words.
        status: content of ``status.json``, or only ``nodes`` and ``wanted``, or nothing.
    """
    nodes = int(status.get("nodes", 0))
    if not status:
        return [phase]
    if "phase" not in status:
        return [f"{phase}: {nodes} of {status['wanted']} connected"]
    what = status["phase"]
    if what == "failed":
        return [f"failed: {status.get('error', '')}"]
    first = f"{what}, round {status['round']} of {status['rounds']}, stage {status['stage']}, {nodes} devices connected"
    wanted, answered = int(status.get("wanted", 0)), int(status.get("answered", 0))
    if wanted and what in ("training", "evaluating"):
        trouble = [f"{status[key]} {key}" for key in ("failed", "late") if status.get(key)]
        first += f"; {answered} of {wanted} answered" + "".join(f", {part}" for part in trouble)
    return [first, *_result_lines(status)]


def _result_lines(status: Mapping[str, Any]) -> list[str]:
    """Accuracy and contributors by unit, of the last finished round."""
    lines = []
    for title, key in (("test accuracy", "test"), ("validation accuracy", "exits")):
        if status.get(key):
            shown = ", ".join(f"exit {unit} {100 * accuracy:.1f} %" for unit, accuracy in status[key].items())
            lines.append(f"{title}: {shown}")
    if status.get("contributors"):
        shown = ", ".join(f"unit {unit}: {count}" for unit, count in status["contributors"].items())
        lines.append(f"devices that trained each unit: {shown}")
    return lines


def status_key(phase: str, status: Mapping[str, Any]) -> tuple[str, ...]:
    """Changes with all that is worth a line in a log: not with every answer that comes in."""
    return (phase, *(str(status.get(key)) for key in ("phase", "round", "nodes", "exits", "test")))
