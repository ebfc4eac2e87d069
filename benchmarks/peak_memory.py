"""Planned against measured peak memory of every block, under several budgets; exit code 1 where one was overrun.

Run from the repository's root: ``python -m benchmarks.peak_memory``. Each model and budget gets a process of its own.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.report import (
    WORKER_FLAG,
    Worker,
    describe_setting,
    print_setting,
    print_table,
    serve,
    write_json,
)
from neuroflux_fl.arm_run import noise
from neuroflux_fl.block_training import TrainSettings
from neuroflux_fl.device_memory import PeakMeter, warm_up_kernels
from neuroflux_fl.device_training import CacheSettings, DeviceData, DeviceTrainer
from neuroflux_fl.errors import BudgetError
from neuroflux_fl.heads import HEAD_KINDS, HeadSettings
from neuroflux_fl.local_network import LocalNetwork, build_network
from neuroflux_fl.machine_speed import MachineSpeed
from neuroflux_fl.memory_allocator import return_freed_memory_at_once
from neuroflux_fl.models import MODEL_NAMES, build_chain
from neuroflux_fl.plan import Block
from neuroflux_fl.planning import PlannerSettings, plan_units
from neuroflux_fl.profiling import profile_network
from neuroflux_fl.sizes import MIB
from neuroflux_fl.unit_store import UnitStore

MODULE = "benchmarks.peak_memory"
IMAGE_SHAPE = (3, 32, 32)
CLASSES = 10
CPU = torch.device("cpu")
PLANNER = PlannerSettings(progressive=True, maximum_batch=256, batch_tolerance=0, views=1)
_STEPS = 3
_FULL_ENOUGH = 0.99
_HEADER = ("model", "budget MiB", "units", "batch", "predicted MiB", "measured MiB", "measured/predicted", "within")


def make_network(model: str, head: str) -> LocalNetwork:
    """A model for small images with heads of one kind."""
    return build_network(build_chain(model, image_shape=IMAGE_SHAPE, classes=CLASSES), HeadSettings(kind=head))


def make_trainer(
    network: LocalNetwork, folder: Path, *, samples: int, budget_bytes: int | None, seed: int
) -> DeviceTrainer:
    """A device with random images, fresh weights, an empty cache and no validation data, all under ``folder``."""
    store = UnitStore(folder / "store", network)
    store.initialise(seed)
    data = DeviceData(
        train=noise(samples, IMAGE_SHAPE, CLASSES, seed),
        validation=noise(0, IMAGE_SHAPE, CLASSES, seed),
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        horizontal_flip=True,
    )
    return DeviceTrainer(
        network,
        store,
        data,
        cache=CacheSettings(folder=folder / "cache"),
        settings=TrainSettings(epochs=1, head_passes=1, views=1, seed=seed),
        planner=PLANNER,
        memory_bytes=budget_bytes,
        device=CPU,
    )


def sample_count(batch_sizes: Sequence[int]) -> int:
    """The fewest samples for at least three steps of every block with all batches nearly as large as planned.

    Training cuts the data into batches of one size, which is smaller than planned where the count does not divide.
    """
    largest = max(batch_sizes)

    def fullness(count: int) -> float:
        return min(count // -(-count // size) / size for size in batch_sizes)

    counts = range(_STEPS * largest, (_STEPS + 1) * largest + 1)
    return max(counts, key=lambda count: (min(fullness(count), _FULL_ENOUGH), -count))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and say by the exit code whether every budget was kept."""
    options = _parser().parse_args(arguments)
    if options.worker:
        serve(_answer)
        return 0
    setting = describe_setting(head=options.head, threads=options.threads, seed=options.seed)
    print_setting(setting)
    traces = [_ask(options, do="trace", model=model) for model in options.models]
    print_table(
        ("model", "windows", "trace s", "growth while tracing MiB"),
        [(t["model"], str(t["windows"]), f"{t['seconds']:.1f}", _mib(t["growth_bytes"])) for t in traces],
    )
    cases = [_train(options, model, budget) for model in options.models for budget in options.budgets]
    print_table(_HEADER, [row for case in cases for row in _rows(case)])
    overrun = _overruns(traces, cases)
    _print_verdict(cases, overrun)
    write_json(options.json, {"setting": setting, "traces": traces, "cases": cases, "overrun": overrun})
    return 1 if overrun else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=__doc__)
    parser.add_argument("--models", nargs="+", choices=MODEL_NAMES, default=["vgg11", "vgg16", "resnet18"])
    parser.add_argument("--budgets", nargs="+", type=int, default=[40, 64, 128, 256], metavar="MIB")
    parser.add_argument("--head", choices=HEAD_KINDS, default="conv")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument(WORKER_FLAG, action="store_true", help=argparse.SUPPRESS)
    return parser


def _train(options: argparse.Namespace, model: str, budget_mib: int) -> Any:
    print(f"training {model} in {budget_mib} MiB", file=sys.stderr, flush=True)
    return _ask(options, do="train", model=model, budget_mib=budget_mib)


def _ask(options: argparse.Namespace, **request: object) -> Any:
    with Worker(MODULE) as worker:
        return worker.ask(head=options.head, threads=options.threads, seed=options.seed, **request)


def _rows(case: dict[str, Any]) -> list[tuple[str, ...]]:
    start = (case["model"], str(case["budget_mib"]))
    if case["refused"]:
        return [(*start, "refused", "", "", "", "", "")]
    rows: list[tuple[str, ...]] = [
        (
            *start, block["units"], str(block["batch"]), _mib(block["predicted_bytes"]), _mib(block["measured_bytes"]),
            f"{block['measured_bytes'] / block['predicted_bytes']:.3f}", _within(block["measured_bytes"], case),
        )
        for block in case["blocks"]
    ]  # fmt: skip
    if len(case["blocks"]) > 1 or case["blocks"][0]["first_unit"] > 0:
        forward = case["forward_bytes"]
        rows.append((*start, "forward", "", "", _mib(forward), "", _within(forward, case)))
    if case["untrained"]:
        rows.append((*start, "untrained " + _short(case["untrained"]), "", "", "", "", ""))
    return rows


def _overruns(traces: Sequence[dict[str, Any]], cases: Sequence[dict[str, Any]]) -> list[str]:
    """Every peak above its budget; a trace's above the smallest budget, because a device traces before it trains."""
    smallest = min((case["budget_mib"] for case in cases), default=0)
    overrun = [f"tracing {t['model']}" for t in traces if t["growth_bytes"] > smallest * MIB]
    for case in cases:
        peaks = [(f"units {block['units']}", block["measured_bytes"]) for block in case["blocks"]]
        peaks.append(("forward", case["forward_bytes"]))
        name = f"{case['model']} in {case['budget_mib']} MiB"
        overrun += [f"{name}, {what}" for what, measured in peaks if _within(measured, case) == "no"]
    return overrun


def _print_verdict(cases: Sequence[dict[str, Any]], overrun: Sequence[str]) -> None:
    ratios = [block["measured_bytes"] / block["predicted_bytes"] for case in cases for block in case["blocks"]]
    if ratios:
        print(f"measured/predicted: highest {max(ratios):.3f}, lowest {min(ratios):.3f}, over {len(ratios)} blocks")
    print("every peak is within its budget" if not overrun else "over budget: " + "; ".join(overrun))


def _within(measured_bytes: int, case: dict[str, Any]) -> str:
    return "yes" if measured_bytes <= case["budget_mib"] * MIB else "no"


def _answer(request: dict[str, Any]) -> dict[str, object]:
    torch.set_num_threads(request["threads"])
    return_freed_memory_at_once()
    warm_up_kernels()
    return _answer_trace(request) if request["do"] == "trace" else _answer_train(request)


def _answer_trace(request: dict[str, Any]) -> dict[str, object]:
    """Seconds and memory of tracing alone; a narrow network first, so that the tracer's own code is loaded."""
    narrow = build_chain("vgg11", image_shape=IMAGE_SHAPE, classes=CLASSES, width=0.125)
    profile_network(build_network(narrow, HeadSettings(kind=request["head"])), speed=MachineSpeed())
    network = make_network(request["model"], request["head"])
    meter = PeakMeter(CPU)
    meter.start()
    started = time.perf_counter()
    profile = profile_network(network, speed=MachineSpeed())
    windows = len({*profile.windows, profile.whole.window})
    seconds = time.perf_counter() - started
    return {"model": request["model"], "windows": windows, "seconds": seconds, "growth_bytes": _known(meter)}


def _answer_train(request: dict[str, Any]) -> dict[str, object]:
    # A fixed speed, not a measured one: every machine checks the same plans.
    network = make_network(request["model"], request["head"])
    budget = request["budget_mib"] * MIB
    case = {"model": request["model"], "budget_mib": request["budget_mib"]}
    try:
        plan = plan_units(profile_network(network, speed=MachineSpeed()), budget, PLANNER)
    except BudgetError as error:
        return {**case, "refused": str(error), "blocks": [], "forward_bytes": 0, "untrained": []}
    samples = sample_count([block.batch_size for block in plan.blocks])
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(network, Path(folder), samples=samples, budget_bytes=budget, seed=request["seed"])
        result = trainer.train(plan)
    blocks = [
        {
            "first_unit": done.block.first_unit,
            "units": _units(done.block),
            "batch": done.block.batch_size,
            "steps": done.steps,
            "predicted_bytes": done.block.predicted_peak_bytes,
            "measured_bytes": done.measured_peak_bytes,
            "out_of_memory_retries": done.out_of_memory_retries,
        }
        for done in result.blocks
    ]
    return {
        **case,
        "refused": "",
        "samples": samples,
        "blocks": blocks,
        "forward_bytes": result.forward_peak_bytes,
        "untrained": list(plan.untrained_units),
    }


def _known(meter: PeakMeter) -> int:
    peak = meter.peak_bytes()
    if peak is None:
        raise SystemExit("Peak memory cannot be measured here: run on Linux.")
    return peak


def _units(block: Block) -> str:
    return _short(list(block.units))


def _short(units: Sequence[int]) -> str:
    if len(units) > 1 and units[-1] - units[0] == len(units) - 1:
        return f"{units[0]}-{units[-1]}"
    return ",".join(map(str, units))


def _mib(size: int) -> str:
    return f"{size / MIB:.1f}"


if __name__ == "__main__":
    sys.exit(main())
