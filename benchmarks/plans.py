"""How good the planner's predictions and choices are: block times and peaks, and the plan against an exhaustive search.

Run from the repository's root: ``python -m benchmarks.plans``. Two tables. The first trains every block of a measured
plan for real, three times, each time after measuring the block's windows anew: its ratio is the median of three, so a
machine whose speed drifts does not change it. The second times every run of consecutive units of a small network at
every batch size, finds the fastest plan among all of them, and compares it with the one that the planner chose; what
caches cost is as predicted.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.report import WORKER_FLAG, Worker, describe_setting, print_setting, print_table, serve, write_json
from neuroflux_fl.block_training import TrainSettings, train_block
from neuroflux_fl.cli.profiles import make_profile
from neuroflux_fl.heads import HeadSettings
from neuroflux_fl.local_network import LocalNetwork, build_network
from neuroflux_fl.models import MODEL_NAMES, build_chain
from neuroflux_fl.plan import Block, Plan, Window
from neuroflux_fl.planning import PlannerSettings, make_block, plan_units
from neuroflux_fl.profiling import NetworkProfile, measure_profile
from neuroflux_fl.sample_source import TensorSource
from neuroflux_fl.sizes import MIB, parse_bytes
from neuroflux_fl.unit_store import UnitStore

CPU = torch.device("cpu")
_MODULE = "benchmarks.plans"
_BLOCKS = (
    "budget",
    "units",
    "batch",
    "predicted ms",
    "measured ms",
    "ratio",
    "predicted MiB",
    "measured MiB",
    "ratio ",
)
_SEARCH = ("budget", "plans", "chosen ms", "best ms", "ratio", "chosen", "best")
_IMAGES = 256
"""Of a pass, at least two batches; the first pass is not counted."""
_ROUNDS = 3
"""Of measuring a block's windows and training it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run both and print their tables."""
    if arguments is None and sys.argv[1:] == [WORKER_FLAG]:
        serve(_answer)
        return 0
    options = _parser().parse_args(arguments)
    setting = describe_setting(
        blocks=f"{options.model}, 3x32x32", search=f"{options.small} x {options.width}, 3x32x32",
        threads=options.threads, seed=options.seed, repeats=f"{options.repeats}, medians",
    )  # fmt: skip
    print_setting(setting)
    common = {"threads": options.threads, "seed": options.seed, "repeats": options.repeats}
    blocks: list[dict[str, Any]] = []
    for budget in map(parse_bytes, options.budgets):
        with Worker(_MODULE) as worker:
            blocks += worker.ask(do="blocks", model=options.model, width=1.0, budget_bytes=budget, **common)["rows"]
    print_table(_BLOCKS, [[str(row[name]) for name in _BLOCKS] for row in blocks])
    searches: list[dict[str, Any]] = []
    for budget in map(parse_bytes, options.small_budgets):
        with Worker(_MODULE) as worker:
            what = {"model": options.small, "width": options.width, "budget_bytes": budget}
            searches.append(worker.ask(do="search", **what, **common))
    print_table(_SEARCH, [[str(row[name]) for name in _SEARCH] for row in searches])
    write_json(options.json, {"setting": setting, "blocks": blocks, "searches": searches})
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"python -m {_MODULE}", description=__doc__)
    parser.add_argument("--model", choices=MODEL_NAMES, default="vgg16")
    parser.add_argument("--budgets", nargs="*", default=["32MiB", "64MiB", "192MiB"])
    parser.add_argument("--small", choices=MODEL_NAMES, default="vgg11")
    parser.add_argument("--width", type=float, default=0.25, help="of the small network")
    parser.add_argument("--small-budgets", nargs="*", default=["8MiB", "16MiB", "32MiB"])
    parser.add_argument("--repeats", type=int, default=5, help="passes over the data of a block")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser


def _answer(request: dict[str, Any]) -> dict[str, object]:
    torch.set_num_threads(request["threads"])
    chain = build_chain(request["model"], image_shape=(3, 32, 32), classes=10, width=request["width"])
    network = build_network(chain, HeadSettings())
    settings = PlannerSettings(reach=1, maximum_batch=128, batch_tolerance=0)  # seconds alone, over single units
    profile = make_profile(network, settings, request["budget_bytes"], "measured", CPU)
    plan = plan_units(profile, request["budget_bytes"], settings)
    with tempfile.TemporaryDirectory(prefix="neuroflux-plans-") as folder:
        store = UnitStore(Path(folder), network)
        store.initialise(request["seed"])
        trial = _Trial(network, store, request)
        if request["do"] == "blocks":
            return {"rows": [_block_row(network, profile, block, settings, trial) for block in plan.blocks]}
        return _search(profile, plan, settings, trial)


class _Trial:
    """Real trainings of single blocks on noise."""

    def __init__(self, network: LocalNetwork, store: UnitStore, request: dict[str, Any]) -> None:
        self.budget_bytes: int = request["budget_bytes"]
        self._network = network
        self._store = store
        self._repeats = request["repeats"]
        self._seed = request["seed"]

    def run(self, block: Block) -> tuple[float, int | None]:
        """Seconds for one sample, and the peak."""
        shape = self._network.chain.input_shapes[block.first_unit]
        generator = torch.Generator().manual_seed(self._seed)
        count = max(2 * block.batch_size, _IMAGES // block.batch_size * block.batch_size)
        labels = np.random.default_rng(self._seed).integers(0, 10, count)
        source = TensorSource(torch.randn((count, *shape), generator=generator), labels)
        ends: list[float] = []
        settings = TrainSettings(epochs=1 + self._repeats, patience=None, views=1)
        result = train_block(
            self._store, block, source, settings, device=CPU, base_learning_rate=0.05,
            memory_bytes=self.budget_bytes, on_epoch=lambda *_: ends.append(time.perf_counter()),
        )  # fmt: skip
        passes = [end - start for start, end in itertools.pairwise(ends)]
        return statistics.median(passes) / count, result.measured_peak_bytes


def _block_row(
    network: LocalNetwork, profile: NetworkProfile, block: Block, settings: PlannerSettings, trial: _Trial
) -> dict[str, object]:
    rounds = []
    for _ in range(_ROUNDS):
        again = measure_profile(
            network, profile, windows=block.windows, available_bytes=settings.available(trial.budget_bytes),
            budget_bytes=trial.budget_bytes, maximum_batch=settings.maximum_batch,
            minimum_batch=settings.minimum_batch, device=CPU,
        )  # fmt: skip
        seconds, peak = trial.run(block)
        rounds.append((seconds / _steps_seconds(again, block), seconds, peak))
    ratio, measured, _ = sorted(rounds, key=lambda of_round: of_round[0])[_ROUNDS // 2]
    peaks = [peak for _, _, peak in rounds if peak is not None]
    return {
        "budget": f"{trial.budget_bytes / MIB:.0f} MiB",
        "units": f"{block.first_unit}-{block.last_unit}",
        "batch": block.batch_size,
        "predicted ms": round(1e3 * measured / ratio, 3),
        "measured ms": round(1e3 * measured, 3),
        "ratio": round(ratio, 2),
        "predicted MiB": round(block.predicted_peak_bytes / MIB, 1),
        "measured MiB": round(max(peaks) / MIB, 1) if peaks else None,
        "ratio ": round(max(peaks) / block.predicted_peak_bytes, 3) if peaks else None,
    }


def _search(profile: NetworkProfile, plan: Plan, settings: PlannerSettings, trial: _Trial) -> dict[str, object]:
    windows = [window for block in plan.blocks for window in block.windows]
    measured: dict[tuple[tuple[Window, ...], int], float] = {}

    def seconds(block: Block) -> float:
        key = (block.windows, block.batch_size)
        if key not in measured:
            cache = block.predicted_seconds_per_sample - _steps_seconds(profile, block)
            measured[key] = trial.run(block)[0] + cache
        return measured[key]

    fastest: dict[tuple[int, int], tuple[float, Block]] = {}
    for start, end in itertools.combinations(range(len(windows) + 1), 2):
        blocks = _every_batch(profile, tuple(windows[start:end]), settings, trial.budget_bytes)
        if blocks:
            fastest[start, end] = min(((seconds(block), block) for block in blocks), key=lambda option: option[0])
    plans = []
    for cuts in itertools.product((False, True), repeat=len(windows) - 1):
        edges = [0, *(cut for cut, is_cut in enumerate(cuts, 1) if is_cut), len(windows)]
        parts = list(itertools.pairwise(edges))
        if all(part in fastest for part in parts):
            plans.append((sum(fastest[part][0] for part in parts), [fastest[part][1] for part in parts]))
    best, best_blocks = min(plans, key=lambda option: option[0])
    chosen = sum(seconds(block) for block in plan.blocks)
    return {
        "budget": f"{trial.budget_bytes / MIB:.0f} MiB",
        "plans": f"{len(plans)} cuts, {len(measured)} blocks",
        "chosen ms": round(1e3 * chosen, 3),
        "best ms": round(1e3 * best, 3),
        "ratio": round(chosen / best, 3),
        "chosen": _describe(plan.blocks),
        "best": _describe(best_blocks),
    }


def _every_batch(
    profile: NetworkProfile, windows: tuple[Window, ...], settings: PlannerSettings, budget_bytes: int
) -> list[Block]:
    """The run of windows at every power of two that fits, and at the largest batch."""
    found: list[Block] = []

    def fits(size: int) -> bool:
        block = make_block(profile, windows, budget_bytes, replace(settings, minimum_batch=size, maximum_batch=size))
        if block is not None:
            found.append(block)
        return block is not None

    size = settings.minimum_batch
    while size <= settings.maximum_batch and fits(size):
        size *= 2
    between = range(min(size, settings.maximum_batch + 1) - 1, size // 2, -1)
    next((size for size in between if fits(size)), None)
    return found


def _steps_seconds(profile: NetworkProfile, block: Block) -> float:
    """Predicted for one sample, without the cache."""
    steps = [profile.windows[window].seconds_per_step(block.batch_size, profile.speed) for window in block.windows]
    return sum(steps) / block.batch_size


def _describe(blocks: Sequence[Block]) -> str:
    return " | ".join(f"{block.first_unit}-{block.last_unit} x {block.batch_size}" for block in blocks)


if __name__ == "__main__":
    sys.exit(main())
