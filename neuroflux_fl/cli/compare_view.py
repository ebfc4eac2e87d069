"""What ``compare`` shows: one value for JSON, tables and pictures, and the tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from neuroflux_fl.cli.output import make_table, percent_cell, result_console, size_cell

if TYPE_CHECKING:
    from neuroflux_fl.arms import ArmSetting
    from neuroflux_fl.comparison import ArmResult


def comparison_fields(
    setting: ArmSetting, results: Sequence[ArmResult], floors: dict[str, int] | None = None
) -> dict[str, Any]:
    """One model's comparison, ready for JSON."""
    rows = [_result_fields(result, results) for result in results]
    for row in rows:
        row["times_sooner"] = times_sooner(row, rows)
    return {
        "model": setting.model,
        "image": list(setting.image_shape),
        "classes": setting.classes,
        "width": setting.width,
        "precision": setting.precision,
        **({} if floors is None else {"smallest_budget_bytes": floors}),
        "results": rows,
    }


def times_best_other(result: ArmResult, results: Sequence[ArmResult]) -> float | None:
    """Speed over that of the fastest other arm under the same budget."""
    others = [
        other.samples_per_second
        for other in results
        if other.budget == result.budget and other.arm != result.arm and other.samples_per_second is not None
    ]
    own = result.samples_per_second
    return own / max(others) if own is not None and others else None


def print_comparisons(compared: Sequence[dict[str, Any]], *, target: float | None) -> None:
    """Everything, as tables; ``target`` is the accuracy whose time is shown."""
    if "smallest_budget_bytes" in compared[0]:
        _print_floors(compared)
    for comparison in compared:
        rows = comparison["results"]
        for budget in dict.fromkeys((row["budget"], row["budget_bytes"]) for row in rows):
            chosen = [row for row in rows if (row["budget"], row["budget_bytes"]) == budget]
            _print_budget(comparison, chosen, target)


def describe_how(row: dict[str, Any]) -> str:
    """Batch, micro-batches, checkpoints, layout: in a few words."""
    if row["needed_bytes"] is not None:
        return f"needs {size_cell(row['needed_bytes'])}"
    blocks = row["blocks"]
    batches = sorted({block["batch_size"] for block in blocks})
    batch = str(batches[0]) if len(batches) == 1 else f"{batches[0]} to {batches[-1]}"
    words = [f"{len(blocks)} blocks, batch {batch}" if len(blocks) > 1 else f"batch {batch}"]
    if blocks[0]["micro_batch"] is not None:
        words[0] += f" in pieces of {blocks[0]['micro_batch']}"
    windows = [window for block in blocks for window in block["windows"]]
    if windows[0]["checkpoints"]:
        words.append(f"{len(windows[0]['checkpoints']) + 1} segments")
    reach = max(window["last_unit"] - window["first_unit"] + 1 for window in windows)
    if row["arm"] == "neuroflux" and reach > 1:
        words.append(f"reach {reach}")
    if any(window["updates"] != "whole" for window in windows):
        words.append("sliced updates")
    if row["channels_last"]:
        words.append("channels last")
    if row["untrained_units"]:
        words.append(f"without units {', '.join(map(str, row['untrained_units']))}")
    return ", ".join(words)


def is_relative(asked: str) -> bool:
    """Whether a budget was asked for as a part of backpropagation's smallest."""
    return asked == "smallest" or asked.endswith("x")


def time_to(row: dict[str, Any], accuracy: float) -> float | None:
    """Seconds until the curve reaches a test accuracy, or None where it does not."""
    curve = row["trained"]["curve"] if row["trained"] else []
    return next((point["seconds"] for point in curve if point["test_accuracy"] >= accuracy), None)


def times_sooner(row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> float | None:
    """How many times sooner than any other method under the same budget a row has the best test accuracy that they end
    with; None where it never has it."""
    others = [
        other
        for other in rows
        if other["budget"] == row["budget"] and other is not row and other["trained"] is not None
    ]
    if row["trained"] is None or not others:
        return None
    best = max(other["trained"]["curve"][-1]["test_accuracy"] for other in others)
    own = time_to(row, best)
    return None if own is None else min(seconds for other in others if (seconds := time_to(other, best))) / own


def _result_fields(result: ArmResult, results: Sequence[ArmResult]) -> dict[str, Any]:
    from neuroflux_fl.arm_tuning import TunedArm

    fields: dict[str, Any] = {
        "arm": result.arm,
        "budget": result.budget.asked,
        "budget_bytes": result.budget.bytes,
        "needed_bytes": None,
        "samples_per_second": result.samples_per_second,
        "times_best_other": times_best_other(result, results),
        "peak_bytes": result.peak_bytes,
        "passes": [asdict(one) for one in result.passes],
        "trained": None if result.trained is None else asdict(result.trained),
    }
    if not isinstance(result.how, TunedArm):
        return {**fields, "needed_bytes": result.how.needed_bytes}
    plan = result.how.plan
    return {
        **fields,
        "blocks": [asdict(block) for block in plan.blocks],
        "untrained_units": list(plan.untrained_units),
        "channels_last": result.how.compute.channels_last,
        "predicted_peak_bytes": plan.predicted_peak_bytes,
        "predicted_samples_per_second": 1 / sum(block.predicted_seconds_per_sample for block in plan.blocks),
        "tuning_seconds": result.how.tuning_seconds,
    }


def _print_floors(compared: Sequence[dict[str, Any]]) -> None:
    arms = list(compared[0]["smallest_budget_bytes"])
    table = make_table("Smallest budget that trains the whole network", ["method", *(c["model"] for c in compared)])
    for arm in arms:
        table.add_row(arm, *(size_cell(comparison["smallest_budget_bytes"][arm]) for comparison in compared))
    result_console.print(table)


def _print_budget(comparison: dict[str, Any], rows: Sequence[dict[str, Any]], target: float | None) -> None:
    """One table for one budget: what was run decides the columns."""
    asked, size = rows[0]["budget"], rows[0]["budget_bytes"]
    limit = "no limit" if size is None else size_cell(size)
    named = f" ({asked})" if is_relative(asked) else ""
    timed, trained = any(row["passes"] for row in rows), any(row["trained"] for row in rows)
    columns = ["method", "how"]
    columns += ["samples/s", "speed-up"] if timed else []
    columns += ["accuracy", "exit", "parameters", "time", "sooner"] if trained else []
    columns += [f"to {percent_cell(target)}"] if trained and target else []
    columns += ["peak"] if timed or trained else ["predicted peak"]
    columns += ["predicted", "tuning"] if timed else []
    table = make_table(f"{comparison['model']}, {comparison['precision']}, {limit}{named}", columns)
    table.columns[0].no_wrap = True
    table.columns[1].justify = "left"
    for row in rows:
        if row["needed_bytes"] is not None:
            table.add_row(row["arm"], describe_how(row))
            continue
        cells = [row["arm"], describe_how(row)]
        if timed:
            cells += [f"{row['samples_per_second']:.1f}", _ratio_cell(row["times_best_other"])]
        if trained:
            cells += [*_trained_cells(row["trained"]), _ratio_cell(row["times_sooner"])]
        if trained and target:
            seconds = time_to(row, target)
            cells.append("not reached" if seconds is None else f"{seconds:.0f} s")
        cells.append(size_cell(row["peak_bytes" if timed or trained else "predicted_peak_bytes"]))
        if timed:
            cells += [size_cell(row["predicted_peak_bytes"]), f"{row['tuning_seconds']:.0f} s"]
        table.add_row(*cells)
    result_console.print(table)
    if timed:
        result_console.print("Speed-up: over the fastest other method under the same budget.")
    if trained:
        result_console.print(
            "Sooner: how many times sooner a method has the best accuracy that others under the same budget end with."
        )


def _trained_cells(trained: dict[str, Any]) -> list[str]:
    last = trained["curve"][-1]
    return [
        percent_cell(last["test_accuracy"]), str(last["unit"]), f"{trained['parameters']:,}", f"{last['seconds']:.0f} s"
    ]  # fmt: skip


def _ratio_cell(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}"
