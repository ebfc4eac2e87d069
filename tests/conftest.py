"""Every test process computes with one thread: two spinning thread pools on two cores slow each other tenfold."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def write_run() -> Callable[..., Path]:
    """Writes the folder of a made-up run: ``write_run(out, devices=8)``, the settings being those of ``SampleRun``."""
    name = "sample_run"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("sample_run.py"))
        if spec is None or spec.loader is None:
            raise ImportError(name)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    sample: Any = sys.modules[name]

    def write(out: Path, **settings: Any) -> Path:
        written: Path = sample.SampleRun(**settings).write(out)
        return written

    return write
