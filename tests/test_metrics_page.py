"""The page on metrics says what the catalogue says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from neuroflux_fl.metrics import CATALOGUE

ROOT = Path(__file__).resolve().parents[1]


def test_page_is_what_the_catalogue_gives() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "generate_metrics.py"), "--check"],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip

    assert (done.returncode, done.stderr) == (0, "")


def test_page_has_a_row_for_every_metric() -> None:
    rows = [line for line in (ROOT / "docs" / "metrics.md").read_text().splitlines() if line.startswith("| `")]

    assert sorted(row.split("`")[1] for row in rows) == sorted(metric.name for metric in CATALOGUE)
