"""Axes in the units that people read: bytes, seconds and parameters, each with one unit for a whole axis."""

from __future__ import annotations

from dataclasses import dataclass

from neuroflux_fl.sizes import GIB, KIB, MIB


@dataclass(frozen=True, slots=True)
class Scale:
    """Divide by ``divisor`` to get ``unit``."""

    divisor: float
    unit: str


def byte_scale(largest: float) -> Scale:
    """For an axis that goes up to ``largest`` bytes."""
    for size, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if largest >= size:
            return Scale(float(size), name)
    return Scale(1.0, "bytes")


def time_scale(largest: float) -> Scale:
    """For an axis that goes up to ``largest`` seconds."""
    if largest >= 3 * 86400:
        return Scale(86400.0, "days")
    if largest >= 3 * 3600:
        return Scale(3600.0, "hours")
    if largest >= 300:
        return Scale(60.0, "minutes")
    return Scale(1.0, "seconds")


def write_count(number: float) -> str:
    """A count with three digits: ``31,400`` becomes ``31.4 k``."""
    for size, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{three_digits(number / size)} {name}"
    return f"{number:.0f}"


def three_digits(number: float) -> str:
    """At least three digits, all of those before the point: ``4.68``, ``31.4``, ``3,900``."""
    return f"{number:,.0f}" if abs(number) >= 99.95 else f"{number:.3g}"


def write_seconds(seconds: float) -> str:
    """A duration with two parts at most: ``3725`` becomes ``1 h 2 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    parts = ((whole // 86400, "d"), (whole // 3600 % 24, "h"), (whole // 60 % 60, "min"), (whole % 60, "s"))
    first = next(index for index, (number, _) in enumerate(parts) if number)
    return " ".join(f"{number} {name}" for number, name in parts[first : first + 2] if number)


def write_share(share: float | None) -> str:
    """Per cent with one digit and a space that no line breaks at; a dash where it is unknown."""
    return "-" if share is None else f"{100 * share:.1f}\u00a0%"


def shorten(text: str, length: int) -> str:
    """At most ``length`` characters, with an ellipsis where some are missing."""
    return text if len(text) <= length else text[: length - 1] + "…"
