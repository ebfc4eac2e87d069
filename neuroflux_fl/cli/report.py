"""``neuroflux-fl report``: a run as one HTML page to keep."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from neuroflux_fl.cli.output import print_json, result_console
from neuroflux_fl.output_folder import write_text

REPORT_FILE = "report.html"


def report(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="--out of simulate, or --state of a server.", show_default=False)
    ],
    out: Annotated[Path | None, typer.Option(help="File to write. Default: report.html in the run's folder.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")] = False,
) -> None:
    """Make a page of a run: accuracy, memory, plans, rounds, devices, and how to repeat it.

    One file that opens without a network and needs no script. Works on finished runs and on those that go on or were
    interrupted; make it again for newer figures. Needs the extra: pip install "neuroflux-fl\\[report]".

    Example: neuroflux-fl report runs/fleet
    """
    from server.report.facts import read_facts, results_folder
    from server.report.page import make_page

    results = results_folder(folder.expanduser())
    facts = read_facts(results, time.time())
    target = results / REPORT_FILE if out is None else out.expanduser()
    page = make_page(facts)
    write_text(target, page)
    if json:
        chosen = facts.chosen
        print_json(
            {
                "report": str(target),
                "bytes": len(page.encode()),
                "run": facts.name,
                "state": facts.state,
                "rounds": len(facts.rounds),
                "devices": len(facts.devices),
                "chosen_exit": None if chosen is None else chosen.unit,
            }
        )
    else:
        result_console.print(f"{facts.name}, {facts.state}: {target}", soft_wrap=True, markup=False)
