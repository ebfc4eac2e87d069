"""The report as one HTML page: opens anywhere, without a network and without a script."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING

from neuroflux_fl.errors import DependencyError
from neuroflux_fl.sizes import format_bytes
from server.report.facts import RunFacts
from server.report.findings import findings
from server.report.repeat_command import repeat_command, write_setting
from server.report.scales import three_digits, write_count, write_seconds, write_share
from server.report.tables import Table, blocks_table, devices_table, exits_table, rounds_table

if TYPE_CHECKING:
    from server.report.figures import Picture

_SECTIONS = (
    ("learning", "Is it learning?"),
    ("exits", "Which model to hand out"),
    ("devices", "The devices"),
    ("rounds", "The rounds"),
)


@dataclass(frozen=True, slots=True)
class Card:
    """One figure of the header."""

    title: str
    value: str
    detail: str


def make_page(run: RunFacts) -> str:
    """The whole page.

    Raises:
        DependencyError: matplotlib or Jinja is not installed.
    """
    try:
        from jinja2 import Environment, StrictUndefined

        from server.report.figures import draw_all
    except ModuleNotFoundError as error:
        raise DependencyError(
            f'A report needs the package {error.name}, which is not installed: pip install "neuroflux-fl[report]".'
        ) from error
    template = (files("server.report") / "page.html").read_text(encoding="utf-8")
    # Names of devices and classes come from other machines: everything is escaped but our own pictures.
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    pictures: list[Picture] = list(draw_all(run))
    return environment.from_string(template).render(
        run=run,
        cards=cards(run),
        findings=findings(run),
        subtitle=_subtitle(run),
        made_at=_date(run.read_at),
        split="test" if run.tested else "validation",
        sections=[
            (key, title, [picture for picture in pictures if picture.chart.section == key]) for key, title in _SECTIONS
        ],
        exits=exits_table(run),
        tables=[table for table in _tables(run) if table.rows],
        settings=sorted((key, write_setting(value)) for key, value in run.config.items()),
        versions=sorted(run.versions.items()),
        command=repeat_command(run.config, devices=len(run.devices), simulated=run.simulated) if run.config else "",
    )


def cards(run: RunFacts) -> Sequence[Card]:
    """The header's figures."""
    sent = run.tasks.get("sent", 0)
    trouble = [
        f"{run.tasks[key]} {phrase}"
        for key, phrase in (
            ("failed", "failed"), ("late_used", "late, used"), ("late_dropped", "too late"),
            ("never_answered", "never answered"), ("resent", "sent again"),
        )
        if run.tasks.get(key)
    ]  # fmt: skip
    up, down = run.total("bytes_up"), run.total("bytes_down")
    return (
        *_exit_cards(run),
        Card("Rounds", f"{len(run.rounds)} of {run.rounds_planned}", _rounds_detail(run)),
        Card("Time", write_seconds(run.seconds), f"began {_date(run.started_at)}" if run.started_at else "of the run"),
        Card("Traffic", format_bytes(up + down), f"{format_bytes(down)} to devices, {format_bytes(up)} back"),
        Card(
            "Work of the devices",
            write_seconds(run.total("device_seconds")),
            f"all devices together, {write_count(run.total('samples'))} samples",
        ),
        Card(
            "Tasks answered", f"{run.tasks.get('answered', 0):,} of {sent:,}", ", ".join(trouble) or "none in trouble"
        ),
        Card("Devices", f"{len(run.devices):,}", _budgets(run)),
    )


def _exit_cards(run: RunFacts) -> tuple[Card, ...]:
    measured = [exit for exit in run.exits if exit.accuracy is not None]
    exit = run.chosen or max(measured, key=lambda exit: exit.accuracy or 0.0, default=None)
    if exit is None:
        return (Card("Accuracy", "-", "no exit measured yet"),)
    kind = "test" if exit.test is not None else "validation"
    other = f"; validation {write_share(exit.validation)}" if exit.test is not None and exit.validation else ""
    title = "Accuracy of the chosen exit" if exit.chosen else "Best accuracy so far"
    accuracy = Card(title, write_share(exit.accuracy), f"exit {exit.unit}, {kind} images{other}")
    full = run.full_parameters
    if exit.parameters is None or full is None:
        return (accuracy,)
    times = f"{three_digits(full / exit.parameters)}x fewer than" if full > exit.parameters else "as many as"
    return accuracy, Card("Parameters", write_count(exit.parameters), f"{times} full depth ({write_count(full)})")


def _rounds_detail(run: RunFacts) -> str:
    if not run.rounds:
        return "none has ended yet"
    stages = run.rounds[-1].stage + 1
    return f"{stages} stage{'s' if stages > 1 else ''}, {write_seconds(run.rounds[-1].seconds)} the last"


def _budgets(run: RunFacts) -> str:
    budgets = [device.totals.budget_bytes for device in run.devices if device.totals.budget_bytes]
    if not budgets:
        return "no memory budgets"
    low, high = format_bytes(min(budgets)), format_bytes(max(budgets))
    return f"memory budgets {low} to {high}" if low != high else f"memory budgets of {low}"


def _subtitle(run: RunFacts) -> str:
    parts = [str(run.config.get("model", "")), str(run.data.get("name") or run.config.get("data") or "")]
    if run.config.get("schedule"):
        parts.append(f"{run.config.get('method', '')}, {run.config['schedule']} schedule")
    if run.devices:
        parts.append(f"{len(run.devices):,} {'simulated ' if run.simulated else ''}devices")
    return " · ".join(part for part in parts if part)


def _tables(run: RunFacts) -> tuple[Table, ...]:
    return rounds_table(run), devices_table(run), blocks_table(run)


def _date(unix: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(unix))
