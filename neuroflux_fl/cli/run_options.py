"""A run's configuration from what stands on the command line, for every command that starts a run."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuroflux_fl.errors import ConfigError

if TYPE_CHECKING:
    from neuroflux_fl.run_config import RunConfig, Value


def configure(
    flags: Mapping[str, Any],
    path: Path | None,
    settings: Sequence[str],
    *,
    defaults: Mapping[str, Value] | None = None,
) -> RunConfig:
    """The defaults, then the file, then ``--set``, then flags: the later wins.

    Args:
        flags: values by key; None where the flag was not given.
        path: TOML file of flat keys.
        settings: ``key=value`` texts, in the order given.
        defaults: the command's own, over those of ``RunConfig``.

    Raises:
        ConfigError: a file that cannot be read, a setting without a value, an unknown key, a bad value.
    """
    from neuroflux_fl.run_config import RunConfig

    values: dict[str, Value] = dict(defaults or {})
    if path is not None:
        values |= RunConfig.from_toml(path)
    for setting in settings:
        key, separator, text = setting.partition("=")
        if not separator:
            raise ConfigError(f"Setting {setting!r} has no value: write --set key=value.")
        values[key] = _parse(text)
    values |= {key: value for key, value in flags.items() if value is not None}
    return RunConfig.from_flat(values)


def absolute_data(name: str) -> str:
    """The name of a data set as it is; a folder with its whole path, for processes that start elsewhere."""
    from neuroflux_fl.data.load import DATA_NAMES

    return name if name in DATA_NAMES else str(Path(name).expanduser().resolve())


def _parse(text: str) -> Value:
    """A value as TOML would read it; anything else is text."""
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    return value if isinstance(value, (bool, int, float, str)) else text
