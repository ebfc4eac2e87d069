"""How much freed memory is worth keeping: speed and peaks of NeuroFlux by the limit that a block keeps it under.

Run from the repository's root: ``python -m benchmarks.kept_memory``. One plan for each budget, made by real steps;
passes with the limits, as shares of each block's predicted peak, take turns in one process. With 9 the budget
alone is the limit. Least and most are blocks' peaks over their predictions: more than the share where memory ran out
under it, or where 32 MiB, the least limit, is more.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.report import (
    WORKER_FLAG,
    Worker,
    add_pass_options,
    describe_setting,
    print_setting,
    print_table,
    require_tcmalloc,
    serve,
    write_json,
)
from neuroflux_fl import block_training
from neuroflux_fl.arm_run import PASS_EPOCHS, pass_with_blocks
from neuroflux_fl.arm_tuning import Refusal, tune
from neuroflux_fl.arms import NEUROFLUX, Arm, ArmSetting
from neuroflux_fl.block_training import KEPT_SHARE
from neuroflux_fl.device_memory import warm_up_kernels
from neuroflux_fl.machine_speed import measure_speed
from neuroflux_fl.memory_allocator import return_freed_memory_at_once
from neuroflux_fl.models import MODEL_NAMES
from neuroflux_fl.planning import PlannerSettings
from neuroflux_fl.sizes import MIB, parse_bytes

_MODULE = "benchmarks.kept_memory"
_CPU = torch.device("cpu")
_HEADER = ("precision", "budget", "share", "samples/s", "min", "max", "ratio", "peak MiB", "least", "most")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run and print a table."""
    if arguments is None and sys.argv[1:] == [WORKER_FLAG]:
        serve(_answer)
        return 0
    options = _parser().parse_args(arguments)
    require_tcmalloc()
    setting = describe_setting(
        model=options.model, threads=options.threads, seed=options.seed,
        repeats=f"{options.repeats}, interleaved, medians",
    )  # fmt: skip
    print_setting(setting)
    rows: list[dict[str, Any]] = []
    for precision in options.precisions:
        for budget in options.budgets:
            with Worker(_MODULE) as worker:
                rows += worker.ask(**vars(options) | {"json": None, "precision": precision, "budget": budget})["rows"]
    print_table(_HEADER, [[str(row[name]) for name in _HEADER] for row in rows])
    write_json(options.json, {"setting": setting, "rows": rows})
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"python -m {_MODULE}", description=__doc__)
    parser.add_argument("--model", choices=MODEL_NAMES, default="vgg16")
    parser.add_argument("--precisions", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    parser.add_argument("--budgets", nargs="+", default=["64MiB", "221MiB"])
    parser.add_argument("--shares", nargs="+", type=float, default=[1.1, KEPT_SHARE, 9.0])
    add_pass_options(parser)
    return parser


def _answer(request: dict[str, Any]) -> dict[str, object]:
    torch.set_num_threads(request["threads"])
    return_freed_memory_at_once()
    warm_up_kernels()
    planner = PlannerSettings(progressive=True, maximum_batch=request["maximum_batch"], passes=PASS_EPOCHS)
    setting = ArmSetting(model=request["model"], precision=request["precision"], planner=planner)
    arm = Arm(NEUROFLUX, setting, measure_speed(_CPU))
    tuned = tune(arm, parse_bytes(request["budget"]), _CPU)
    if isinstance(tuned, Refusal):
        raise SystemExit(f"NeuroFlux needs {tuned.needed_bytes / MIB:.1f} MiB: give a larger budget.")
    rates: dict[float, list[float]] = {share: [] for share in request["shares"]}
    peaks: dict[float, list[int]] = {share: [] for share in rates}
    ratios: dict[float, list[float]] = {share: [] for share in rates}
    for _ in range(request["repeats"]):
        for share, of_share in rates.items():
            block_training.KEPT_SHARE = share
            timed, blocks = pass_with_blocks(arm, tuned, request["seconds"], seed=request["seed"], device=_CPU)
            of_share.append(timed.samples / timed.seconds)
            for done in blocks:
                peaks[share].append(done.measured_peak_bytes or 0)
                ratios[share].append(peaks[share][-1] / done.block.predicted_peak_bytes)
    widest = statistics.median(rates[max(rates)])
    rows = [
        {
            "precision": request["precision"],
            "budget": request["budget"],
            "share": share,
            "samples/s": round(statistics.median(of_share), 1),
            "min": round(min(of_share), 1),
            "max": round(max(of_share), 1),
            "ratio": round(statistics.median(of_share) / widest, 3),
            "peak MiB": round(max(peaks[share]) / MIB, 1),
            "least": round(min(ratios[share]), 2),
            "most": round(max(ratios[share]), 2),
        }
        for share, of_share in rates.items()
    ]
    return {"rows": rows}


if __name__ == "__main__":
    sys.exit(main())
