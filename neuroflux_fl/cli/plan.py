"""``neuroflux-fl plan``: what fits into a memory budget, without training anything."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

import typer

from neuroflux_fl.cli.output import (
    check_precision,
    make_table,
    parse_budget,
    parse_image_shape,
    print_json,
    progress_console,
    result_console,
    size_cell,
)

# Torch and what needs it are imported inside: --help and a wrong option should answer at once.


def plan(
    model: Annotated[str, typer.Option(help="vgg11, vgg13, vgg16, vgg19, resnet18 or resnet34.")] = "vgg16",
    image: Annotated[str, typer.Option(help="Channels x height x width of one image.")] = "3x32x32",
    classes: Annotated[int, typer.Option(help="Number of classes.")] = 10,
    budget: Annotated[str, typer.Option(help="Memory for training, for example 64MiB, or none.")] = "64MiB",
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
    rho: Annotated[float, typer.Option(help="Threshold planner: how far merged batch sizes may differ.")] = 0.4,
    maximum_batch: Annotated[int, typer.Option(help="Largest batch size.")] = 256,
    precision: Annotated[str, typer.Option(help="What to compute in: float32 or bfloat16.")] = "float32",
    channels_last: Annotated[bool, typer.Option(help="Keep activations channels last; try which is faster.")] = False,
    method: Annotated[str, typer.Option(help="neuroflux or backprop.")] = "neuroflux",
    profile: Annotated[str, typer.Option(help="traced (runs nothing) or measured (runs real steps).")] = "traced",
    json: Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")] = False,
) -> None:
    """Show how a device with a memory budget would train a model.

    Prints each unit's memory line (fixed bytes and bytes a sample), the blocks with batch sizes, predicted peaks and
    times, what backpropagation would need, and the smallest budget that works.

    Example: neuroflux-fl plan --model vgg16 --image 3x32x32 --classes 10 --budget 64MiB
    """
    budget_bytes = parse_budget(budget)
    shape = parse_image_shape(image)
    check_precision(precision)
    with progress_console.status("Tracing one training step of every unit..."):
        result = make_plan(
            model=model,
            shape=shape,
            classes=classes,
            budget_bytes=budget_bytes,
            width=width,
            norm=norm,
            head={"kind": head, "rule": head_rule, "filters": head_filters},
            planner={
                "planner": planner,
                "reach": reach,
                "progressive": True,
                "rho": rho,
                "maximum_batch": maximum_batch,
            },
            compute={"precision": precision, "channels_last": channels_last},
            method=method,
            profile_mode=profile,
        )
    if json:
        print_json(result)
    else:
        _print(result)


def make_plan(
    *,
    model: str,
    shape: tuple[int, int, int],
    classes: int,
    budget_bytes: int | None,
    width: float,
    norm: str,
    head: dict[str, Any],
    planner: dict[str, Any],
    compute: dict[str, Any],
    method: str,
    profile_mode: str,
) -> dict[str, Any]:
    """The content of ``plan --json``."""
    import torch

    from neuroflux_fl.cli.profiles import make_profile
    from neuroflux_fl.compute import ComputeSettings
    from neuroflux_fl.heads import HeadSettings
    from neuroflux_fl.local_network import build_network
    from neuroflux_fl.models import build_chain
    from neuroflux_fl.planning import PlannerSettings, backpropagation_minimum, full_budget, minimum_budget

    settings = PlannerSettings(**planner)
    if norm == "group":
        settings = replace(settings, minimum_batch=1)
    chain = build_chain(model, image_shape=shape, classes=classes, norm=norm, width=width)
    network = build_network(chain, HeadSettings(**head), norm)
    profile = make_profile(
        network,
        settings,
        budget_bytes,
        profile_mode,
        torch.device("cpu"),
        compute=ComputeSettings(**compute),
    )
    return {
        "model": model,
        "image": list(shape),
        "classes": classes,
        "method": method,
        "profile": profile_mode,
        "budget_bytes": budget_bytes,
        "minimum_budget_bytes": minimum_budget(profile, settings),
        "full_budget_bytes": full_budget(profile, settings),
        "backprop_minimum_bytes": backpropagation_minimum(profile, settings),
        "units": [
            {
                "index": index,
                "name": unit.name,
                "fixed_bytes": profile.unit(index).fixed_bytes,
                "bytes_per_sample": profile.unit(index).bytes_per_sample,
                "head_filters": unit.head_filters,
            }
            for index, unit in enumerate(profile.units)
        ],
        **plan_fields(method_plan(profile, budget_bytes, settings, method)),
    }


def method_plan(profile: Any, budget_bytes: int | None, settings: Any, method: str) -> Any:
    """The plan of a method.

    Raises:
        UsageError: an unknown method.
        BudgetError: nothing fits.
    """
    from neuroflux_fl.errors import UsageError
    from neuroflux_fl.planning import plan_backpropagation, plan_units

    if method not in ("neuroflux", "backprop"):
        raise UsageError(f"Method {method!r} is unknown: choose neuroflux or backprop.")
    return (plan_units if method == "neuroflux" else plan_backpropagation)(profile, budget_bytes, settings)


def plan_fields(plan: Any) -> dict[str, Any]:
    """Blocks and untrained units, ready for JSON."""
    return {
        "blocks": [
            {
                "first_unit": block.first_unit,
                "last_unit": block.last_unit,
                "windows": [[window.first_unit, window.last_unit] for window in block.windows],
                "batch_size": block.batch_size,
                "learning_rate": block.learning_rate,
                "predicted_peak_bytes": block.predicted_peak_bytes,
                "predicted_seconds_per_sample": block.predicted_seconds_per_sample,
            }
            for block in plan.blocks
        ],
        "untrained_units": list(plan.untrained_units),
    }


def _print(result: dict[str, Any]) -> None:
    units = make_table(
        "Units: training memory is fixed + per sample x batch", ["unit", "fixed", "per sample", "filters"]
    )
    for row in result["units"]:
        units.add_row(
            f"{row['index']} {row['name']}",
            size_cell(row["fixed_bytes"]),
            size_cell(row["bytes_per_sample"]),
            str(row["head_filters"] or "classifier"),
        )
    result_console.print(units)
    print_blocks(result)
    result_console.print(
        f"Smallest budget that trains the first unit: {size_cell(result['minimum_budget_bytes'])}; "
        f"every unit: {size_cell(result['full_budget_bytes'])}; "
        f"backpropagation: {size_cell(result['backprop_minimum_bytes'])}."
    )


def print_blocks(result: dict[str, Any]) -> None:
    """The table of blocks, with measured peaks where there are any."""
    budget = "no limit" if result["budget_bytes"] is None else size_cell(result["budget_bytes"])
    measured = any("measured_peak_bytes" in row for row in result["blocks"])
    columns = [
        "units",
        "windows",
        "batch",
        "rate",
        "predicted peak",
        *(["measured peak"] if measured else []),
        "ms/sample",
    ]
    table = make_table(f"Blocks under {budget}", columns)
    for row in result["blocks"]:
        peak = [size_cell(row.get("measured_peak_bytes"))] if measured else []
        table.add_row(
            f"{row['first_unit']}-{row['last_unit']}",
            str(len(row["windows"])),
            str(row["batch_size"]),
            f"{row['learning_rate']:.4f}",
            size_cell(row["predicted_peak_bytes"]),
            *peak,
            f"{1000 * row['predicted_seconds_per_sample']:.2f}",
        )
    result_console.print(table)
    if result["untrained_units"]:
        result_console.print(f"Units left untrained (too large for the budget): {result['untrained_units']}")
