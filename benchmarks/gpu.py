"""Speed and peak memory of every method of training on a GPU, by model, shape of the data and budget.

Run from the repository's root: ``python -m benchmarks.gpu``. It needs torch, torchvision and numpy, nothing else. The
budget is the limit of torch's allocator itself (``set_per_process_memory_fraction``): whoever needs more runs out of
memory. What a pass is, ``neuroflux_fl/arm_run.py`` says; peaks hold what the libraries keep between steps.

It has run on a CPU only, at small size (``--device cpu``), and not yet on a GPU. On a CPU nothing enforces a budget:
methods are planned for it, and peaks are what the kernel counted.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

import torch

from benchmarks.gpu_device import (
    add_device_options,
    find_device,
    held_bytes,
    limit_memory,
    prepare_process,
    start,
    tune_arm,
)
from benchmarks.report import (
    WORKER_FLAG,
    Worker,
    describe_setting,
    print_setting,
    print_table,
    serve,
    write_json,
)
from neuroflux_fl.arm_run import PASS_EPOCHS, time_pass
from neuroflux_fl.arm_tuning import TunedArm
from neuroflux_fl.arms import ARMS, NEUROFLUX, Arm, ArmSetting
from neuroflux_fl.comparison import read_budget, smallest_budgets
from neuroflux_fl.compute import COMPUTE_PRECISIONS
from neuroflux_fl.device_memory import is_out_of_memory
from neuroflux_fl.heads import HeadSettings
from neuroflux_fl.machine_speed import measure_speed
from neuroflux_fl.models import MODEL_NAMES
from neuroflux_fl.planning import PlannerSettings
from neuroflux_fl.sizes import MIB

MODULE = "benchmarks.gpu"
BACKPROPAGATION = "backprop"
SHAPES: dict[str, tuple[tuple[int, int, int], int]] = {
    "cifar10": ((3, 32, 32), 10),
    "cifar100": ((3, 32, 32), 100),
    "tiny-imagenet": ((3, 64, 64), 200),
}
"""Image shape and classes."""
_HEADER = ("model", "data", "budget", "method", "samples/s", "min", "max", "peak MiB", "retries", "blocks x batch")
_SUMMARY = ("model", "data", "budget", "NeuroFlux", "best other", "times it", "times backprop")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure case by case; the file of figures is whole after each, so that a run may be cut short."""
    options = _parser().parse_args(arguments)
    if options.worker:
        serve(Case().answer)
        return 0
    setting = _setting(options)
    print_setting(setting)
    rows: list[dict[str, Any]] = []
    smallest: list[dict[str, Any]] = []
    for model, data, precision in itertools.product(options.models, options.data, options.precisions):
        with Worker(MODULE) as worker:
            shape, classes = SHAPES[data]
            floors = worker.ask(
                do="open", model=model, image_shape=shape, classes=classes, precision=precision, width=options.width,
                head=options.head, reach=options.reach, maximum_batch=options.maximum_batch, methods=options.methods,
                device=options.device, threads=options.threads, seed=options.seed,
            )  # fmt: skip
            case = {"model": model, "data": data, "precision": precision}
            smallest.append({**case, "smallest_budget_bytes": floors})
            for text in options.budgets:
                budget = read_budget(text, floors.get(BACKPROPAGATION, min(floors.values()))).bytes
                print(f"{model}, {data}, {precision}, budget {text}", file=sys.stderr, flush=True)
                found = worker.ask(do="budget", budget_bytes=budget, seconds=options.seconds, repeats=options.repeats)
                rows += [{**case, "budget": text, "budget_bytes": budget, **row} for row in found]
                write_json(options.json, {"setting": setting, "smallest": smallest, "results": rows})
    print_table(_HEADER, [_cells(row) for row in rows])
    summary = summarise(rows)
    print_table(_SUMMARY, [_summary_cells(line) for line in summary])
    write_json(options.json, {"setting": setting, "smallest": smallest, "results": rows, "summary": summary})
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=__doc__)
    parser.add_argument("--models", nargs="+", choices=MODEL_NAMES, default=["vgg16", "vgg19", "resnet18"])
    parser.add_argument("--data", nargs="+", choices=list(SHAPES), default=list(SHAPES), help="noise of these shapes")
    parser.add_argument("--precisions", nargs="+", choices=list(COMPUTE_PRECISIONS), default=["float32"])
    parser.add_argument(
        "--budgets", nargs="+", default=["100MB", "200MB", "300MB", "400MB", "500MB"],
        help="sizes, smallest (the least under which backpropagation should run), 1.2x of it, or none",
    )  # fmt: skip
    parser.add_argument("--methods", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="about how long one pass should last")
    add_device_options(parser)
    parser.add_argument(WORKER_FLAG, action="store_true", help=argparse.SUPPRESS)
    return parser


def _setting(options: argparse.Namespace) -> dict[str, str]:
    return describe_setting(
        **start(options.device),
        data="noise",
        seed=options.seed,
        repeats=f"{options.repeats}, interleaved, medians",
        **{"a pass": f"fresh weights, {PASS_EPOCHS} epochs, validation on a tenth of the images after each; weights "
           "read and written, cache in float16 written and read"},
        heads=f"{options.head} (classic: conv, 256 filters), reach {options.reach}",
        batches=f"up to {options.maximum_batch}",
    )  # fmt: skip


class Case:
    """The worker's side: all methods with one model and one shape of data, on one device."""

    def __init__(self) -> None:
        self._arms: list[Arm] = []
        self._device: torch.device
        self._seed = 0

    def answer(self, request: dict[str, Any]) -> Any:
        """``open`` first, then any number of ``budget``."""
        return self._open(request) if request["do"] == "open" else self._run(request)

    def _open(self, request: dict[str, Any]) -> dict[str, int]:
        """The smallest budget of each method, as predicted."""
        self._device = find_device(request["device"])
        self._seed = request["seed"]
        prepare_process(self._device, request["threads"])
        setting = ArmSetting(
            model=request["model"],
            image_shape=tuple(request["image_shape"]),
            classes=request["classes"],
            width=request["width"],
            head=HeadSettings(kind=request["head"]),
            planner=PlannerSettings(
                reach=request["reach"], progressive=True, maximum_batch=request["maximum_batch"], passes=PASS_EPOCHS
            ),
            precision=request["precision"],
        )
        speed = measure_speed(self._device)
        self._arms = [Arm(name, setting, speed) for name in request["methods"]]
        return smallest_budgets(self._arms)

    def _run(self, request: dict[str, Any]) -> list[dict[str, Any]]:
        """Tune every method, then let their passes take turns."""
        limit_memory(self._device, request["budget_bytes"])
        tuned = {arm.name: tune_arm(arm, request["budget_bytes"], self._device) for arm in self._arms}
        rows = {name: row for name, (_, row) in tuned.items()}
        for _ in range(request["repeats"]):
            for arm in self._arms:
                how = tuned[arm.name][0]
                if how is not None and not rows[arm.name]["refused"]:
                    self._pass(arm, how, request["seconds"], rows[arm.name])
        return list(rows.values())

    def _pass(self, arm: Arm, how: TunedArm, seconds: float, row: dict[str, Any]) -> None:
        held = held_bytes(self._device)
        try:
            done = time_pass(arm, how, seconds, seed=self._seed, device=self._device)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            row["refused"] = "ran out of memory"
            return
        row["passes"].append({**asdict(done), "held_bytes": held})


def summarise(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """NeuroFlux's speed over the best other method's and over plain backpropagation's, case by case.

    A ratio is None where the other side does not run, and so is everything where NeuroFlux does not train all units.
    """
    lines = []
    cases = dict.fromkeys((row["model"], row["data"], row["precision"], row["budget"]) for row in rows)
    for model, data, precision, budget in cases:
        chosen = (model, data, precision, budget)
        rates = {
            row["method"]: _rate(row)
            for row in rows
            if (row["model"], row["data"], row["precision"], row["budget"]) == chosen
            and _rate(row) and not row.get("untrained_units")
        }  # fmt: skip
        own = rates.pop(NEUROFLUX, None)
        best = max(rates, key=lambda name: rates[name], default=None)
        lines.append(
            {
                "model": model, "data": data, "precision": precision, "budget": budget,
                "neuroflux": own,
                "best_other": best,
                "times_best_other": own / rates[best] if own and best else None,
                "times_backpropagation": own / rates[BACKPROPAGATION] if own and BACKPROPAGATION in rates else None,
            }
        )  # fmt: skip
    return lines


def _rate(row: Mapping[str, Any]) -> float:
    """Median samples/s; 0 where the method does not run."""
    if row["refused"]:
        return 0.0
    return float(median(one["samples"] / one["seconds"] for one in row["passes"]))


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    start = (row["model"], f"{row['data']}, {row['precision']}", row["budget"], row["method"])
    if row["refused"]:
        return (*start, *[""] * 5, row["refused"])
    rates = [one["samples"] / one["seconds"] for one in row["passes"]]
    peaks = [one["peak_bytes"] + one["held_bytes"] for one in row["passes"] if one["peak_bytes"] is not None]
    retries = sum(one["out_of_memory_retries"] for one in row["passes"])
    batches = ", ".join(_batch(block) for block in row["blocks"])
    left = f", without units {row['untrained_units']}" if row["untrained_units"] else ""
    return (
        *start, f"{median(rates):.1f}", f"{min(rates):.1f}", f"{max(rates):.1f}",
        f"{max(peaks) / MIB:.1f}" if peaks else "", str(retries),
        f"{batches}{', channels last' if row['channels_last'] else ''}{left}",
    )  # fmt: skip


def _batch(block: Mapping[str, Any]) -> str:
    pieces = "" if block["micro_batch"] is None else f" in pieces of {block['micro_batch']}"
    segments = len(block["windows"][0]["checkpoints"]) + 1
    kept = f", {segments} segments" if segments > 1 else ""
    return f"{len(block['windows'])}x{block['batch_size']}{pieces}{kept}"


def _summary_cells(line: Mapping[str, Any]) -> tuple[str, ...]:
    data = f"{line['data']}, {line['precision']}"
    own = "" if line["neuroflux"] is None else f"{line['neuroflux']:.1f}"
    ratios = (line["times_best_other"], line["times_backpropagation"])
    cells = ("" if ratio is None else f"{ratio:.2f}" for ratio in ratios)
    return (line["model"], data, line["budget"], own, line["best_other"] or "none runs", *cells)


if __name__ == "__main__":
    sys.exit(main())
