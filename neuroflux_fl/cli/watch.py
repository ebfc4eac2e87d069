"""``neuroflux-fl watch``: a run as it goes, in the terminal, read from its folder."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import RenderableType
from rich.live import Live

from neuroflux_fl.cli.output import print_json, result_console
from neuroflux_fl.cli.watch_view import describe_run, draw_run

if TYPE_CHECKING:
    from server.answer_log import Answer
    from server.live_facts import LiveRun

_REFRESH_SECONDS = 2.0


def watch(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="--out of simulate, or --state of a server.", show_default=False)
    ],
    once: Annotated[bool, typer.Option("--once", help="Show the present moment and end.")] = False,
    json: Annotated[bool, typer.Option("--json", help="The present moment as JSON on standard output.")] = False,
) -> None:
    """Watch a run: round, time left, accuracy of the exits, and what every device does.

    Reads files only: it can be started and stopped at any time, on any machine that sees the folder. Devices in
    trouble come first. Where the output is no terminal, it writes a line for each round and each new warning.

    Example: neuroflux-fl watch ~/.local/state/neuroflux-fl/server
    """
    from server.report.facts import results_folder

    reader = _Reader(results_folder(folder.expanduser()))
    if json:
        print_json(asdict(reader.read()))
    elif once:
        result_console.print(_draw(reader.read(), None))
    elif result_console.is_terminal:
        _draw_until_it_ends(reader)
    else:
        _log_until_it_ends(reader)


class _Reader:
    """Reads a run's folder again and again; the answers, which may be many, only when there are new ones."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._stamp: tuple[int, int] | None = None
        self._answers: tuple[Answer, ...] = ()

    def read(self) -> LiveRun:
        """The present moment.

        Raises:
            StorageError: nothing of a run is there, or what is there is damaged.
        """
        from server.answer_log import ANSWERS_FILE, read_answers
        from server.live_facts import live_facts
        from server.run_folder import read_run_folder

        run = read_run_folder(self._out, answers=False)
        path = self._out / ANSWERS_FILE
        try:
            stat = path.stat()
        except FileNotFoundError:  # none yet, or a new run has taken the place of the one before
            self._answers, self._stamp = (), None
        else:
            stamp = stat.st_mtime_ns, stat.st_size
            if stamp != self._stamp:
                self._answers, self._stamp = read_answers(self._out), stamp
        return live_facts(replace(run, answers=self._answers), time.time())


def _draw(run: LiveRun, height: int | None) -> RenderableType:
    options = result_console.options
    return draw_run(run, width=options.max_width, height=height, ascii_only=options.ascii_only)


def _draw_until_it_ends(reader: _Reader) -> None:
    run = reader.read()
    # Drawn by this thread alone, which is the one that reads.
    with Live(console=result_console, auto_refresh=False, vertical_overflow="crop") as live:
        try:
            while True:
                live.update(_draw(run, result_console.height - 1), refresh=True)
                if run.ended:
                    return
                time.sleep(_REFRESH_SECONDS)
                run = reader.read()
        except KeyboardInterrupt:
            return


def _log_until_it_ends(reader: _Reader) -> None:
    key: object = None
    told: set[str] = set()
    try:
        while True:
            run = reader.read()
            if key != (key := (run.phase, run.rounds_done)):
                _log(describe_run(run))
            for warning in run.warnings:
                subject = warning.partition(":")[0]
                if subject not in told:
                    told.add(subject)
                    _log(warning)
            if run.ended:
                return
            time.sleep(_REFRESH_SECONDS)
    except KeyboardInterrupt:
        return


def _log(text: str) -> None:
    result_console.print(f"{time.strftime('%H:%M:%S')} {text}", soft_wrap=True, markup=False)
