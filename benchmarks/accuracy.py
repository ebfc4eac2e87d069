"""Accuracy against memory budget: NeuroFlux with its reach fixed or by memory, and backpropagation, on real images.

Run from the repository's root: ``python -m benchmarks.accuracy --data FOLDER``. The clock counts seconds of computing
by one thread, and plans come from traces alone, so that other load on the machine changes nothing but how long one
waits. Each run has a process of its own. Budgets make the plans; peaks are measured by ``benchmarks.peak_memory`` and
by ``neuroflux-fl compare --train``.
"""

from __future__ import annotations

import argparse
import sys
import time
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.report import WORKER_FLAG, Worker, describe_setting, print_setting, print_table, serve, write_json
from neuroflux_fl.arm_run import Schedule, train_arm
from neuroflux_fl.arm_tuning import Refusal, predict
from neuroflux_fl.arms import NEUROFLUX, Arm, ArmSetting
from neuroflux_fl.compute import ComputeSettings
from neuroflux_fl.data import load_data
from neuroflux_fl.models import MODEL_NAMES
from neuroflux_fl.planning import PlannerSettings
from neuroflux_fl.sizes import parse_bytes

_MODULE = "benchmarks.accuracy"
_NO_LIMIT, _SMALLEST = "none", "smallest"
_NEUROFLUX_RATE, _OTHER_RATE = 0.05, 0.02
"""At batch 64. More is too much for backpropagation here, less is slower for NeuroFlux."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run and print a table."""
    if arguments is None and sys.argv[1:] == [WORKER_FLAG]:
        serve(_answer)
        return 0
    options = _parser().parse_args(arguments)
    setting = describe_setting(
        data=f"{options.data}, {options.train_limit} images, {options.test_limit} to test",
        clock="CPU seconds, 1 thread",
    )
    print_setting(setting)
    rows: list[dict[str, Any]] = []
    for seed in options.seeds:
        for budget in options.budgets:
            runs = [(NEUROFLUX, str(reach), options.epochs) for reach in options.reaches]
            runs += [(method, "", epochs) for method in options.methods for epochs in options.other_epochs]
            for method, reach, epochs in runs:
                with Worker(_MODULE) as worker:
                    asked = vars(options) | {"json": None, "seed": seed, "budget": budget, "epochs": epochs}
                    found = worker.ask(**asked, method=method, reach=reach)
                rows.append(
                    {"seed": seed, "budget": budget, "method": method, "reach": reach, "passes": epochs} | found
                )
                print(" ".join(_cells(rows[-1], [])), file=sys.stderr)
    header = ("budget", "method", "reach", "passes", "seed", *(f"{at} s" for at in options.at), "end", "s", "exit", "M")
    print_table(header, [_cells(row, options.at) for row in rows])
    write_json(options.json, {"setting": setting, "rows": rows})
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"python -m {_MODULE}", description=__doc__)
    parser.add_argument("--data", required=True, help="a name or a folder, as for neuroflux-fl train")
    parser.add_argument("--model", choices=MODEL_NAMES, default="vgg16")
    parser.add_argument("--width", type=float, default=0.5)
    parser.add_argument("--image-side", type=int, default=None)
    parser.add_argument("--budgets", nargs="+", default=["12MiB", "16MiB", "24MiB", _SMALLEST, _NO_LIMIT])
    parser.add_argument("--reaches", nargs="*", type=int, default=[0, 1], help="of NeuroFlux; 0 goes by memory")
    parser.add_argument("--together", action="store_true", help="allow all units in one block")
    parser.add_argument("--methods", nargs="*", default=["backprop"], help="other ones")
    parser.add_argument("--epochs", type=int, default=8, help="of NeuroFlux, for each block")
    parser.add_argument("--other-epochs", nargs="+", type=int, default=[8, 16, 32])
    parser.add_argument("--patience", type=int, default=3)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--maximum-batch", type=int, default=64)
    parser.add_argument("--train-limit", type=int, default=5000)
    parser.add_argument("--test-limit", type=int, default=3000)
    parser.add_argument("--at", nargs="+", type=int, default=[30, 60, 90, 120, 240])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser


def _answer(request: dict[str, Any]) -> dict[str, object]:
    torch.set_num_threads(1)
    method, seed = request["method"], request["seed"]
    limits = {name: request[name] for name in ("image_side", "train_limit", "test_limit")}
    images = load_data(request["data"], **limits)
    rate = _NEUROFLUX_RATE if method == NEUROFLUX else _OTHER_RATE
    views = Schedule().views
    setting = ArmSetting(
        model=request["model"], image_shape=images.image_shape, classes=images.classes, width=request["width"],
        precision=request["precision"],
        planner=PlannerSettings(
            reach=int(request["reach"] or 0), progressive=not request["together"],
            maximum_batch=request["maximum_batch"], learning_rate=rate, maximum_learning_rate=4 * rate,
            passes=request["epochs"], views=views,
        ),
    )  # fmt: skip
    compute = ComputeSettings(precision=request["precision"], channels_last=True)
    arm = Arm(method, setting)
    tuned = predict(arm, _bytes(request["budget"], setting, compute), [compute])
    if isinstance(tuned, Refusal):
        return {"accuracy": None, "curve": [], "exit": None, "parameters": 0, "blocks": []}
    tuned = replace(tuned, tuning_seconds=0.0)  # no seconds of computing, but of waiting
    schedule = Schedule(epochs=request["epochs"], patience=request["patience"])
    trained = train_arm(arm, tuned, images, schedule, seed=seed, device=torch.device("cpu"), clock=time.process_time)
    return {
        "accuracy": trained.curve[-1].test_accuracy,
        "curve": [asdict(point) for point in trained.curve],
        "exit": trained.curve[-1].unit,
        "parameters": trained.parameters,
        "blocks": [[b.batch_size, [[w.first_unit, w.last_unit] for w in b.windows]] for b in tuned.plan.blocks],
    }


def _bytes(budget: str, setting: ArmSetting, compute: ComputeSettings) -> int | None:
    if budget == _NO_LIMIT:
        return None
    return Arm("backprop", setting).smallest_budget(compute) if budget == _SMALLEST else parse_bytes(budget)


def _cells(row: dict[str, Any], marks: Sequence[int]) -> list[str]:
    ends = [point["seconds"] for point in row["curve"]]
    reached = [bisect_right(ends, mark) for mark in marks]
    at = [f"{row['curve'][count - 1]['test_accuracy']:.1%}" if count else "" for count in reached]
    cells = [row["budget"], row["method"], row["reach"], str(row["passes"]), str(row["seed"]), *at]
    if not ends:
        return [*cells, "does not fit", "", "", ""]
    parameters = f"{row['parameters'] / 1e6:.2f}"
    return [*cells, f"{row['accuracy']:.1%}", f"{ends[-1]:.0f}", str(row["exit"]), parameters]


if __name__ == "__main__":
    sys.exit(main())
