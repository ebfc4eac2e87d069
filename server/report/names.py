"""Names of devices as they are shown: harmless, short, and in the order that people expect."""

from __future__ import annotations

import re


def name_of_node(node_id: int) -> str:
    """For a device that was not enrolled under a name; Flower's ids have up to 20 digits, of which six tell enough."""
    return f"device-{node_id}" if node_id < 10**6 else f"device-…{node_id % 10**6:06}"


def clean(text: str) -> str:
    """Text from another machine without what could confuse a page or command a terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def natural_order(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key that puts ``board-9`` before ``board-10``."""
    return tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name) if part)
