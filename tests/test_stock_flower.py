"""The same apps under Flower's own simulation: real SuperLink, real Ray actors, status from ``flwr ls``."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = Path(sys.executable).parent
RUN_CONFIG = "num-server-rounds=2 width=0.1 train-limit=200 local-epochs=1 views=1 stage-units=4 out='{out}'"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed (extra: ray)"),
]


@pytest.fixture
def flower(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Environment with a Flower home of its own; ends every process that was started in it, by its id."""
    home = tmp_path / "flower"
    home.mkdir()
    environment = os.environ | {
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "PATH": f"{COMMANDS}:{os.environ['PATH']}",
    }
    yield environment
    for _ in range(20):
        processes = _processes_with(f"FLWR_HOME={home}")
        if not processes:
            return
        for process_id in processes:
            try:
                os.kill(process_id, signal.SIGTERM)
            except ProcessLookupError:
                continue
        time.sleep(0.5)
    for process_id in _processes_with(f"FLWR_HOME={home}"):
        os.kill(process_id, signal.SIGKILL)


def test_flwr_run_completes(flower: dict[str, str], tmp_path: Path) -> None:
    neutral = tmp_path / "neutral"
    neutral.mkdir()
    out = tmp_path / "out"

    subprocess.run(
        [
            "flwr", "run", str(ROOT), "local", "--stream",
            "--federation-config", "num-supernodes=2 client-resources-num-cpus=1",
            "--run-config", RUN_CONFIG.format(out=out),
        ],
        cwd=neutral, env=flower, check=True, timeout=300, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    listing = subprocess.run(
        ["flwr", "ls", "local", "--format", "json"],
        cwd=neutral, env=flower, check=True, timeout=60, stdout=subprocess.PIPE,
    )  # fmt: skip

    (run,) = json.loads(listing.stdout)["runs"]
    assert run["status"] == "finished:completed"
    summary = json.loads((out / "run.json").read_text())
    assert [record["contributors"] for record in summary["rounds"]] == [
        dict.fromkeys(["0", "1", "2", "3"], 2),
        dict.fromkeys(["4", "5", "6", "7"], 2),
    ]


def _processes_with(variable: str) -> list[int]:
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                environment = (folder / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if variable.encode() in environment:
                found.append(int(folder.name))
    return found
