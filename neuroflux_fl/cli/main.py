"""``neuroflux-fl``: the commands, and the one place where errors become exit codes."""

# ruff: noqa: E402 - the environment is set before anything reads it

from __future__ import annotations

import os
import sys

for _name in ("FLWR_TELEMETRY_ENABLED", "RAY_USAGE_STATS_ENABLED"):
    os.environ.setdefault(_name, "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

import typer

from neuroflux_fl import __version__
from neuroflux_fl.cli.certs import certs
from neuroflux_fl.cli.client import client
from neuroflux_fl.cli.compare import compare
from neuroflux_fl.cli.devices import devices, enroll, revoke
from neuroflux_fl.cli.output import print_error
from neuroflux_fl.cli.plan import plan
from neuroflux_fl.cli.report import report
from neuroflux_fl.cli.server import server
from neuroflux_fl.cli.simulate import simulate
from neuroflux_fl.cli.train import train
from neuroflux_fl.cli.watch import watch
from neuroflux_fl.errors import BudgetError, NeurofluxError, StorageError

_INTERRUPTED = 130

app = typer.Typer(
    name="neuroflux-fl",
    help="Train CNNs on a fleet of unequal, memory-poor devices.\n\n"
    "[bold]plan[/bold] shows what fits into a memory budget, [bold]train[/bold] trains on this one device, "
    "[bold]simulate[/bold] runs a whole fleet on this machine.\n\n"
    "For real devices: [bold]certs[/bold], [bold]server[/bold], [bold]enroll[/bold], and on each device "
    "[bold]client[/bold].\n\n"
    "[bold]watch[/bold] shows a run as it goes, [bold]report[/bold] makes a page of it.\n\n"
    "Exit codes: 0 done, 1 a fault of this program, 2 wrong option, 3 configuration, 4 data, 5 memory, "
    "6 files and disks, 7 fleet, 8 missing package, 9 network message, 130 interrupted.",
    rich_markup_mode="rich",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(plan)
app.command()(train)
app.command()(compare)
app.command()(simulate)
app.command()(server)
app.command()(client)
app.command()(certs)
app.command()(enroll)
app.command()(revoke)
app.command()(devices)
app.command()(watch)
app.command()(report)


def _print_version(value: bool) -> None:
    if value:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_print_version, is_eager=True, help="Show the version."),
) -> None:
    """Options of all commands."""


def _is_out_of_memory(error: BaseException) -> bool:
    if "torch" not in sys.modules:  # which takes seconds to import
        return isinstance(error, MemoryError)
    from neuroflux_fl.device_memory import is_out_of_memory

    return is_out_of_memory(error)


def main() -> None:
    """Run the command line; a user's mistake is one line on standard error and an exit code of its kind."""
    try:
        app()
    except NeurofluxError as error:
        print_error(str(error))
        sys.exit(error.exit_code)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        print_error("The memory of this machine ran out: use fewer or smaller images, or a smaller budget.")
        sys.exit(BudgetError.exit_code)
    except OSError as error:
        print_error(f"The system refused a file or the output: {error}. Free the disk, or write elsewhere.")
        sys.exit(StorageError.exit_code)
    except SystemExit as ended:
        if ended.code == _INTERRUPTED:
            print_error("Interrupted.")  # Typer ends without a word
        raise
