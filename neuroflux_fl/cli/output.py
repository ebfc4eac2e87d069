"""How the commands speak: JSON on standard output, everything for eyes on standard error or as tables."""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from neuroflux_fl.errors import UsageError
from neuroflux_fl.sizes import format_bytes, parse_bytes

progress_console = Console(stderr=True, highlight=False)
result_console = Console(highlight=False)


def print_error(message: str) -> None:
    """One line on standard error, never wrapped."""
    print_note("Error: " + " ".join(message.split()))


def print_note(text: str) -> None:
    """On standard error. A log that nobody reads any more, or a full disk, must neither end a training nor change an
    exit code."""
    if sys.stderr is not None:
        with suppress(OSError):
            sys.stderr.write(text + "\n")
            sys.stderr.flush()


def check_precision(precision: str) -> None:
    """A line on standard error where the processor, which the commands train on, has to emulate a precision.

    Raises:
        UsageError: it is unknown, or not for processors.
    """
    import torch

    from neuroflux_fl.compute import ComputeSettings

    compute = ComputeSettings(precision=precision)
    compute.running(torch.device("cpu"))
    if compute.emulated:
        print_note(
            f"Note: this processor has no arithmetic for {precision} and emulates it, some ten times as slowly as "
            "float32. Choose --precision float32."
        )


def print_json(value: Any) -> None:
    """The one JSON document of a command."""
    print(json.dumps(value, indent=2), flush=True)


def make_progress() -> Progress:
    """A progress display on standard error; it draws nothing where that is not a terminal."""
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=progress_console,
        transient=True,
        # Or it would leave an empty line in a log.
        disable=not progress_console.is_terminal,
    )


def log_progress(text: str) -> None:
    """A line on standard error, where that is not a terminal and ``make_progress`` draws nothing."""
    if not progress_console.is_terminal:
        print_note(text)


def make_table(title: str, columns: list[str]) -> Table:
    """A table whose first column is for names and the rest for figures."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
    return table


def size_cell(value: int | None) -> str:
    """A size, or a dash where it is unknown."""
    return "-" if value is None else format_bytes(value)


def percent_cell(value: float | None) -> str:
    """A share as per cent, or a dash where it is unknown."""
    return "-" if value is None else f"{100 * value:.1f} %"


def print_exits(summary: dict[str, Any]) -> None:
    """The table of a summary's ``exits``, with the one that was chosen marked."""
    table = make_table("Exits of the final model", ["unit", "validation", "test", "parameters"])
    chosen = summary["chosen_exit"]
    for row in summary["exits"]:
        mark = " (chosen)" if chosen is not None and row["unit"] == chosen["unit"] else ""
        table.add_row(
            f"{row['unit']}{mark}",
            percent_cell(row["validation_accuracy"]),
            percent_cell(row["test_accuracy"]),
            f"{row['parameters']:,}",
        )
    result_console.print(table)


def parse_budget(text: str | None) -> int | None:
    """``--budget``: a size, or ``none`` for no limit."""
    return None if text is None or text.lower() == "none" else parse_bytes(text)


def parse_image_shape(text: str) -> tuple[int, int, int]:
    """``3x32x32``: channels, height, width.

    Raises:
        UsageError: anything else.
    """
    parts = text.lower().split("x")
    if len(parts) != 3 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise UsageError(f"Image {text!r} is not channels x height x width: write for example 3x32x32.")
    channels, height, width = (int(part) for part in parts)
    return channels, height, width
