"""Gradient by a convolution's weight on maps of a few pixels: oneDNN's kernel and ``weight_gradient``, time and memory.

Run from the repository's root: ``python -m benchmarks.small_maps``. Repetitions take turns. The largest allocation is
what torch's allocator was asked for at once, touched or not: under a memory limit all of it must be free.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.report import describe_setting, print_setting, print_table, write_json
from neuroflux_fl.sizes import MIB
from neuroflux_fl.small_map_convolution import weight_gradient

_HEADER = ("inputs, outputs", "map", "batch", "layout", "oneDNN ms", "ours ms", "ratio", "oneDNN MiB", "ours MiB")
_LAYOUTS = {"usual": torch.contiguous_format, "channels last": torch.channels_last}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run and print a table."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    setting = describe_setting(
        kernel="3x3, padding 1, float32", capability=torch.backends.cpu.get_cpu_capability(), threads=options.threads,
        seed=options.seed, repeats=f"{options.repeats}, interleaved, medians",
    )  # fmt: skip
    print_setting(setting)
    rows = [
        _row(channels, side, batch, layout, options.repeats)
        for channels in options.channels
        for side in options.sides
        for batch in options.batches
        for layout in _LAYOUTS
    ]
    print_table(_HEADER, rows)
    write_json(options.json, {"setting": setting, "rows": [dict(zip(_HEADER, row, strict=True)) for row in rows]})
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.small_maps", description=__doc__)
    parser.add_argument("--channels", nargs="+", type=int, default=[512])
    parser.add_argument("--sides", nargs="+", type=int, default=[1, 2, 4, 8])
    parser.add_argument("--batches", nargs="+", type=int, default=[2, 32, 128])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser


def _row(channels: int, side: int, batch: int, layout: str, repeats: int) -> tuple[str, ...]:
    form = _LAYOUTS[layout]
    images = torch.randn(batch, channels, side, side).contiguous(memory_format=form)
    gradient = torch.randn_like(images)
    weight = torch.randn(channels, channels, 3, 3).contiguous(memory_format=form)

    def library() -> Tensor:
        options = ((1, 1), (1, 1), (1, 1), False, (0, 0), 1, (False, True, False))
        found: Tensor = torch.ops.aten.convolution_backward(gradient, images, weight, None, *options)[1]
        return found

    def ours() -> Tensor:
        return weight_gradient(images, weight, gradient, ((1, 1), (1, 1)))

    torch.testing.assert_close(ours(), library(), rtol=1e-3, atol=1e-2)
    runs = {library: list[float](), ours: list[float]()}
    for _ in range(repeats):
        for run, seconds in runs.items():
            started = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - started)
    took = {run: 1000 * statistics.median(seconds) for run, seconds in runs.items()}
    return (
        f"{channels}, {channels}", f"{side}x{side}", str(batch), layout, f"{took[library]:.1f}", f"{took[ours]:.1f}",
        f"{took[library] / took[ours]:.2f}", f"{_largest_mib(library):.1f}", f"{_largest_mib(ours):.1f}",
    )  # fmt: skip


def _largest_mib(run: Callable[[], Tensor]) -> float:
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run()
    events = profile.profiler.kineto_results.events()
    sizes: list[int] = [event.nbytes() for event in events if event.name() == "[memory]"]
    return max(sizes) / MIB


if __name__ == "__main__":
    sys.exit(main())
