"""Which devices a figure shows where there are too many: both ends and an even sample between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

_Item = TypeVar("_Item")

MOST_ROWS = 40


def pick_rows(
    items: Sequence[_Item], measure: Callable[[_Item], float], *, limit: int = MOST_ROWS
) -> tuple[_Item, ...]:
    """At most ``limit`` items in their given order: a quarter each with the highest and lowest measure, and others.

    The others are spread evenly over the ranks between, so that the picture keeps the fleet's proportions.
    """
    if len(items) <= limit:
        return tuple(items)
    ranked = sorted(range(len(items)), key=lambda index: measure(items[index]))
    end = limit // 4
    middle = ranked[end : len(ranked) - end]
    wanted = limit - 2 * end
    spread = [middle[(2 * index + 1) * len(middle) // (2 * wanted)] for index in range(wanted)]
    kept = {*ranked[:end], *ranked[len(ranked) - end :], *spread}
    return tuple(item for index, item in enumerate(items) if index in kept)


def sample_note(shown: int, of: int, what: str) -> str:
    """A sentence on what is left out; empty where nothing is.

    Args:
        shown: number of rows shown.
        of: number of devices.
        what: the measure that the ends are of, for example ``share of the budget``.
    """
    if shown >= of:
        return ""
    return f"{shown} of {of:,} devices: those with the highest and lowest {what}, and an even sample between."
