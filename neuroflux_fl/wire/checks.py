"""Rules that the fields of wire messages obey; each raises WireError naming field, value and rule."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from neuroflux_fl.errors import WireError

MAX_COUNT = 2**32 - 1
MAX_SIZE = 2**63 - 1
MAX_UNIT = 9_999
"""Largest unit number; far above any CNN, low enough that a forged message cannot make the server loop for long."""
MAX_TEXT_LENGTH = 128
_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})")


def check_count(field: str, value: int, *, least: int = 0) -> None:
    """Counts travel as uint32: rounds, epochs, batch sizes."""
    _check_between(field, value, least, MAX_COUNT)


def check_size(field: str, value: int) -> None:
    """Sizes travel as uint64: bytes, examples, seeds."""
    _check_between(field, value, 0, MAX_SIZE)


def check_number(field: str, value: float, *, positive: bool = False) -> None:
    """Doubles must be finite and not negative (``positive``: nor zero)."""
    if not math.isfinite(value) or value < 0 or (positive and value == 0):
        raise WireError(f"{field} is {value}: must be a finite number {'above' if positive else 'of at least'} 0.")


def check_unit(field: str, value: int) -> None:
    """Unit numbers start at 0."""
    _check_between(field, value, 0, MAX_UNIT)


def check_range(field: str, first_unit: int, last_unit: int) -> None:
    """A range of units includes both ends."""
    check_unit(f"{field}.first_unit", first_unit)
    check_unit(f"{field}.last_unit", last_unit)
    if last_unit < first_unit:
        raise WireError(f"{field} ends at unit {last_unit}, before its first unit {first_unit}.")


def check_distinct_units(field: str, units: Iterable[int]) -> None:
    """No unit may be listed twice."""
    seen: set[int] = set()
    for unit in units:
        check_unit(field, unit)
        if unit in seen:
            raise WireError(f"{field} lists unit {unit} twice.")
        seen.add(unit)


def check_text(field: str, value: str) -> None:
    """Texts end up in logs and metric labels: short and printable."""
    if len(value) > MAX_TEXT_LENGTH or not value.isprintable():
        raise WireError(f"{field} must be at most {MAX_TEXT_LENGTH} printable characters; it has {len(value)}.")


def check_address(field: str, value: str) -> None:
    """An address is HOST:PORT or [IPv6]:PORT, or empty: it ends up where others connect to."""
    check_text(field, value)
    match = _ADDRESS.fullmatch(value)
    if value and (match is None or not 1 <= int(match[2]) <= 65535):
        raise WireError(f"{field} is {value!r}: must be HOST:PORT, or empty.")


def _check_between(field: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise WireError(f"{field} is {value}: must lie between {least} and {most}.")
