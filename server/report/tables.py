"""The rows of the page's tables, as texts."""

from __future__ import annotations

from dataclasses import dataclass

from neuroflux_fl.sizes import format_bytes
from server.answer_log import Answer
from server.report.facts import DeviceFacts, RunFacts
from server.report.names import name_of_node
from server.report.rows import pick_rows, sample_note
from server.report.scales import write_seconds, write_share

_MOST_ROWS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table; its first column is for names, the others for figures."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    marked: frozenset[int] = frozenset()
    """Rows that stand out."""


def rounds_table(run: RunFacts) -> Table:
    """A row for each round."""
    slowest: dict[int, Answer] = {}
    for answer in run.answers:
        if answer.seconds is not None and answer.fate == "answered":
            before = slowest.get(answer.round)
            if before is None or answer.seconds > (before.seconds or 0.0):
                slowest[answer.round] = answer
    names = run.device_names()
    latest = run.rounds[-_MOST_ROWS:]
    rows = []
    for record in latest:
        accuracies = record.test or record.exits
        last = slowest.get(record.round)
        rows.append(
            (
                str(record.round),
                str(record.stage),
                _by_unit(accuracies),
                _contributors(record.contributors),
                write_seconds(record.seconds),
                f"{names.get(last.node_id, name_of_node(last.node_id))}, {write_seconds(last.seconds or 0.0)}"
                if last is not None
                else "-",
                format_bytes(record.bytes_down),
                format_bytes(record.bytes_up),
                _troubles(
                    failed=record.failed, missing=record.missing, late=record.late_used + record.late_dropped,
                    rejected=sum(record.rejected.values()), resent=record.resent,
                ),
            )
        )  # fmt: skip
    return Table(
        title="Rounds",
        columns=(
            "round", "stage", f"{'test' if run.tested else 'validation'} accuracy by exit", "updates used per unit",
            "length", "slowest answer", "to devices", "from devices", "trouble",
        ),
        rows=tuple(rows),
        note=f"The latest {len(rows)} of {len(run.rounds):,} rounds." if len(rows) < len(run.rounds) else "",
        marked=frozenset(index for index, record in enumerate(latest) if record.below_quorum),
    )  # fmt: skip


def devices_table(run: RunFacts) -> Table:
    """A row for each device, or for a sample of very many."""
    picked = pick_rows(run.devices, lambda device: device.totals.device_seconds, limit=_MOST_ROWS)
    return Table(
        title="Devices",
        columns=(
            "device", "class", "images", "budget", "measured peak", "of budget", "samples/s", "tasks", "work", "sent",
            "cache written", "trouble",
        ),
        rows=tuple(_device_row(device) for device in picked),
        note=sample_note(len(picked), len(run.devices), "work"),
        marked=frozenset(index for index, device in enumerate(picked) if device.over_budget),
    )  # fmt: skip


def blocks_table(run: RunFacts) -> Table:
    """A row for each block of each device: what the figure of memory shows, in figures."""
    picked = pick_rows(run.devices, lambda device: device.budget_share or 0.0, limit=_MOST_ROWS // 5)
    rows: list[tuple[str, ...]] = []
    marked: set[int] = set()
    for device in picked:
        for block in device.totals.blocks:
            budget = device.totals.budget_bytes
            if budget and block.measured_peak_bytes > budget:
                marked.add(len(rows))
            units = f"{block.first_unit}" + (f" to {block.last_unit}" if block.last_unit > block.first_unit else "")
            rows.append(
                (
                    device.name, units, str(block.batch_size), _size(budget), _size(block.predicted_peak_bytes),
                    _size(block.measured_peak_bytes),
                    f"{block.samples / block.seconds:.0f}" if block.seconds else "-",
                    f"{block.loss:.3f}" if block.samples else "-",
                )
            )  # fmt: skip
    return Table(
        title="Blocks",
        columns=(
            "device", "units", "batch size", "budget", "predicted peak", "measured peak", "samples/s", "latest loss",
        ),
        rows=tuple(rows),
        note=sample_note(len(picked), len(run.devices), "share of the budget"),
        marked=frozenset(marked),
    )  # fmt: skip


def exits_table(run: RunFacts) -> Table:
    """A row for each exit."""
    full = run.full_parameters
    return Table(
        title="Exits",
        columns=("exit", "test accuracy", "validation accuracy", "parameters", "of full depth"),
        rows=tuple(
            (
                f"{exit.unit}" + (" (chosen)" if exit.chosen else ""),
                write_share(exit.test),
                write_share(exit.validation),
                "-" if exit.parameters is None else f"{exit.parameters:,}",
                write_share(exit.parameters / full) if exit.parameters and full else "-",
            )
            for exit in run.exits
        ),
        marked=frozenset(),
    )


def _device_row(device: DeviceFacts) -> tuple[str, ...]:
    totals = device.totals
    return (
        device.name, totals.device_class or "-", f"{totals.train_examples:,}", _size(totals.budget_bytes),
        _size(totals.measured_peak_bytes),
        write_share(device.budget_share if totals.measured_peak_bytes else None),
        f"{totals.samples_per_second:.0f}", str(totals.rounds), write_seconds(totals.device_seconds),
        format_bytes(totals.bytes_up), format_bytes(totals.cache_bytes),
        _troubles(
            out_of_memory=totals.out_of_memory_retries, deadlines=totals.deadlines_reached,
            cache_full=totals.cache_refusals,
        ),
    )  # fmt: skip


def _by_unit(accuracies: dict[int, float]) -> str:
    # A line may break between two exits, but not within one.
    return ", ".join(f"{unit}:\u00a0{write_share(value)}" for unit, value in accuracies.items()) or "-"


def _contributors(contributors: dict[int, int]) -> str:
    """``0-3: 8`` where units 0 to 3 have eight each."""
    runs: list[tuple[int, int, int]] = []
    for unit, count in sorted(contributors.items()):
        if runs and runs[-1][1] == unit - 1 and runs[-1][2] == count:
            runs[-1] = (runs[-1][0], unit, count)
        else:
            runs.append((unit, unit, count))
    return ", ".join(f"{first}: {n}" if first == last else f"{first}-{last}: {n}" for first, last, n in runs) or "-"


def _troubles(**counts: int) -> str:
    return ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items() if count) or "-"


def _size(size: int | None) -> str:
    return format_bytes(size) if size else "-"
