"""The ServerApp hands Flower's run configuration to the run."""

from __future__ import annotations

import pytest
from flwr.app import Context, RecordDict, UserConfig
from flwr.clientapp import ClientApp

from neuroflux_fl.errors import ConfigError, FleetError
from server.app import app
from server.grid import InProcessGrid


def call(run_config: UserConfig) -> None:
    context = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config=run_config)
    app(InProcessGrid(ClientApp(), {}, {}), context)


def test_run_configuration_reaches_the_fleet() -> None:
    config: UserConfig = {"width": 0.05, "train-limit": 80, "min-nodes": 3, "wait-seconds": 0.0, "server-tests": False}

    with pytest.raises(FleetError, match="the run needs 3"):
        call(config)


def test_unknown_key_ends_the_run() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'num-server-rounds'"):
        call({"num-server-round": 3})
