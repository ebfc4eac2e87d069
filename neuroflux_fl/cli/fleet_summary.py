"""A finished run for people: the tables of its devices, rounds and exits."""

from __future__ import annotations

from typing import Any

from neuroflux_fl.cli.output import make_table, percent_cell, print_exits, result_console, size_cell


def print_summary(summary: dict[str, Any]) -> None:
    """The tables of devices, rounds and exits."""
    devices = make_table(
        "Devices", ["device", "budget", "images", "blocks: units x batch", "predicted", "measured", "samples/s", "sent"]
    )
    for row in summary["devices"]:
        devices.add_row(
            str(row.get("name", row["node_id"])),
            size_cell(row["budget_bytes"]),
            str(row["train_examples"]),
            blocks_cell(row["blocks"]),
            size_cell(row["predicted_peak_bytes"]),
            size_cell(row["measured_peak_bytes"]),
            f"{row['samples_per_second']:.0f}",
            size_cell(row["bytes_up"]),
        )
    result_console.print(devices)
    rounds = make_table("Rounds", ["round", "stage", "accuracy of exits", "devices", "seconds", "up", "down"])
    for record in summary["rounds"]:
        accuracies = record["test"] or record["exits"]
        rounds.add_row(
            str(record["round"]),
            str(record["stage"]),
            " ".join(f"{unit}: {percent_cell(accuracy)}" for unit, accuracy in accuracies.items()),
            str(max(record["contributors"].values(), default=0)),
            f"{record['seconds']:.1f}",
            size_cell(record["bytes_up"]),
            size_cell(record["bytes_down"]),
        )
    result_console.print(rounds)
    print_exits(summary)
    for text, key, remedy in (
        ("The cache was too small", "cache_refusals", "activations were computed anew; allow more with cache-quota"),
        ("The deadline cut training short", "deadlines_reached", "allow more with deadline-seconds"),
    ):
        devices_hit = [str(row["node_id"]) for row in summary["devices"] if row[key]]
        if devices_hit:
            result_console.print(f"{text} on device {', '.join(devices_hit)}: {remedy}.")
    if error := max((row["update_error"] for row in summary["devices"]), default=0.0):
        precision = summary["config"]["update-precision"]
        result_console.print(f"Updates in {precision} lost at most {100 * error:.2g} % of what training moved.")
    tasks = summary["tasks"]
    if tasks["sent"] != tasks["answered"]:
        result_console.print(
            "Tasks: " + ", ".join(f"{count} {what.replace('_', ' ')}" for what, count in tasks.items())
        )
    result_console.print(
        f"{summary['seconds']:.1f} s, {summary['device_seconds']:.1f} device-seconds, "
        f"{size_cell(summary['bytes_up'])} up, {size_cell(summary['bytes_down'])} down."
    )


def blocks_cell(blocks: list[dict[str, Any]]) -> str:
    """Blocks in one line: first and last unit, and the batch size."""
    return " ".join(f"{row['first_unit']}-{row['last_unit']}x{row['batch_size']}" for row in blocks) or "-"
