"""Writes docs/metrics.md from the catalogue in neuroflux_fl/metrics.py; ``--check`` writes nothing."""

from __future__ import annotations

import argparse
import sys
import textwrap
from pathlib import Path

from neuroflux_fl.metrics import CATALOGUE, SECONDS_BUCKETS, Metric

PATH = Path(__file__).with_name("metrics.md")
PARTS = (
    (
        "server",
        "The run",
        "Set by the server, of one run. Counters begin with the run and go on where it is resumed. A real fleet's are "
        "on the telemetry gateway's `/metrics`, a simulated one's on that of `neuroflux-fl simulate --metrics-port`.",
    ),
    (
        "device",
        "Devices",
        "Set by each device, of itself. They come from its own `/metrics`, or through the telemetry gateway, which "
        "exports them while the device's reports come. What the system of a device does not tell is left out. Counters "
        "begin anew with the process that trains. In a simulation the server sets them after each round, of the first "
        "200 devices: `device_busy` is then 1 while the fleet trains or is evaluated, and what only a machine of its "
        "own could tell is left out.",
    ),
    (
        "gateway",
        "Reports",
        "Set by the telemetry gateway, of the devices that push their reports to it.",
    ),
)


INTRODUCTION = (
    "Made from the catalogue in `neuroflux_fl/metrics.py` by `python docs/generate_metrics.py`: change it there.",
    "The unit is the end of a name: `_bytes`, `_seconds`, `_celsius`, `_watts`; a `_ratio` lies between 0 and 1; what "
    "ends in `_total` is a counter, which only grows. Label `run` is the run's name (setting `run-name`), `device` the "
    "name with which a device was enrolled (in a simulation `device-N`), `device_class` the kind of device that it "
    "says it is, and `unit` the number of a unit, from 0.",
    f"Histograms have buckets up to {', '.join(f'{bound:g}' for bound in SECONDS_BUCKETS)} seconds.",
)


def page() -> str:
    """The whole page."""
    parts = ["# Metrics", *map(_wrapped, INTRODUCTION)]
    for set_by, title, about in PARTS:
        rows = [_row(metric) for metric in CATALOGUE if metric.set_by == set_by]
        table = "\n".join(["| name | kind | labels | meaning |", "|---|---|---|---|", *rows])
        parts += [f"## {title}", _wrapped(about), table]
    return "\n\n".join(parts) + "\n"


def main() -> int:
    """Write the page, or compare it; the value is the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where the page is out of date")
    if not parser.parse_args().check:
        PATH.write_text(page())
    elif not PATH.exists() or PATH.read_text() != page():
        print("docs/metrics.md is out of date: run python docs/generate_metrics.py", file=sys.stderr)
        return 1
    return 0


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def _row(metric: Metric) -> str:
    labels = ", ".join(f"`{label}`" for label in metric.labels)
    return f"| `{metric.name}` | {metric.kind} | {labels} | {metric.help} |"


if __name__ == "__main__":
    sys.exit(main())
