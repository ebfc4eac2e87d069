"""One whole training on real images on a GPU: accuracy of every exit, seconds and peak, against backpropagation.

Run from the repository's root: ``python -m benchmarks.gpu_training --data FOLDER``, where the folder holds CIFAR-10's
binary archive (``cifar-10-binary.tar.gz``) or is one that ``neuroflux-fl train`` reads. A tenth of the training images
is kept for validation; test images decide nothing. It has run on a CPU only, at small size, and not yet on a GPU.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
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
from benchmarks.report import WORKER_FLAG, Worker, describe_setting, print_setting, print_table, serve, write_json
from neuroflux_fl.arm_run import open_trainer, split_images
from neuroflux_fl.arm_tuning import TunedArm
from neuroflux_fl.arms import ARMS, NEUROFLUX, Arm, ArmSetting
from neuroflux_fl.block_training import HEAD_PASSES, TrainSettings
from neuroflux_fl.compute import COMPUTE_PRECISIONS
from neuroflux_fl.data import ImageData, load_data
from neuroflux_fl.data.named import CIFAR10
from neuroflux_fl.device_training import TrainingResult
from neuroflux_fl.evaluation import Score
from neuroflux_fl.exits import choose_exit, exit_parameters
from neuroflux_fl.heads import HeadSettings
from neuroflux_fl.machine_speed import measure_speed
from neuroflux_fl.models import MODEL_NAMES
from neuroflux_fl.plan import Block
from neuroflux_fl.planning import PlannerSettings
from neuroflux_fl.sizes import MIB, parse_bytes

MODULE = "benchmarks.gpu_training"
NO_LIMIT = "none"
_HEADER = ("method", "exit", "parameters", "validation %", "test %", "error %", "")
_COSTS = ("method", "seconds", "train", "cache", "evaluate", "profile", "peak MiB", "retries", "epochs")


def main(arguments: Sequence[str] | None = None) -> int:
    """Train method after method, each in a process of its own, and print."""
    options = _parser().parse_args(arguments)
    if options.worker:
        serve(_answer)
        return 0
    asked = {name: value for name, value in vars(options).items() if name not in ("worker", "json", "methods")}
    setting = describe_setting(**(asked | start(options.device)))
    print_setting(setting)
    trained: list[dict[str, Any]] = []
    for method in options.methods:
        with Worker(MODULE) as worker:
            trained.append(worker.ask(method=method, **asked))
        write_json(options.json, {"setting": setting, "results": trained})
    print_table(_HEADER, [line for one in trained for line in _exit_lines(one)])
    print_table(_COSTS, [_cost_line(one) for one in trained if not one["refused"]])
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=__doc__)
    parser.add_argument("--data", default=CIFAR10.name, metavar="FOLDER", help="or a name, which may be downloaded")
    parser.add_argument("--model", choices=MODEL_NAMES, default="vgg11")
    parser.add_argument("--methods", nargs="+", choices=list(ARMS), default=[NEUROFLUX, "backprop"])
    parser.add_argument("--precision", choices=list(COMPUTE_PRECISIONS), default="float32")
    parser.add_argument("--budget", default=NO_LIMIT, help=f"a size, or {NO_LIMIT}")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument(
        "--patience", type=int, default=0, help="epochs without a better validation accuracy; 0 trains all epochs"
    )
    parser.add_argument("--views", type=int, default=8, help="cached augmentations, of 50000 images each")
    parser.add_argument("--standard-errors", type=float, default=1.0, help="that a smaller exit may be behind")
    parser.add_argument("--train-limit", type=int)
    parser.add_argument("--test-limit", type=int)
    add_device_options(parser)
    parser.add_argument(WORKER_FLAG, action="store_true", help=argparse.SUPPRESS)
    return parser


def load_images(data: str, *, train_limit: int | None, test_limit: int | None, seed: int) -> ImageData:
    """CIFAR-10 from a folder that holds its archive, or whatever else ``load_data`` reads.

    Raises:
        DataError: there is no such data.
    """
    folder = Path(data).expanduser()
    has_archive = (folder / CIFAR10.file).is_file()
    return load_data(
        CIFAR10.name if has_archive else data,
        train_limit=train_limit,
        test_limit=test_limit,
        seed=seed,
        download_folder=folder if has_archive else None,
    )


def _answer(request: dict[str, Any]) -> Any:
    """The worker's side: one method trained."""
    device = find_device(request["device"])
    prepare_process(device, request["threads"])
    names = ("train_limit", "test_limit", "seed")
    images = load_images(request["data"], **{name: request[name] for name in names})
    setting = ArmSetting(
        model=request["model"],
        image_shape=images.image_shape,
        classes=images.classes,
        width=request["width"],
        head=HeadSettings(kind=request["head"]),
        planner=PlannerSettings(
            reach=request["reach"],
            progressive=True,
            maximum_batch=request["maximum_batch"],
            passes=request["epochs"],
            views=request["views"],
        ),
        precision=request["precision"],
    )
    arm = Arm(request["method"], setting, measure_speed(device))
    budget = None if request["budget"] == NO_LIMIT else parse_bytes(request["budget"])
    limit_memory(device, budget)
    how, row = tune_arm(arm, budget, device)
    row["budget_bytes"] = budget
    if how is None:
        return row
    return row | _train(arm, how, images, request, device)


def _train(arm: Arm, how: TunedArm, images: ImageData, request: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Train every block to its end, then score the exits that were trained."""
    settings = TrainSettings(
        epochs=request["epochs"],
        patience=request["patience"] or None,
        head_passes=HEAD_PASSES if arm.name == NEUROFLUX else 0,
        views=request["views"],
        optimizer=arm.optimizer,
        compute=how.compute,
        seed=request["seed"],
    )
    data = split_images(images, request["seed"], smallest=arm.setting.planner.minimum_batch)
    held = held_bytes(device)
    with open_trainer(arm, how, data, settings, device) as trainer:
        result = trainer.train(how.plan, on_epoch=_tell)
        seconds = {**trainer.stopwatch.seconds, "profile": how.tuning_seconds}
        trained = sorted(unit for done in result.blocks for unit in done.exits)
        last = len(arm.network) - 1
        validation_scores = trainer.score_exits(0, last)
        test_scores = trainer.score_exits(0, last, data=images.test)
    scores = {unit: validation_scores[unit] for unit in trained}
    return {
        "seconds": {**seconds, "total": sum(seconds.values())},
        "peak_bytes": _peak_bytes(result, held),
        "out_of_memory_retries": sum(block.out_of_memory_retries for block in result.blocks),
        "epochs": [block.epochs for block in result.blocks],
        "chosen_exit": choose_exit(scores, request["standard_errors"]),
        "exits": [
            {
                "unit": unit,
                "parameters": exit_parameters(arm.network, unit),
                "validation_accuracy": scores[unit].accuracy,
                "test_accuracy": test_scores[unit].accuracy,
            }
            for unit in trained
        ],
    }


def _tell(block: Block, epoch: int, loss: float, score: Score | None) -> None:
    accuracy = "" if score is None else f", validation {100 * score.accuracy:.2f} %"
    print(
        f"units {block.first_unit} to {block.last_unit}, epoch {epoch}: loss {loss:.4f}{accuracy}",
        file=sys.stderr, flush=True,
    )  # fmt: skip


def _peak_bytes(result: TrainingResult, held: int) -> int | None:
    """What was held before training included."""
    peaks = [result.forward_peak_bytes, *(block.measured_peak_bytes for block in result.blocks)]
    return max((peak + held for peak in peaks if peak is not None), default=None)


def _exit_lines(one: dict[str, Any]) -> list[tuple[str, ...]]:
    if one["refused"]:
        return [(one["method"], "", "", "", "", "", one["refused"])]
    return [
        (
            one["method"], str(found["unit"]), f"{found['parameters']:,}", f"{100 * found['validation_accuracy']:.2f}",
            f"{100 * found['test_accuracy']:.2f}", f"{100 - 100 * found['test_accuracy']:.2f}",
            "chosen" if found["unit"] == one["chosen_exit"] else "",
        )
        for found in one["exits"]
    ]  # fmt: skip


def _cost_line(one: dict[str, Any]) -> tuple[str, ...]:
    seconds, peak = one["seconds"], one["peak_bytes"]
    parts = (f"{seconds[name]:.1f}" for name in ("total", "train", "cache", "evaluate", "profile"))
    epochs = ", ".join(map(str, one["epochs"]))
    return (
        one["method"], *parts, "" if peak is None else f"{peak / MIB:.1f}", str(one["out_of_memory_retries"]), epochs
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
