"""What all benchmarks share: worker processes, what is stated beside every figure, tables and JSON files."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from neuroflux_fl.memory_allocator import ALLOCATOR_CHOICE, allocator_environment

WORKER_FLAG = "--worker"
_REPOSITORY = Path(__file__).resolve().parents[1]


class Worker:
    """A fresh Python process that answers requests, a JSON line each, so that its peak memory is its own."""

    def __init__(self, module: str) -> None:
        self._name = module
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, WORKER_FLAG],
            cwd=_REPOSITORY,
            env=os.environ | allocator_environment(os.environ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, **request: object) -> Any:
        """The answer to one request; ends the benchmark where the worker died."""
        if self._process.stdin is None or self._process.stdout is None:
            raise SystemExit(f"Worker {self._name} has no pipes.")
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"Worker {self._name} ended with code {self._process.wait()} at the request {request}.")
        return json.loads(line)

    def signal(self, number: int) -> None:
        """Send the worker a signal."""
        self._process.send_signal(number)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_error: object) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()  # a worker ends with its input
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
        if self._process.stdout is not None:
            self._process.stdout.close()


def add_pass_options(parser: argparse.ArgumentParser) -> None:
    """Options of benchmarks that time passes of ``neuroflux-fl compare``."""
    parser.add_argument("--maximum-batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="about how long one pass should last")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE")


def require_tcmalloc() -> None:
    """Let processes started from here have tcmalloc whatever ``NEUROFLUX_FL_ALLOCATOR`` says, or end the benchmark."""
    os.environ.pop(ALLOCATOR_CHOICE, None)
    if "LD_PRELOAD" not in allocator_environment(os.environ):
        raise SystemExit("tcmalloc is not installed (Debian: libtcmalloc-minimal4), or LD_PRELOAD is set already.")


def serve(answer: Callable[[dict[str, Any]], Mapping[str, object]]) -> None:
    """The worker's side: answer requests until the input ends."""
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


def describe_setting(**options: object) -> dict[str, str]:
    """What figures belong to: command, machine, versions, load at the start, and the given options."""
    return {
        "command": shlex.join(["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]]),
        "machine": f"{_processor()}, {os.cpu_count()} logical cores, {_memory_gib():.1f} GiB, {platform.system()} "
        f"{platform.release()}",
        "versions": ", ".join([f"Python {platform.python_version()}", *(f"{p} {version(p)}" for p in _PACKAGES)]),
        "load average": f"{os.getloadavg()[0]:.2f} over the last minute, when started",
        **{name.replace("_", " "): str(value) for name, value in options.items()},
    }


def print_setting(setting: Mapping[str, str]) -> None:
    for name, value in setting.items():
        print(f"{name + ':':16}{value}")
    print(flush=True)


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as their widest cell; the first to the left, the others to the right."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    for row in (header, ["-" * width for width in widths], *rows):
        first, *others = (
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        print("  ".join([first, *others]))
    print(flush=True)


def write_json(path: Path | None, content: Mapping[str, object]) -> None:
    """Write the figures for machines to read; nothing without a path."""
    if path is not None:
        path.write_text(json.dumps(content, indent=2) + "\n")


def simulate(*arguments: object) -> Any:
    """What ``neuroflux-fl simulate --json`` prints with these arguments; ends the benchmark where it fails."""
    with tempfile.TemporaryDirectory(prefix="neuroflux-benchmark-") as folder:
        command = [sys.executable, "-m", "neuroflux_fl", "simulate", "--json", "--out", folder]
        command += [str(argument) for argument in arguments]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
        if done.returncode:
            raise SystemExit(f"{shlex.join(command)} ended with code {done.returncode}")
        return json.loads(done.stdout)


_PACKAGES = ("torch", "torchvision", "numpy")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.machine())


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1024**3
