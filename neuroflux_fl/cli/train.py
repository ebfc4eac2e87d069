"""``neuroflux-fl train``: one device, from data to a saved exit."""

from __future__ import annotations

import math
import tempfile
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from neuroflux_fl.cli.output import (
    check_precision,
    log_progress,
    make_progress,
    parse_budget,
    percent_cell,
    print_exits,
    print_json,
    print_note,
    result_console,
    size_cell,
)
from neuroflux_fl.cli.plan import method_plan, plan_fields, print_blocks
from neuroflux_fl.cli.threads import check_threads
from neuroflux_fl.output_folder import prepare_folder, write_text
from neuroflux_fl.stop_request import StopRequest, interrupted_by_signals

if TYPE_CHECKING:
    from neuroflux_fl.block_training import BlockResult
    from neuroflux_fl.device_training import DeviceTrainer, TrainingResult
    from neuroflux_fl.plan import Plan


@interrupted_by_signals()
def train(
    model: Annotated[str, typer.Option(help="vgg11, vgg13, vgg16, vgg19, resnet18 or resnet34.")] = "vgg11",
    data: Annotated[
        str, typer.Option(help="digits, cifar10, cifar100, fashion-mnist, or a folder of images or Parquet files.")
    ] = "digits",
    budget: Annotated[str, typer.Option(help="Memory for training, for example 64MiB, or none.")] = "64MiB",
    epochs: Annotated[int, typer.Option(help="Passes over the data for each block, at most.")] = 8,
    out: Annotated[Path | None, typer.Option(help="Folder for the exit and run.json.")] = None,
    method: Annotated[str, typer.Option(help="neuroflux, or backprop as the baseline.")] = "neuroflux",
    depth: Annotated[
        int,
        typer.Option(help="With --method backprop: train only this many units, up to that exit; 0 is all."),
    ] = 0,
    width: Annotated[float, typer.Option(help="Factor on the channels of a VGG.")] = 1.0,
    norm: Annotated[str, typer.Option(help="batch or group.")] = "batch",
    head: Annotated[
        str, typer.Option(help="Kind of the auxiliary heads: compact, conv, separable or pooled.")
    ] = "compact",
    head_rule: Annotated[str, typer.Option(help="adaptive or fixed number of filters.")] = "adaptive",
    head_filters: Annotated[int, typer.Option(help="Filters of a head; adaptive: the most allowed.")] = 64,
    planner: Annotated[str, typer.Option(help="fastest or threshold.")] = "fastest",
    reach: Annotated[
        int, typer.Option(help="Units that one gradient passes through, at most; 0: as memory allows, up to a quarter.")
    ] = 0,
    maximum_batch: Annotated[int, typer.Option(help="Largest batch size.")] = 128,
    learning_rate: Annotated[float, typer.Option(help="At batch 64; grows linearly with the batch.")] = 0.05,
    precision: Annotated[str, typer.Option(help="What to compute in: float32 or bfloat16.")] = "float32",
    channels_last: Annotated[bool, typer.Option(help="Keep activations channels last; try which is faster.")] = False,
    patience: Annotated[int, typer.Option(help="Epochs without improvement that end a block.")] = 3,
    depth_patience: Annotated[
        int, typer.Option(help="Blocks without a better exit after which deeper ones are left out; 0 trains all.")
    ] = 2,
    head_passes: Annotated[
        int, typer.Option(help="Passes in which heads inside windows learn from frozen units; 0: exits at ends only.")
    ] = 2,
    similarity: Annotated[float, typer.Option(help="Weight of the similarity loss in local losses.")] = 5.0,
    views: Annotated[int, typer.Option(help="Cached views of the data; 1 is no augmentation.")] = 4,
    cache_quota: Annotated[str | None, typer.Option(help="Largest size of the cache, for example 500MiB.")] = None,
    cache_precision: Annotated[str, typer.Option(help="float16 or float32.")] = "float16",
    standard_errors: Annotated[
        float,
        typer.Option(help="How many standard errors of validation a smaller exit may be behind; 0: the best."),
    ] = 1.0,
    validation_fraction: Annotated[float, typer.Option(help="Share of the images kept for validation.")] = 0.1,
    image_side: Annotated[int, typer.Option(help="Resize images to this many pixels; 0 keeps their size.")] = 0,
    train_limit: Annotated[int, typer.Option(help="Use this many training images; 0 uses all.")] = 0,
    test_limit: Annotated[int, typer.Option(help="Use this many test images; 0 uses all.")] = 0,
    profile: Annotated[str, typer.Option(help="traced or measured.")] = "traced",
    threads: Annotated[int, typer.Option(help="Threads of torch; 0 leaves them alone.")] = 0,
    seed: Annotated[int, typer.Option(help="Of weights, order and augmentation.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")] = False,
) -> None:
    """Train on this device alone, block after block, inside a memory budget.

    Shows the plan with the peak that each block really held, every exit's accuracy and size, and where the time went.
    The test images are used only for the figures; the exit is chosen on validation images. Where Ctrl-C, SIGTERM,
    SIGHUP or an error ends training, the blocks that are finished make an exit all the same.

    Example: neuroflux-fl train --model vgg11 --width 0.5 --data digits --budget 24MiB --epochs 6 --out runs/one
    """
    import numpy as np
    import torch

    from neuroflux_fl.block_training import TrainSettings
    from neuroflux_fl.cli.profiles import make_profile
    from neuroflux_fl.compute import ComputeSettings
    from neuroflux_fl.data import load_data, split_validation
    from neuroflux_fl.device_training import CacheSettings, DeviceData, DeviceTrainer
    from neuroflux_fl.errors import DataError, UsageError
    from neuroflux_fl.exits import check_standard_errors
    from neuroflux_fl.heads import HeadSettings
    from neuroflux_fl.local_network import build_network
    from neuroflux_fl.local_step import OptimizerSettings
    from neuroflux_fl.models import build_chain
    from neuroflux_fl.planning import PlannerSettings
    from neuroflux_fl.unit_store import UnitStore

    started = time.perf_counter()
    budget_bytes = parse_budget(budget)
    quota = parse_budget(cache_quota)
    if not 0 < validation_fraction < 1:
        raise UsageError(f"Validation fraction {validation_fraction} is not allowed: give a share between 0 and 1.")
    check_standard_errors(standard_errors)
    check_threads(threads)
    if depth < 0 or (depth and method != "backprop"):
        raise UsageError(
            f"Depth {depth} with method {method!r} is not allowed: give 1 or more, with --method backprop."
        )
    smallest = 1 if norm == "group" else 2
    if maximum_batch < smallest:
        raise UsageError(f"Maximum batch {maximum_batch} is too small: norm {norm!r} needs at least {smallest}.")
    compute = ComputeSettings(precision=precision, channels_last=channels_last)
    check_precision(precision)
    train_settings = TrainSettings(
        epochs=epochs,
        patience=patience,
        depth_patience=depth_patience or None,
        head_passes=head_passes if method == "neuroflux" else 0,
        views=views,
        optimizer=OptimizerSettings(similarity=similarity if method == "neuroflux" else 0.0),
        compute=compute,
        seed=seed,
    )
    if threads:
        torch.set_num_threads(threads)
    if out is not None:
        prepare_folder(out)
    images = load_data(
        data,
        image_side=image_side or None,
        train_limit=train_limit or None,
        test_limit=test_limit or None,
        seed=seed,
    )
    chain = build_chain(model, image_shape=images.image_shape, classes=images.classes, norm=norm, width=width)
    network = build_network(chain, HeadSettings(kind=head, rule=head_rule, filters=head_filters), norm)
    rows = np.arange(len(images.train))
    training, validation = split_validation(rows, images.train.labels, validation_fraction, seed)
    if len(training) < smallest:
        raise DataError(f"Data {data!r} leaves {len(training)} images to train on: give at least {smallest}.")
    settings = PlannerSettings(
        planner=planner,
        reach=reach,
        progressive=True,
        minimum_batch=smallest,
        maximum_batch=max(smallest, min(maximum_batch, len(training) // 4)),
        learning_rate=learning_rate,
        maximum_learning_rate=4 * learning_rate,
        passes=epochs,
        views=views,
    )
    profiling = time.perf_counter()
    made = make_profile(
        network,
        settings,
        budget_bytes,
        profile,
        torch.device("cpu"),
        depth=depth,
        optimizer=train_settings.optimizer,
        compute=compute,
    )
    plan = method_plan(made, budget_bytes, settings, method)
    profile_seconds = time.perf_counter() - profiling
    with tempfile.TemporaryDirectory(prefix="neuroflux-train-", dir=out) as folder:
        store = UnitStore(Path(folder) / "weights", network)
        store.initialise(seed)
        trainer = DeviceTrainer(
            network,
            store,
            DeviceData.of(images, training, validation),
            cache=CacheSettings(folder=Path(folder) / "cache", quota_bytes=quota, precision=cache_precision),
            settings=train_settings,
            planner=settings,
            memory_bytes=budget_bytes,
            device=torch.device("cpu"),
        )
        trainer.stopwatch.add("profile", profile_seconds)
        result, ended = _run(trainer, plan, epochs)
        for done in result.blocks:
            if not math.isfinite(done.final_loss):
                units = f"{done.block.first_unit} to {done.block.last_unit}"
                print_note(f"Note: the loss of units {units} is no number any more: choose a smaller --learning-rate.")
        with StopRequest() as stop:  # what is trained is saved first, also where somebody asks twice
            summary = _summarise(trainer, plan, result, images.test, standard_errors)
            summary = {
                "model": model, "data": images.name, "method": method, "seed": seed, "budget_bytes": budget_bytes,
                "interrupted": ended is not None, **summary, "total_seconds": time.perf_counter() - started,
            }  # fmt: skip
            if out is not None:
                _save(out, trainer, summary, width=width, class_names=images.class_names)
    if json:
        print_json(summary)
    else:
        _print(summary)
    if ended is None and stop.received is not None:
        ended = KeyboardInterrupt()
    if ended is not None:
        where = "only shown here: --out saves it" if out is None else f"in {out}"
        print_note(f"Training ended early; what was finished is {where}.")
        raise ended


def _run(trainer: DeviceTrainer, plan: Plan, epochs: int) -> tuple[TrainingResult, BaseException | None]:
    """What training came to, and what ended it too early, if anything did: then that is the blocks finished before.

    Raises:
        BaseException: that, before any block was finished.
    """
    from neuroflux_fl.device_training import TrainingResult
    from neuroflux_fl.errors import StorageError

    finished: list[BlockResult] = []
    with make_progress() as progress:
        task = progress.add_task("training", total=epochs * len(plan.blocks))
        order = {block.first_unit: index for index, block in enumerate(plan.blocks)}

        def on_epoch(block: Any, epoch: int, loss: float, score: Any) -> None:
            accuracy = f", validation {percent_cell(score.accuracy)}" if score is not None else ""
            units, reached = f"units {block.first_unit}-{block.last_unit}", f"loss {loss:.3f}{accuracy}"
            progress.update(task, completed=order[block.first_unit] * epochs + epoch, description=f"{units}: {reached}")
            log_progress(f"{units}, pass {epoch}/{epochs}: {reached}")

        try:
            return trainer.train(plan, on_epoch=on_epoch, on_block=finished.append), None
        except (KeyboardInterrupt, Exception) as error:
            if not finished:
                raise
            traceback.clear_frames(error.__traceback__)  # the tensors of the block that was not finished
            ended = error
    if isinstance(ended, (StorageError, OSError)):
        trainer.cache.keep_only(())  # room for the exit, where the disk is full
    return TrainingResult(blocks=tuple(finished), forward_peak_bytes=None, deadline_reached=False), ended


def _summarise(
    trainer: DeviceTrainer, plan: Plan, result: TrainingResult, test: Any, standard_errors: float
) -> dict[str, Any]:
    from neuroflux_fl.exits import choose_exit, exit_parameters

    heads = sorted(unit for done in result.blocks for unit in done.exits)
    validation = trainer.score_exits(0, heads[-1])
    tested = trainer.score_exits(0, heads[-1], data=test)
    chosen = choose_exit({unit: validation[unit] for unit in heads}, standard_errors)
    exits = [
        {
            "unit": unit,
            "validation_accuracy": validation[unit].accuracy,
            "test_accuracy": tested[unit].accuracy,
            "parameters": exit_parameters(trainer.network, unit),
        }
        for unit in heads
    ]
    fields = plan_fields(plan)
    for row, block in zip(fields["blocks"], result.blocks, strict=False):  # deeper blocks may be left out
        row |= {
            "measured_peak_bytes": block.measured_peak_bytes,
            "final_batch_size": block.final_batch_size,
            "out_of_memory_retries": block.out_of_memory_retries,
            "epochs": block.epochs,
            "samples": block.samples,
            "samples_per_second": block.samples / block.seconds,
        }
    return {
        **fields,
        "exits": exits,
        "chosen_exit": next(row for row in exits if row["unit"] == chosen),
        "left_out_units": [unit for block in plan.blocks[len(result.blocks) :] for unit in block.units],
        "forward_peak_bytes": result.forward_peak_bytes,
        "seconds": dict(trainer.stopwatch.seconds),
        "cache": {
            "hits": trainer.cache.hits,
            "written_bytes": trainer.cache.written_bytes,
            "refusals": trainer.cache.refusals,
        },
    }


def _save(out: Path, trainer: DeviceTrainer, summary: dict[str, Any], *, width: float, class_names: Any) -> None:
    import json

    from neuroflux_fl.exits import save_exit

    chosen = summary["chosen_exit"]
    save_exit(
        out / "exit",
        trainer.network,
        trainer.store,
        chosen["unit"],
        width=width,
        class_names=class_names,
        mean=trainer.data.mean,
        std=trainer.data.std,
        details={"validation_accuracy": chosen["validation_accuracy"], "test_accuracy": chosen["test_accuracy"]},
    )
    write_text(out / "run.json", json.dumps(summary, indent=2) + "\n")


def _print(summary: dict[str, Any]) -> None:
    print_blocks(summary)
    print_exits(summary)
    if summary["left_out_units"]:
        left_out = summary["left_out_units"]
        why = "training ended before them" if summary["interrupted"] else "more depth no longer paid"
        result_console.print(f"Units {left_out[0]} to {left_out[-1]} were left out: {why}.")
    seconds = ", ".join(f"{name} {value:.1f} s" for name, value in summary["seconds"].items())
    cache = summary["cache"]
    result_console.print(f"Time: {seconds}. Cache: {size_cell(cache['written_bytes'])} written.")
    for reason in sorted(set(cache["refusals"])):
        result_console.print(f"Cache not used everywhere: {reason}; activations were computed again instead.")
