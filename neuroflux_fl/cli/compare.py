"""``neuroflux-fl compare``: methods of training side by side, under the same budgets, in the same code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from neuroflux_fl.cli.compare_view import comparison_fields, print_comparisons
from neuroflux_fl.cli.output import (
    check_precision,
    log_progress,
    make_progress,
    parse_image_shape,
    print_json,
)
from neuroflux_fl.cli.threads import check_threads
from neuroflux_fl.errors import UsageError
from neuroflux_fl.sizes import MIB
from neuroflux_fl.stop_request import interrupted_by_signals

if TYPE_CHECKING:
    from neuroflux_fl.arm_worker import DataRequest
    from neuroflux_fl.arms import ArmSetting
    from neuroflux_fl.comparison import ArmResult, Work


@interrupted_by_signals()
def compare(
    model: Annotated[
        str, typer.Option(help="vgg11, vgg13, vgg16, vgg19, resnet18, resnet34; several with commas.")
    ] = "vgg16",
    image: Annotated[
        str, typer.Option(help="Channels x height x width of one image; with --data, the data's.")
    ] = "3x32x32",
    classes: Annotated[int, typer.Option(help="Number of classes; with --data, the data's.")] = 10,
    budgets: Annotated[
        str,
        typer.Option(
            help="With commas: sizes like 64MiB; smallest (the least under which backpropagation runs), 1.2x (of it); "
            "none."
        ),
    ] = "smallest,1.2x,1.5x,none",
    methods: Annotated[str, typer.Option(help="With commas, see above; all.")] = "all",
    precision: Annotated[str, typer.Option(help="Of all methods: float32 or bfloat16.")] = "float32",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Predict only, and show every method's floor.")] = False,
    seconds: Annotated[float, typer.Option(help="About how long one timed pass lasts.")] = 10.0,
    repeats: Annotated[int, typer.Option(help="Timed passes of each method, in turn; the median counts.")] = 3,
    train: Annotated[bool, typer.Option("--train", help="Train on --data instead, and compare accuracy.")] = False,
    data: Annotated[str, typer.Option(help="digits, cifar10, cifar100, fashion-mnist, or a folder.")] = "",
    epochs: Annotated[int, typer.Option(help="With --train: passes for each block, at most.")] = 8,
    minutes: Annotated[
        float, typer.Option(help="With --train: as many epochs as fill this time; 0 is --epochs.")
    ] = 0.0,
    target: Annotated[float, typer.Option(help="With --train: show the time to this accuracy, 0 to 1.")] = 0.0,
    patience: Annotated[int, typer.Option(help="With --train: epochs without improvement that end a block.")] = 3,
    depth_patience: Annotated[
        int, typer.Option(help="With --train: blocks without a better exit that end it; 0 trains all.")
    ] = 2,
    head_passes: Annotated[
        int, typer.Option(help="With --train: passes in which NeuroFlux's heads inside windows learn.")
    ] = 2,
    views: Annotated[int, typer.Option(help="With --train: views of the data; 1 is no augmentation.")] = 4,
    standard_errors: Annotated[
        float,
        typer.Option(help="With --train: how many standard errors a smaller exit may be behind the best."),
    ] = 1.0,
    image_side: Annotated[int, typer.Option(help="Resize images to this many pixels; 0 keeps their size.")] = 0,
    train_limit: Annotated[int, typer.Option(help="Use this many training images; 0 uses all.")] = 0,
    test_limit: Annotated[int, typer.Option(help="Use this many test images; 0 uses all.")] = 0,
    width: Annotated[float, typer.Option(help="Factor on the channels of a VGG.")] = 1.0,
    norm: Annotated[str, typer.Option(help="batch or group.")] = "batch",
    head: Annotated[str, typer.Option(help="NeuroFlux's heads: compact, conv, separable or pooled.")] = "compact",
    head_rule: Annotated[str, typer.Option(help="adaptive or fixed number of filters.")] = "adaptive",
    head_filters: Annotated[int, typer.Option(help="Filters of a head; adaptive: the most allowed.")] = 64,
    reach: Annotated[
        int,
        typer.Option(
            help="NeuroFlux: units that one gradient passes through, at most; 0: as memory allows, up to a quarter."
        ),
    ] = 0,
    maximum_batch: Annotated[int, typer.Option(help="Largest batch size.")] = 128,
    learning_rate: Annotated[float, typer.Option(help="At batch 64; grows linearly with the batch.")] = 0.05,
    threads: Annotated[int, typer.Option(help="Threads of torch; 0 leaves them alone.")] = 0,
    seed: Annotated[int, typer.Option(help="Of weights, order, augmentation and noise.")] = 0,
    picture: Annotated[Path | None, typer.Option(help="Draw the result: a file that ends in .svg or .png.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")] = False,
) -> None:
    """Compare methods of training under memory budgets: speed, true peak memory and, with --train, accuracy.

    Methods: neuroflux; backprop; backprop-checkpoints (computes activations again); backprop-micro (adds up gradients
    of micro-batches to batches of 64); backprop-both; classic (local learning with heads of 256 filters, one batch
    size and no cache). Each runs in a process of its own, is tuned there by real steps, has the same precision,
    optimizer, allocator and images, and says so where it does not fit.

    Speed includes cache traffic and evaluation. Tuning is shown beside it, and is part of every time of --train.
    Ctrl-C, SIGTERM and SIGHUP end a comparison; it then shows the methods that it has finished.

    Example: neuroflux-fl compare --model vgg11 --budgets smallest,64MiB --seconds 5
    """
    import torch

    from neuroflux_fl.arm_run import PASS_EPOCHS, Schedule
    from neuroflux_fl.arm_worker import DataRequest
    from neuroflux_fl.arms import ARMS, ArmSetting
    from neuroflux_fl.cli.compare_picture import check_picture
    from neuroflux_fl.comparison import Work, read_budget
    from neuroflux_fl.heads import HeadSettings
    from neuroflux_fl.models import build_chain
    from neuroflux_fl.planning import PlannerSettings

    if train and (dry_run or not data):
        raise UsageError("--train needs --data and cannot be had with --dry-run: train on data, or predict.")
    for name, value, least, most in (
        ("Seconds", seconds, 0.1, 86_400), ("Repeats", repeats, 1, 1000), ("Minutes", minutes, 0, 100_000),
        ("Target", target, 0, 1), ("Seed", seed, 0, 2**63 - 1),
    ):  # fmt: skip
        if not least <= value <= most:
            raise UsageError(f"{name} {value} is not allowed: give {least} to {most}.")
    check_threads(threads)
    if picture is not None:
        check_picture(picture)
    check_precision(precision)
    if threads:
        torch.set_num_threads(threads)
    request = DataRequest(
        name=data, image_side=image_side or None, train_limit=train_limit or None, test_limit=test_limit or None,
        seed=seed,
    )  # fmt: skip
    shape, classes = _shape_of(request) if data else (parse_image_shape(image), classes)
    schedule = Schedule(
        epochs=epochs, minutes=minutes or None, patience=patience, depth_patience=depth_patience or None,
        head_passes=head_passes, views=views, standard_errors=standard_errors,
    )  # fmt: skip
    work = Work(
        seconds=seconds, repeats=repeats, data=request if train else None, schedule=schedule, threads=threads,
        seed=seed,
    )  # fmt: skip
    planner = PlannerSettings(
        reach=reach,
        progressive=True,
        minimum_batch=1 if norm == "group" else 2,
        maximum_batch=maximum_batch,
        learning_rate=learning_rate,
        maximum_learning_rate=4 * learning_rate,
        passes=epochs if train else PASS_EPOCHS,
        views=views if train else 1,
    )
    heads = HeadSettings(kind=head, rule=head_rule, filters=head_filters)
    arms = list(ARMS) if methods == "all" else _split(methods)
    models, asked = _split(model), _split(budgets)
    # All of them before the first is run; what the smallest budget is does not matter yet.
    for name in models:
        build_chain(name, image_shape=shape, classes=classes, norm=norm, width=width)
    for text in asked:
        read_budget(text, MIB)
    compared: dict[str, dict[str, Any]] = {}
    complete = False
    try:
        for name in models:
            setting = ArmSetting(
                model=name, image_shape=shape, classes=classes, width=width, norm=norm, head=heads,
                planner=planner, precision=precision,
            )  # fmt: skip
            keep = partial(compared.__setitem__, name)
            _compare(setting, arms, asked, work, keep, dry_run=dry_run)
        complete = True
    finally:  # what was measured before an end that nobody wanted took long, and is as true as the rest
        if compared:
            _show(list(compared.values()), picture, target or None, complete=complete, json=json)


def _compare(
    setting: ArmSetting,
    names: Sequence[str],
    asked: Sequence[str],
    work: Work,
    keep: Callable[[dict[str, Any]], None],
    *,
    dry_run: bool,
) -> None:
    """One model; ``keep`` is given all that is known of it, as JSON has it, whenever that grows."""
    import torch

    from neuroflux_fl import comparison
    from neuroflux_fl.arms import Arm
    from neuroflux_fl.machine_speed import measure_speed

    with make_progress() as progress:
        task = progress.add_task(f"{setting.model}: tracing", total=None)

        def tell(text: str, done: int) -> None:
            progress.update(task, description=f"{setting.model}, {text}", advance=done)
            if not done:
                log_progress(f"{setting.model}, {text}")

        speed = measure_speed(torch.device("cpu"))
        arms = {name: Arm(name, setting, speed) for name in (*names, "backprop")}
        smallest = comparison.smallest_budgets([arms["backprop"]])["backprop"]
        budgets = [comparison.read_budget(text, smallest) for text in asked]
        if dry_run:
            floors = comparison.smallest_budgets([arms[name] for name in names])
            progress.update(task, total=len(budgets) * len(names))
            results = comparison.predict_arms([arms[name] for name in names], budgets, tell)
            keep(comparison_fields(setting, results, floors))
            return
        finished: list[ArmResult] = []

        def on_result(result: ArmResult) -> None:
            finished.append(result)
            keep(comparison_fields(setting, finished))

        progress.update(task, total=comparison.steps(names, budgets, work))
        keep(comparison_fields(setting, comparison.run_arms(setting, names, budgets, work, tell, on_result)))


def _show(
    compared: Sequence[dict[str, Any]], picture: Path | None, target: float | None, *, complete: bool, json: bool
) -> None:
    from neuroflux_fl.cli.compare_picture import write_picture

    try:
        if json:
            print_json({"complete": complete, "comparisons": compared})
        else:
            print_comparisons(compared, target=target)
    finally:  # neither fails for the other's sake
        if picture is not None:
            write_picture(picture, compared)


def _shape_of(request: DataRequest) -> tuple[tuple[int, int, int], int]:
    from neuroflux_fl.data import load_data

    images = load_data(**asdict(request))
    return images.image_shape, images.classes


def _split(text: str) -> list[str]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or len(set(parts)) < len(parts):
        raise UsageError(f"List {text!r} is empty or names something twice: write for example vgg11,vgg16.")
    return parts
