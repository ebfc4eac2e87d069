"""Speed of every method of training under the same budgets, and how much of the arithmetic floor each reaches.

Run from the repository's root: ``python -m benchmarks.methods``. As ``neuroflux-fl compare``, whose code it uses, but
with the floor: the convolutions that the method needs and nothing else (forward, weight gradient, and input gradient
where one is needed), each alone at its best batch size and layout, on small maps with the faster
of both weight gradients (``small_map_convolution``), without a limit on memory.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.report import add_pass_options, describe_setting, print_setting, print_table, write_json
from neuroflux_fl.arm_run import PASS_EPOCHS
from neuroflux_fl.arm_tuning import TunedArm
from neuroflux_fl.arms import ARMS, Arm, ArmSetting
from neuroflux_fl.cli.compare_picture import check_picture, write_picture
from neuroflux_fl.cli.compare_view import comparison_fields, describe_how
from neuroflux_fl.comparison import ArmResult, Work, describe_budget, read_budget, run_arms, smallest_budgets
from neuroflux_fl.compute import COMPUTE_PRECISIONS
from neuroflux_fl.heads import HEAD_KINDS, HeadSettings
from neuroflux_fl.local_network import LocalNetwork
from neuroflux_fl.memory_allocator import allocator_environment
from neuroflux_fl.models import MODEL_NAMES
from neuroflux_fl.plan import Plan
from neuroflux_fl.planning import PlannerSettings
from neuroflux_fl.sizes import MIB
from neuroflux_fl.small_map_convolution import LARGEST_MAP, weight_gradient
from neuroflux_fl.unit_chain import empty_copy

_HEADER = ("budget", "method", "samples/s", "min", "max", "speed-up", "of floor", "peak MiB", "tuning s", "how")
_BATCHES = (16, 64)
"""The ideal batch of a convolution is looked for among these."""
_TIMED_RUNS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Convolution:
    """What a method needs of one convolution layer in a training step."""

    input_shape: tuple[int, int, int]
    weight_shape: tuple[int, int, int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    input_gradient: bool
    """Not of the first convolution that a gradient reaches."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print a table for each model and precision, and write what was asked for."""
    options = _parser().parse_args(arguments)
    if options.picture is not None:
        check_picture(options.picture)
    torch.set_num_threads(options.threads)
    setting = _describe(options)
    print_setting(setting)
    compared = [_compare(options, model, precision) for model in options.models for precision in options.precisions]
    if options.picture is not None:
        write_picture(options.picture, compared)
    write_json(options.json, {"setting": setting, "comparisons": compared})
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.methods", description=__doc__)
    parser.add_argument("--models", nargs="+", choices=MODEL_NAMES, default=["vgg16", "resnet18"])
    parser.add_argument("--precisions", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    parser.add_argument(
        "--budgets", nargs="+", default=["smallest", "1.2x", "1.5x", "none"],
        help="smallest (the least under which backpropagation runs), 1.2x of it, none, or sizes like 64MiB",
    )  # fmt: skip
    parser.add_argument("--methods", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--head", choices=HEAD_KINDS, default=HeadSettings().kind)
    parser.add_argument("--reach", type=int, default=PlannerSettings().reach)
    add_pass_options(parser)
    parser.add_argument("--picture", type=Path, metavar="FILE", help="ends in .svg or .png")
    return parser


def _describe(options: argparse.Namespace) -> dict[str, str]:
    return describe_setting(
        data="noise of 3x32x32, 10 classes",
        threads=options.threads,
        seed=options.seed,
        repeats=f"{options.repeats}, interleaved, medians",
        **{"a pass": f"fresh weights, {PASS_EPOCHS} epochs, validation on a tenth of the images after each; weights "
           "read and written, cache in float16 written and read"},
        floor=f"convolutions alone, the best of batches {_BATCHES} and both layouts",
        heads=f"{options.head} (classic: conv, 256 filters), reach {options.reach}",
        allocator=f"{_allocator()}; left alone without a budget",
    )  # fmt: skip


def _allocator() -> str:
    if "LD_PRELOAD" in allocator_environment(os.environ):
        return "tcmalloc, which keeps freed memory inside the budget"
    return "glibc, which returns freed memory at once"


def _compare(options: argparse.Namespace, model: str, precision: str) -> dict[str, Any]:
    setting = ArmSetting(
        model=model,
        precision=precision,
        head=HeadSettings(kind=options.head),
        planner=PlannerSettings(
            reach=options.reach, progressive=True, maximum_batch=options.maximum_batch, passes=PASS_EPOCHS
        ),
    )
    smallest = smallest_budgets([Arm("backprop", setting)])["backprop"]
    work = Work(seconds=options.seconds, repeats=options.repeats, threads=options.threads, seed=options.seed)
    results = run_arms(
        setting, options.methods, [read_budget(text, smallest) for text in options.budgets], work,
        lambda text, done: None if done else print(f"{model}, {precision}, {text}", file=sys.stderr, flush=True),
    )  # fmt: skip
    fields = comparison_fields(setting, results)
    for row, result in zip(fields["results"], results, strict=True):
        row["floor_samples_per_second"] = _floor(setting, result)
    print(f"{model}, {precision}")
    print_table(_HEADER, [_row(row, result) for row, result in zip(fields["results"], results, strict=True)])
    return fields


def _row(row: dict[str, Any], result: ArmResult) -> tuple[str, ...]:
    under = describe_budget(result.budget)
    if not isinstance(result.how, TunedArm):
        return (under, result.arm, *[""] * 7, describe_how(row))
    rates = [one.samples / one.seconds for one in result.passes]
    rate = row["samples_per_second"]
    ratio = row["times_best_other"]
    return (
        under, result.arm, f"{rate:.1f}", f"{min(rates):.1f}", f"{max(rates):.1f}",
        "" if ratio is None else f"{ratio:.2f}", f"{rate / row['floor_samples_per_second']:.0%}",
        f"{(row['peak_bytes'] or 0) / MIB:.1f}", f"{row['tuning_seconds']:.0f}", describe_how(row),
    )  # fmt: skip


def _floor(setting: ArmSetting, result: ArmResult) -> float | None:
    """Samples in a second if the arm's convolutions were all that there is."""
    if not isinstance(result.how, TunedArm):
        return None
    dtype = COMPUTE_PRECISIONS[setting.precision]
    layers = _convolutions(setting.network(result.arm), result.how.plan)
    return 1 / sum(_best_seconds(layer, dtype) for layer in layers)


def _convolutions(network: LocalNetwork, plan: Plan) -> list[Convolution]:
    """Of all windows, with the heads at their ends; what checkpoints compute again is not needed."""
    found = []
    for window in (window for block in plan.blocks for window in block.windows):
        modules = [*(network.chain.units[unit] for unit in window.units), network.heads[window.last_unit]]
        found += _window_convolutions(modules, network.chain.input_shapes[window.first_unit])
    return found


def _window_convolutions(modules: Sequence[nn.Module], shape: tuple[int, int, int]) -> list[Convolution]:
    chain = nn.Sequential(*(empty_copy(module) for module in modules))
    inputs = torch.empty((2, *shape), device="meta")
    found: list[Convolution] = []

    def note(layer: nn.Module, arguments: tuple[Tensor, ...], _output: Tensor) -> None:
        if isinstance(layer, nn.Conv2d):
            channels, height, width = arguments[0].shape[1:]
            found.append(
                Convolution(
                    input_shape=(channels, height, width),
                    weight_shape=(layer.out_channels, layer.in_channels, *_pair(layer.kernel_size)),
                    stride=_pair(layer.stride),
                    padding=_pair(layer.padding),
                    input_gradient=arguments[0] is not inputs,
                )
            )

    for layer in chain.modules():
        layer.register_forward_hook(note)
    with torch.no_grad():
        chain(inputs)
    return found


def _pair(numbers: Any) -> tuple[int, int]:
    first, second = numbers
    return int(first), int(second)


@cache
def _best_seconds(layer: Convolution, dtype: torch.dtype) -> float:
    """Forward and backward of one sample."""
    _, height, width = layer.input_shape
    products = (False, True) if height * width <= LARGEST_MAP and dtype == torch.float32 else (False,)
    return min(
        _seconds(layer, dtype, batch, layout, product) / batch
        for batch in _BATCHES
        for layout in (torch.contiguous_format, torch.channels_last)
        for product in products
    )


def _seconds(layer: Convolution, dtype: torch.dtype, batch: int, layout: torch.memory_format, product: bool) -> float:
    """Forward and backward of a batch, ``product`` telling which of the two weight gradients is taken."""
    inputs = torch.randn((batch, *layer.input_shape)).to(dtype=dtype, memory_format=layout)
    weight = torch.randn(layer.weight_shape).to(dtype=dtype, memory_format=layout)
    options = (layer.stride, layer.padding, (1, 1), False, (0, 0), 1)
    needed = (layer.input_gradient, not product, False)
    seconds = []
    for _ in range(1 + _TIMED_RUNS):
        started = time.perf_counter()
        outputs = torch.ops.aten.convolution(inputs, weight, None, *options)
        if any(needed):
            torch.ops.aten.convolution_backward(outputs, inputs, weight, None, *options, needed)
        if product:
            weight_gradient(inputs, weight, outputs, (layer.stride, layer.padding))
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])


if __name__ == "__main__":
    sys.exit(main())
