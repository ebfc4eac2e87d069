"""The Flower ServerApp: reads the run's configuration, hands over to ``server.run``, and logs the result."""

from __future__ import annotations

import logging

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from neuroflux_fl.run_config import RunConfig
from server.run import execute_run

logger = logging.getLogger(__name__)

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the fleet that the run configuration describes."""
    config = RunConfig.from_flat(context.run_config)
    summary = execute_run(grid, config, resume=config.resume)
    logger.info("Chosen exit: %s", summary["chosen_exit"])
