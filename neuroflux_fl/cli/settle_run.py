"""Settles what a server is to run, in a process that may import torch and load data: ``python -m`` this module."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from neuroflux_fl.cli.run_options import absolute_data, configure
from neuroflux_fl.side_process import answer_request


def settle_run(request: dict[str, Any]) -> str | None:
    """Check the settings against the run that is there, or write the record of a new one.

    Args:
        request: ``state`` (folder), ``flags``, ``path`` and ``settings`` (see ``configure``), ``new_run``.

    Returns:
        Where the results of the run before were moved to; None where they were not.

    Raises:
        ConfigError: the settings are wrong.
        DataError: the data is missing or unfit.
        UsageError: the run that is there has other settings.
        StorageError: the state folder cannot be written.
    """
    from neuroflux_fl.fleet_model import describe_data
    from neuroflux_fl.run_config import RunConfig
    from server.run_record import RunRecord, require_same_settings, set_aside_results
    from server.state_folder import ServerState

    state = ServerState(Path(request["state"]))
    path = None if request["path"] is None else Path(request["path"])
    asked = configure(request["flags"], path, request["settings"])
    record = None if request["new_run"] else RunRecord.load(state.server_file)
    if record is not None:
        # Settings of a later release that the record does not know have their defaults.
        before = RunConfig.from_flat(record.asked).to_flat()
        require_same_settings(replace(record, asked=before), asked.to_flat(), state.root)
        return None
    # Also finds bad data now, and not when the devices have come.
    described = describe_data(replace(asked, data=absolute_data(asked.data)))
    moved = set_aside_results(state)
    name = asked.run_name or time.strftime("run-%Y%m%d-%H%M%S", time.gmtime())
    config = replace(described, out=str(state.out), run_name=name)
    RunRecord(asked=asked.to_flat(), config=config.to_flat()).save(state.server_file)
    return None if moved is None else str(moved)


if __name__ == "__main__":
    answer_request(settle_run)
