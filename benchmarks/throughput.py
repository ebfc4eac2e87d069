"""Training throughput of NeuroFlux, with either head, and of backpropagation, in the same memory and the same code.

Run from the repository's root: ``python -m benchmarks.throughput``. A pass trains every sample through every block
once; its time holds everything that ``DeviceTrainer.train`` does: unit load and store, cache writes and reads. The
measured number of samples differs from arm to arm, because a pass is made to last about as long in all of them.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.peak_memory import PLANNER as DEFAULT_PLANNER
from benchmarks.peak_memory import make_network, make_trainer
from benchmarks.report import (
    WORKER_FLAG,
    Worker,
    describe_setting,
    print_setting,
    print_table,
    serve,
    write_json,
)
from neuroflux_fl.device_memory import return_freed_memory_at_once, warm_up_kernels
from neuroflux_fl.device_training import TrainingResult
from neuroflux_fl.heads import HEAD_KINDS
from neuroflux_fl.local_network import LocalNetwork
from neuroflux_fl.machine_speed import measure_speed
from neuroflux_fl.models import MODEL_NAMES
from neuroflux_fl.plan import Block, Plan
from neuroflux_fl.planning import backpropagation_minimum, plan_backpropagation, plan_units
from neuroflux_fl.profiling import measure_profile, profile_network
from neuroflux_fl.sizes import MIB

MODULE = "benchmarks.throughput"
PLANNER = replace(DEFAULT_PLANNER, passes=1)  # a cache written in a pass is read in that pass alone
BACKPROPAGATION = "backpropagation"
SMALLEST, UNLIMITED = "smallest", "none"
_HEADER = ("budget", "arm", "samples", "samples/s", "min", "max", "cache time", "peak MiB", "units x batch")
_MOST_SAMPLES = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """One pass over the data."""

    samples: int
    """The fewest that any block trained: a few sit out where batches do not divide the data."""
    seconds: float
    cache_seconds: float
    """Of ``seconds``: running finished blocks forward and writing their outputs, with the start of the peak's meter."""
    peak_bytes: int

    @property
    def rate(self) -> float:
        """Samples in a second."""
        return self.samples / self.seconds


@dataclass(slots=True, kw_only=True)
class Arm:
    """One way to train at one budget, in a worker process of its own."""

    name: str
    worker: Worker
    budget_bytes: int | None
    blocks: str
    samples: int
    passes: list[Pass]

    @property
    def rates(self) -> list[float]:
        """Samples in a second, pass by pass."""
        return [one.rate for one in self.passes]

    @property
    def median(self) -> float:
        """Middle of the rates."""
        return statistics.median(self.rates)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every budget in turn, its arms in alternation, and print."""
    options = _parser().parse_args(arguments)
    if options.worker:
        serve(_Measurement().answer)
        return 0
    setting = _setting(options)
    print_setting(setting)
    measured = {budget: _measure(options, budget) for budget in options.budgets}
    print_table(_HEADER, [_row(budget, arm) for budget, arms in measured.items() for arm in arms])
    ratios = {budget: _ratios(arms) for budget, arms in measured.items()}
    print_table(
        ("budget", "arm", f"times {BACKPROPAGATION}", "least", "most"),
        [
            (budget, name, *(f"{value:.2f}" for value in values))
            for budget, arms in ratios.items()
            for name, values in arms.items()
        ],
    )
    print("Cache time: share of the time spent on running finished blocks forward and writing their outputs.")
    print("The ratio is of medians; least and most are over repetitions, in which all arms of a budget take turns.")
    results = {budget: [_figures(arm) for arm in arms] for budget, arms in measured.items()}
    write_json(options.json, {"setting": setting, "results": results, "ratios": ratios})
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=__doc__)
    parser.add_argument("--model", choices=MODEL_NAMES, default="vgg16")
    parser.add_argument("--heads", nargs="+", choices=HEAD_KINDS, default=list(HEAD_KINDS))
    parser.add_argument(
        "--budgets", nargs="+", default=[SMALLEST, "256", UNLIMITED], metavar="MIB",
        help=f"MiB, {SMALLEST} (the least under which {BACKPROPAGATION} runs) or {UNLIMITED}",
    )  # fmt: skip
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0, help="about how long one pass should last")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument(WORKER_FLAG, action="store_true", help=argparse.SUPPRESS)
    return parser


def _setting(options: argparse.Namespace) -> dict[str, str]:
    return describe_setting(
        model=f"{options.model}, 3x32x32, 10 classes, float32, cache in float16",
        threads=options.threads,
        seed=options.seed,
        repeats=f"{options.repeats}, medians, start-up and one warm-up pass not counted",
        batches=f"{PLANNER.minimum_batch} to {PLANNER.maximum_batch}, the planner's choice; by measured times for "
        f"budget {UNLIMITED}",
        allocator=f"freed memory returned at once in both arms; glibc's default in both for budget {UNLIMITED}",
    )


def _measure(options: argparse.Namespace, budget: str) -> list[Arm]:
    arms: list[Arm] = []
    with ExitStack() as stack:
        for name in (*(f"NeuroFlux {head}" for head in options.heads), BACKPROPAGATION):
            print(f"preparing {name}, budget {budget}", file=sys.stderr, flush=True)
            arms.append(_prepare(options, budget, name, stack.enter_context(Worker(MODULE))))
        for repetition in range(options.repeats):
            print(f"budget {budget}, repetition {repetition + 1}", file=sys.stderr, flush=True)
            for arm in arms:
                arm.passes.append(Pass(**arm.worker.ask(do="pass", samples=arm.samples)))
    return arms


def _prepare(options: argparse.Namespace, budget: str, name: str, worker: Worker) -> Arm:
    """Plan, warm up, and choose how many samples fill a pass: whole batches of the largest block."""
    head = name.split()[-1] if name != BACKPROPAGATION else options.heads[0]
    ready = worker.ask(
        do="prepare", model=options.model, head=head, budget=budget, backpropagation=name == BACKPROPAGATION,
        threads=options.threads, seed=options.seed,
    )  # fmt: skip
    largest = ready["largest_batch"]
    short = Pass(**worker.ask(do="pass", samples=largest * max(1, 64 // largest)))
    batches = max(2, round(short.rate * options.seconds / largest))
    samples = min(_MOST_SAMPLES, batches * largest)
    return Arm(
        name=name, worker=worker, budget_bytes=ready["budget_bytes"], blocks=ready["blocks"], samples=samples, passes=[]
    )


class _Measurement:
    """The worker's side: one network and one plan, passes on request."""

    def __init__(self) -> None:
        self._network: LocalNetwork
        self._plan: Plan
        self._seed = 0

    def answer(self, request: dict[str, Any]) -> dict[str, object]:
        """Do as asked: ``prepare`` first, then any number of ``pass``."""
        return self._prepare(request) if request["do"] == "prepare" else asdict(self._pass(request["samples"]))

    def _prepare(self, request: dict[str, Any]) -> dict[str, object]:
        torch.set_num_threads(request["threads"])
        if request["budget"] != UNLIMITED:
            return_freed_memory_at_once()
        warm_up_kernels()
        self._seed = request["seed"]
        self._network = make_network(request["model"], request["head"])
        profile = profile_network(self._network, speed=measure_speed(torch.device("cpu")))
        # Rounded up to whole MiB, as the error message for a smaller budget advises.
        smallest = -(-backpropagation_minimum(profile, PLANNER) // MIB) * MIB
        budget = _budget_bytes(request["budget"], smallest)
        if budget is None:
            # Without a limit the largest batch is rarely the fastest: every arm picks from its own measured curve.
            single = [window for window in profile.windows if window.reach == 1]
            profile = measure_profile(
                self._network,
                profile,
                windows=[profile.whole.window] if request["backpropagation"] else single,
                available_bytes=PLANNER.available(None),
                maximum_batch=PLANNER.maximum_batch,
                minimum_batch=PLANNER.minimum_batch,
                device=torch.device("cpu"),
            )
        make_plan = plan_backpropagation if request["backpropagation"] else plan_units
        self._plan = make_plan(profile, budget, PLANNER)
        return {
            "budget_bytes": budget,
            "blocks": ", ".join(_block(block) for block in self._plan.blocks),
            "largest_batch": max(block.batch_size for block in self._plan.blocks),
        }

    def _pass(self, samples: int) -> Pass:
        """Train from fresh weights and an empty cache, so that every repetition does the same work."""
        with tempfile.TemporaryDirectory() as folder:
            trainer = make_trainer(
                self._network, Path(folder), samples=samples, budget_bytes=self._plan.budget_bytes, seed=self._seed
            )
            cache_before = trainer.stopwatch.seconds["cache"]
            started = time.perf_counter()
            result = trainer.train(self._plan)
            seconds = time.perf_counter() - started
        return Pass(
            samples=min(block.samples for block in result.blocks),
            seconds=seconds,
            cache_seconds=trainer.stopwatch.seconds["cache"] - cache_before,
            peak_bytes=_peak(result),
        )


def _budget_bytes(budget: str, smallest: int) -> int | None:
    if budget == UNLIMITED:
        return None
    return smallest if budget == SMALLEST else int(budget) * MIB


def _peak(result: TrainingResult) -> int:
    peaks = [result.forward_peak_bytes, *(block.measured_peak_bytes for block in result.blocks)]
    return max(peak or 0 for peak in peaks)


def _block(block: Block) -> str:
    units = str(block.first_unit) if len(block.units) == 1 else f"{block.first_unit}-{block.last_unit}"
    return f"{units} x {block.batch_size}"


def _row(budget: str, arm: Arm) -> tuple[str, ...]:
    limit = "none" if arm.budget_bytes is None else f"{arm.budget_bytes / MIB:.0f} MiB"
    shown = limit if budget in (UNLIMITED, limit.split()[0]) else f"{limit} ({budget})"
    cache = sum(one.cache_seconds for one in arm.passes) / sum(one.seconds for one in arm.passes)
    return (
        shown, arm.name, str(arm.passes[0].samples), f"{arm.median:.1f}", f"{min(arm.rates):.1f}",
        f"{max(arm.rates):.1f}", f"{cache:.0%}", f"{max(one.peak_bytes for one in arm.passes) / MIB:.1f}", arm.blocks,
    )  # fmt: skip


def _ratios(arms: Sequence[Arm]) -> dict[str, tuple[float, float, float]]:
    """By NeuroFlux arm: ratio of the medians, lowest and highest ratio of one repetition."""
    *others, baseline = arms
    ratios = {}
    for arm in others:
        paired = [own / base for own, base in zip(arm.rates, baseline.rates, strict=True)]
        ratios[arm.name] = (arm.median / baseline.median, min(paired), max(paired))
    return ratios


def _figures(arm: Arm) -> dict[str, object]:
    return {
        "arm": arm.name,
        "budget_bytes": arm.budget_bytes,
        "blocks": arm.blocks,
        "samples_per_second": {"median": arm.median, "min": min(arm.rates), "max": max(arm.rates)},
        "passes": [asdict(one) for one in arm.passes],
    }


if __name__ == "__main__":
    sys.exit(main())
