"""The benchmarks for a GPU, on a CPU at small size: what they need, what they write, and what they make of figures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SMALL = ("--device", "cpu", "--width", "0.05", "--maximum-batch", "4", "--threads", "1")

# torchvision brings PIL itself.
IMPORT_WITHOUT_EXTRAS = """
import sys
from importlib.machinery import PathFinder

class OnlyWhatIsNeeded:
    @staticmethod
    def find_spec(name, path=None, target=None):
        blocked = {"flwr", "typer", "rich", "matplotlib", "pyarrow", "google", "grpc", "cryptography", "sklearn"}
        return None if name.split(".")[0] in blocked else PathFinder.find_spec(name, path, target)

sys.meta_path[:] = [OnlyWhatIsNeeded if finder is PathFinder else finder for finder in sys.meta_path]
import benchmarks.gpu_training
print(sorted(name for name in sys.modules if name.startswith(("neuroflux_fl.cli", "neuroflux_fl.wire"))))
"""

SUMMARISE = """
import json, sys
from benchmarks.gpu import summarise
print(json.dumps(summarise(json.load(sys.stdin))))
"""


def run(*command: str, given: str = "") -> str:
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, input=given, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def row(method: str, *rates: float, budget: str = "100MB", **fields: Any) -> dict[str, Any]:
    passes = [{"samples": rate, "seconds": 1} for rate in rates]
    case = {"model": "vgg16", "data": "cifar10", "precision": "float32", "budget": budget}
    return {**case, "method": method, "refused": "", "untrained_units": [], "passes": passes, **fields}


def test_neither_command_line_nor_wire_nor_their_packages_are_needed() -> None:
    assert run("-c", IMPORT_WITHOUT_EXTRAS).strip() == "[]"


def test_speed_is_compared_with_the_best_other_method_and_with_backpropagation() -> None:
    rows = [
        row("neuroflux", 90, 60, 10),
        row("backprop", 20),
        row("backprop-micro", 30),
        row("classic", 0, refused="needs 200 MB"),
        row("neuroflux", 60, budget="50MB"),
        row("backprop", 0, budget="50MB", refused="needs 80 MB"),
        row("neuroflux", 60, budget="20MB", untrained_units=[7]),
        row("backprop", 0, budget="20MB", refused="needs 80 MB"),
    ]

    ample, tight, less = json.loads(run("-c", SUMMARISE, given=json.dumps(rows)))

    assert (ample["neuroflux"], ample["best_other"]) == (60, "backprop-micro")
    assert (ample["times_best_other"], ample["times_backpropagation"]) == (2, 3)
    assert (tight["neuroflux"], tight["best_other"], tight["times_best_other"]) == (60, None, None)
    assert less["neuroflux"] is None, "a part of the network is no rival of the whole"


@pytest.mark.slow
def test_two_methods_under_two_budgets(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"

    printed = run(
        "-m", "benchmarks.gpu", *SMALL, "--models", "vgg11", "--data", "cifar10", "--budgets", "1MB", "5MB",
        "--methods", "neuroflux", "backprop", "--seconds", "0.1", "--repeats", "2", "--json", str(path),
    )  # fmt: skip

    figures = json.loads(path.read_text())
    assert "no GPU" in figures["setting"]["device"]
    refused, neuroflux, backpropagation = (figures["results"][index] for index in (1, 2, 3))
    assert (refused["method"], refused["passes"]) == ("backprop", [])
    assert refused["refused"].startswith("needs ")
    for one in (neuroflux, backpropagation):
        assert (one["refused"], len(one["passes"])) == ("", 2)
        assert all(done["samples"] > 0 and done["held_bytes"] == 0 for done in one["passes"])
    assert figures["summary"][1]["best_other"] == "backprop"
    assert "times backprop" in printed


@pytest.mark.slow
def test_a_whole_training_scores_every_exit(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    path = tmp_path / "figures.json"

    run(
        "-m", "benchmarks.gpu_training", *SMALL, "--data", "digits", "--train-limit", "60", "--test-limit", "20",
        "--epochs", "1", "--views", "1", "--methods", "neuroflux", "--json", str(path),
    )  # fmt: skip

    (trained,) = json.loads(path.read_text())["results"]
    assert [found["unit"] for found in trained["exits"]] == [0, 1, 2, 3, 4, 5, 6, 7]
    assert trained["chosen_exit"] in range(8)
    assert all(0 <= found["test_accuracy"] <= 1 for found in trained["exits"])
    assert trained["seconds"]["total"] > trained["seconds"]["train"] > 0
