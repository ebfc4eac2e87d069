"""Byte sizes as people write them (``64MiB``) and back."""

from __future__ import annotations

import re

from neuroflux_fl.errors import UsageError

KIB = 1024
MIB = 1024**2
GIB = 1024**3

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": KIB, "MIB": MIB, "GIB": GIB}
_LARGEST_SIZE = 2.0**60
"""An exbibyte: beyond, sizes are mistakes, and overflow."""
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*")


def parse_bytes(text: str) -> int:
    """Read a positive size such as ``"64MiB"``, ``"1.5GiB"``, ``"200MB"`` or ``"1048576"`` (bytes).

    Raises:
        UsageError: the text is not a number with one of the known units, or the size is below one byte.
    """
    match = _SIZE.fullmatch(text)
    unit = match.group(2).upper() if match else None
    if match is None or unit not in _UNITS:
        raise UsageError(f"Size {text!r} is not a number of bytes: write for example 64MiB, 1.5GiB or 200MB.")
    size = float(match.group(1)) * _UNITS[unit]
    if size > _LARGEST_SIZE:
        raise UsageError(f"Size {text[:20]!r}... is too large: give for example 64MiB.")
    if size < 1:
        raise UsageError(f"Size {text!r} is below one byte: give a positive size, for example 64MiB.")
    return int(size)


def format_bytes(size: float) -> str:
    """Write a size for people: ``67108864`` becomes ``"64.0 MiB"``."""
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if abs(size) >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size:.0f} B"
