"""The Flower ServerApp: reads the run's configuration, hands over to ``server.run``, and tells how it ended."""

from __future__ import annotations

import logging
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from neuroflux_fl.errors import NeurofluxError
from neuroflux_fl.run_config import RunConfig
from server.run import execute_run
from server.run_status import RunStatus, write_status

logger = logging.getLogger(__name__)

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the fleet that the run configuration describes."""
    config = RunConfig.from_flat(context.run_config)
    out = Path(config.out) if config.out else None
    try:
        summary = execute_run(
            grid,
            config,
            resume=config.resume,
            on_status=None if out is None else lambda status: write_status(out, status),
        )
    except NeurofluxError as error:
        # Whoever supervises the run must not start again what would only fail again.
        if out is not None and out.is_dir():
            write_status(out, RunStatus(phase="failed", error=str(error), error_kind=type(error).__name__))
        raise
    logger.info("Chosen exit: %s", summary["chosen_exit"])
