"""What tcmalloc brings under a memory budget: speed and peak of NeuroFlux with it and with glibc's allocator.

Run from the repository's root: ``python -m benchmarks.allocator``. Each allocator has a process of its own, which tunes
its own plan; passes take turns.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from benchmarks.report import (
    add_pass_options,
    describe_setting,
    print_setting,
    print_table,
    require_tcmalloc,
    write_json,
)
from neuroflux_fl.arm_run import PASS_EPOCHS, TimedPass
from neuroflux_fl.arm_tuning import TunedArm
from neuroflux_fl.arm_worker import ArmWorker
from neuroflux_fl.arms import ARMS, NEUROFLUX, ArmSetting
from neuroflux_fl.memory_allocator import ALLOCATOR_CHOICE
from neuroflux_fl.models import MODEL_NAMES
from neuroflux_fl.planning import PlannerSettings
from neuroflux_fl.sizes import MIB, parse_bytes

_HEADER = ("precision", "budget", "allocator", "samples/s", "min", "max", "ratio", "peak MiB", "predicted MiB")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run and print a table."""
    options = _parser().parse_args(arguments)
    require_tcmalloc()
    setting = describe_setting(
        model=options.model, method=options.method, threads=options.threads, seed=options.seed,
        repeats=f"{options.repeats}, interleaved, medians",
    )  # fmt: skip
    print_setting(setting)
    rows = [
        row
        for precision in options.precisions
        for budget in options.budgets
        for row in _compare(options, precision, parse_bytes(budget))
    ]
    print_table(_HEADER, [[str(row[name]) for name in _HEADER] for row in rows])
    write_json(options.json, {"setting": setting, "rows": rows})
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.allocator", description=__doc__)
    parser.add_argument("--model", choices=MODEL_NAMES, default="vgg16")
    parser.add_argument("--method", choices=list(ARMS), default=NEUROFLUX)
    parser.add_argument("--precisions", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    parser.add_argument("--budgets", nargs="+", default=["40MiB", "64MiB", "192MiB"])
    add_pass_options(parser)
    return parser


def _compare(options: argparse.Namespace, precision: str, budget_bytes: int) -> list[dict[str, Any]]:
    planner = PlannerSettings(progressive=True, maximum_batch=options.maximum_batch, passes=PASS_EPOCHS)
    setting = ArmSetting(model=options.model, precision=precision, planner=planner)
    tuned: dict[str, TunedArm] = {}
    passes: dict[str, list[TimedPass]] = {"system": [], "tcmalloc": []}
    with ExitStack() as stack:
        workers = {}
        for name in passes:
            os.environ[ALLOCATOR_CHOICE] = name
            worker = ArmWorker(options.method, setting, limited=True, threads=options.threads, seed=options.seed)
            workers[name] = stack.enter_context(worker)
        for name, worker in workers.items():
            how = worker.tune(budget_bytes)
            if not isinstance(how, TunedArm):
                sys.exit(f"{options.method} needs {how.needed_bytes / MIB:.1f} MiB: give a larger budget.")
            tuned[name] = how
        for _ in range(options.repeats):
            for name, worker in workers.items():
                passes[name].append(worker.time_pass(options.seconds))
    rates = {name: [one.samples / one.seconds for one in of_it] for name, of_it in passes.items()}
    return [
        {
            "precision": precision,
            "budget": f"{budget_bytes / MIB:.0f} MiB",
            "allocator": "glibc" if name == "system" else name,
            "samples/s": round(statistics.median(rates[name]), 1),
            "min": round(min(rates[name]), 1),
            "max": round(max(rates[name]), 1),
            "ratio": round(statistics.median(rates[name]) / statistics.median(rates["system"]), 2),
            "peak MiB": round(max(one.peak_bytes or 0 for one in passes[name]) / MIB, 1),
            "predicted MiB": round(max(block.predicted_peak_bytes for block in tuned[name].plan.blocks) / MIB, 1),
        }
        for name in passes
    ]


if __name__ == "__main__":
    sys.exit(main())
