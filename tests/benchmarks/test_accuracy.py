"""The benchmark of accuracy against budget, on few small images."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import accuracy


@pytest.mark.slow
def test_every_method_is_trained_at_every_budget_or_said_not_to_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sklearn")
    path = tmp_path / "figures.json"
    options = "--data digits --model vgg11 --width 0.05 --budgets 6MiB none --reaches 0 --epochs 1 --other-epochs 1"

    accuracy.main([*options.split(), "--train-limit", "60", "--test-limit", "20", "--json", str(path)])

    rows = json.loads(path.read_text())["rows"]
    assert [(row["method"], row["budget"]) for row in rows] == [
        ("neuroflux", "6MiB"), ("backprop", "6MiB"), ("neuroflux", "none"), ("backprop", "none"),
    ]  # fmt: skip
    assert rows.pop(1)["curve"] == []
    for row in rows:
        assert row["curve"][-1]["test_accuracy"] == row["accuracy"]
        assert row["curve"][-1]["seconds"] > 0
    windows = [windows for _, windows in rows[1]["blocks"]]
    assert windows == [[[first, first + 1]] for first in (0, 2, 4, 6)]
    assert "does not fit" in capsys.readouterr().out
