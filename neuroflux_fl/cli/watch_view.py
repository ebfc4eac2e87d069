"""What ``neuroflux-fl watch`` draws: a moment of a run as tables and bars for a terminal of any width."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from neuroflux_fl.sizes import GIB, KIB, MIB

if TYPE_CHECKING:
    from server.live_facts import LiveDevice, LiveExit, LiveRun

_MOST_DEVICES = 20
_FEWEST_DEVICES = 3
_MOST_EXITS = 8
_MOST_WARNINGS = 5
_LEVELS = "▁▂▃▄▅▆▇█"
_ASCII_LEVELS = "_.-:=+*#"
_PHASE_STYLES = {"training": "cyan", "evaluating": "cyan", "finished": "green", "failed": "bold red"}
_TROUBLE = "bold red"
_QUIET = "bright_black"


def draw_run(run: LiveRun, *, width: int, height: int | None = None, ascii_only: bool = False) -> RenderableType:
    """Everything, in at most ``width`` columns and, by leaving out devices, about ``height`` lines."""
    parts: list[RenderableType] = [_head(run), _progress(run, width, ascii_only)]
    warnings = _warnings(run, ascii_only)
    if warnings:
        parts += [Text(), *warnings]
    if run.exits:
        parts += [Text(), _exits(run, width, ascii_only)]
    if run.devices:
        used = 7 + len(shown_exits(run.exits)) + sum(1 + len(line) // width for line in warnings) + bool(warnings)
        room = _MOST_DEVICES if height is None else max(_FEWEST_DEVICES, min(_MOST_DEVICES, height - used))
        parts += [Text(), _devices(run.devices, room, width, ascii_only)]
    return Group(*parts)


def describe_run(run: LiveRun) -> str:
    """One line for a log."""
    if run.phase == "failed":
        return f"failed: {run.error}"
    kind = "test" if run.tested else "validation"
    exits = ", ".join(f"exit {exit.unit} {100 * exit.accuracies[-1]:.1f} %" for exit in shown_exits(run.exits))
    parts = [
        run.phase,
        f"{run.rounds_done} of {run.rounds} rounds, stage {run.stage}",
        f"{run.nodes} devices",
        f"{kind} accuracy: {exits}" if exits else "",
        f"{time_left(run)} left" if run.remaining_seconds else "",
    ]
    return "; ".join(part for part in parts if part)


def shown_exits(exits: Sequence[LiveExit]) -> Sequence[LiveExit]:
    """Those of the stage in training, which somebody contributed to last; the last ones where there are too many."""
    current = [exit for exit in exits if exit.contributors or exit.chosen] or list(exits)
    return current[-_MOST_EXITS:]


def sparkline(values: Sequence[float], *, columns: int, ascii_only: bool = False) -> str:
    """The latest ``columns`` values as heights between their lowest and highest."""
    levels = _ASCII_LEVELS if ascii_only else _LEVELS
    shown = values[-columns:]
    low, high = min(shown, default=0.0), max(shown, default=0.0)
    span = max(high - low, 0.01)
    return "".join(levels[min(7, int(8 * (value - low) / span))] for value in shown)


def bar(share: float, *, columns: int, ascii_only: bool = False) -> str:
    """``share`` of a line that is ``columns`` wide; more than all of it is cut off."""
    filled = round(columns * min(1.0, max(0.0, share)))
    full, empty = ("#", "-") if ascii_only else ("█", "░")
    return full * filled + empty * (columns - filled)


def clock(seconds: float) -> str:
    """Hours, minutes and seconds: ``1:02:03``."""
    whole = int(seconds)
    hours = f"{whole // 3600}:" if whole >= 3600 else ""
    return f"{hours}{whole // 60 % 60:0{2 if hours else 1}}:{whole % 60:02}"


def time_left(run: LiveRun) -> str:
    """Roughly, in words; empty where nothing tells."""
    seconds = run.remaining_seconds
    if seconds is None:
        return ""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def _head(run: LiveRun) -> Text:
    text = Text(overflow="ellipsis", no_wrap=True)
    text.append(run.name, style="bold")
    text.append("  ")
    text.append(run.phase, style=_PHASE_STYLES.get(run.phase, "yellow"))
    if not run.ended and run.round:
        text.append(f"  round {run.round} of {run.rounds}")
    text.append(f"  stage {run.stage}  {run.nodes} devices  {clock(run.seconds)}")
    return text


def _progress(run: LiveRun, width: int, ascii_only: bool) -> Text:
    text = Text(overflow="ellipsis", no_wrap=True)
    columns = max(10, min(40, width - 60))
    share = run.rounds_done / run.rounds if run.rounds else 0.0
    text.append(
        bar(share, columns=columns, ascii_only=ascii_only), style="green" if run.phase == "finished" else "cyan"
    )
    text.append(f" {run.rounds_done} of {run.rounds} rounds done")
    if run.wanted:
        text.append(f"; {run.answered} of {run.wanted} answers")
        if run.late:
            text.append(f", {run.late} late", style="yellow")
    if not run.ended and run.remaining_seconds is not None:
        text.append("; ")
        text.append(f"about {time_left(run)} left", style="bold")
    return text


def _exits(run: LiveRun, width: int, ascii_only: bool) -> Table:
    table = _table()
    for name in ("exit", "test accuracy" if run.tested else "validation accuracy", "over the rounds", "updates"):
        table.add_column(name, justify="left" if name in ("exit", "over the rounds") else "right", no_wrap=True)
    with_size = width >= 70
    if with_size:
        table.add_column("parameters", justify="right", no_wrap=True)
    best = max(exit.accuracies[-1] for exit in run.exits)
    for exit in shown_exits(run.exits):
        latest = exit.accuracies[-1]
        cells = [
            Text(f"{exit.unit}" + (" chosen" if exit.chosen else "")),
            Text(f"{100 * latest:.1f} %", style="bold green" if latest == best else ""),
            Text(sparkline(exit.accuracies, columns=max(8, min(40, width - 60)), ascii_only=ascii_only), style="cyan"),
            Text(str(exit.contributors)),
        ]
        if with_size:
            cells.append(Text("-" if exit.parameters is None else f"{exit.parameters:,}"))
        table.add_row(*cells)
    return table


def _devices(devices: Sequence[LiveDevice], room: int, width: int, ascii_only: bool) -> Group:
    columns = 8 if width >= 100 else 5
    memory = "memory of budget" if any(device.memory_is_live for device in devices) else "peak of budget"
    cells: tuple[tuple[str, str, int, Callable[[LiveDevice], Text]], ...] = (
        ("device", "left", 0, lambda device: Text(device.name, style=_TROUBLE if device.in_trouble else "")),
        ("class", "left", 90, lambda device: Text(device.device_class or "-")),
        ("state", "left", 0, _state_cell),
        (memory, "left", 60, lambda device: _memory_cell(device, columns, ascii_only)),
        ("batch", "right", 80, lambda device: Text(_number(device.batch_size, ".0f"))),
        ("samples/s", "right", 70, lambda device: Text(_number(device.samples_per_second, ".0f"))),
        ("answer", "right", 80, _answer_cell),
        ("C" if ascii_only else "°C", "right", 96, lambda device: Text(_number(device.celsius, ".0f"))),
    )
    shown = [cell for cell in cells if width >= cell[2]]
    table = _table()
    for name, justify, _, _ in shown:
        widest = {"device": 16 if width < 120 else 28, "class": 12 if width < 120 else 20}.get(name)
        table.add_column(
            name, justify="left" if justify == "left" else "right", no_wrap=True, overflow="ellipsis", max_width=widest
        )
    for device in devices[:room]:
        table.add_row(*(make(device) for _, _, _, make in shown))
    more = len(devices) - room
    note = [Text(f"and {more:,} more; the report has them (neuroflux-fl report)", style=_QUIET)] if more > 0 else []
    return Group(table, *note)


def _state_cell(device: LiveDevice) -> Text:
    styles = {"training": "cyan", "answered": "green", "waiting": "", "late used": "yellow", "late dropped": "yellow"}
    text = Text(device.state, style=styles.get(device.state, _TROUBLE if device.in_trouble else ""))
    if device.straggler:
        text.append(" slow", style=_TROUBLE)
    return text


def _memory_cell(device: LiveDevice, columns: int, ascii_only: bool) -> Text:
    if device.memory_bytes is None:
        return Text("-")
    if not device.budget_bytes:
        return Text(_size(device.memory_bytes))
    share = device.memory_bytes / device.budget_bytes
    style = _TROUBLE if device.over_budget else "cyan" if device.memory_is_live else _QUIET
    sizes = f" {_size(device.memory_bytes)} of {_size(device.budget_bytes)}"
    return Text.assemble((bar(share, columns=columns, ascii_only=ascii_only), style), sizes)


def _answer_cell(device: LiveDevice) -> Text:
    seconds = device.answer_seconds
    return Text("-" if seconds is None else f"{seconds:.1f} s", style=_TROUBLE if device.straggler else "")


def _warnings(run: LiveRun, ascii_only: bool) -> list[Text]:
    sign = "!" if ascii_only else "▲"
    lines = [Text(f"{sign} The run failed: {run.error}", style=_TROUBLE)] if run.error else []
    lines += [Text.assemble((f"{sign} ", "yellow"), warning) for warning in run.warnings[:_MOST_WARNINGS]]
    return lines


def _table() -> Table:
    return Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style=_QUIET)


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"


def _size(size: int) -> str:
    """Shorter than ``format_bytes``: ``7.3M``."""
    for unit, name in ((GIB, "G"), (MIB, "M"), (KIB, "K")):
        if size >= unit:
            number = size / unit
            return f"{number:.0f}{name}" if number >= 99.95 else f"{number:.3g}{name}"
    return f"{size}B"
