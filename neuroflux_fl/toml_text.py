"""Writes TOML values, in the narrow form that Flower's command lines can read as well."""

from __future__ import annotations

import json
from collections.abc import Mapping

Value = bool | int | float | str


def toml_value(value: Value) -> str:
    """One value. A text is double-quoted and has no double quote inside: Flower cuts ``--node-config`` at the next."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        inner = json.dumps(value, ensure_ascii=False)[1:-1].replace('\\"', "\\u0022").replace("\x7f", "\\u007f")
        return f'"{inner}"'
    return repr(value)


def toml_lines(values: Mapping[str, Value]) -> str:
    """``key = value`` lines; the keys must be bare TOML keys."""
    return "".join(f"{key} = {toml_value(value)}\n" for key, value in values.items())


def flower_arguments(values: Mapping[str, Value]) -> str:
    """``key=value key=value``, as ``flower-supernode --node-config`` takes it."""
    return " ".join(f"{key}={toml_value(value)}" for key, value in values.items())
