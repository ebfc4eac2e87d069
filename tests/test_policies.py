"""Rules that hold for the whole repository: who imports whom, what is never used, what must do without extras."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("neuroflux_fl", "clients", "server")
OTHERS = {"neuroflux_fl": {"clients", "server"}, "clients": {"server"}, "server": {"clients"}}
NOT_IN_THE_CORE = {
    "flwr",
    "google",
    "grpc",
    "typer",
    "rich",
    "prometheus_client",
    "safetensors",
    "sklearn",
    "pyarrow",
    "PIL",
    "matplotlib",
    "jinja2",
}
GENERATED = "_pb2.py"
SOURCES = sorted(
    path for package in PACKAGES for path in (ROOT / package).rglob("*.py") if not path.name.endswith(GENERATED)
)
CORE = [
    path for path in SOURCES if path.is_relative_to(ROOT / "neuroflux_fl") and path.parent.name not in ("wire", "cli")
]


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def imported(nodes: Iterator[ast.AST]) -> set[str]:
    """Top-level packages that ``import`` statements among ``nodes`` name."""
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").split(".")[0] if node.level == 0 else "a relative import")
    return names


def at_import_time(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes that run when the module is imported: functions' bodies are left out, and so is ``TYPE_CHECKING``."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from at_import_time(node)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_the_sources_are_found() -> None:
    assert len(CORE) > 20
    assert {name_of(path).split("/")[0] for path in SOURCES} == set(PACKAGES)


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_imports_go_one_way(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    in_command_line = path.is_relative_to(ROOT / "neuroflux_fl" / "cli")
    nodes = at_import_time(tree_of(path)) if in_command_line else ast.walk(tree_of(path))

    assert not imported(nodes) & (OTHERS[package] | {"a relative import", "tests", "benchmarks"})


@pytest.mark.parametrize("path", CORE, ids=name_of)
def test_the_core_imports_no_extras_at_module_level(path: Path) -> None:
    assert not imported(at_import_time(tree_of(path))) & NOT_IN_THE_CORE


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_nothing_is_pickled_and_nothing_asserted(path: Path) -> None:
    tree = tree_of(path)
    forbidden = {"torch.load", "torch.save", "np.save"}

    assert not imported(ast.walk(tree)) & {"pickle", "cPickle", "dill", "joblib", "shelve", "marshal", "cloudpickle"}
    for node in ast.walk(tree):
        where = f"{name_of(path)}:{getattr(node, 'lineno', 0)}"
        assert not isinstance(node, ast.Assert), f"{where}: assert is no check, -O removes it"
        if isinstance(node, ast.Call):
            allowed = {keyword.arg: keyword.value for keyword in node.keywords}.get("allow_pickle")
            refuses = isinstance(allowed, ast.Constant) and allowed.value is False
            called = ast.unparse(node.func)
            assert refuses or called not in {*forbidden, "np.load", "numpy.load", "numpy.save"}, f"{where}: {called}"
            assert allowed is None or refuses, f"{where}: allow_pickle"


# torchvision brings PIL itself.
TRAIN_WITHOUT_EXTRAS = f"""
import sys
from importlib.machinery import PathFinder

BLOCKED = {sorted(NOT_IN_THE_CORE - {"PIL"})!r}

class Without:
    @staticmethod
    def find_spec(name, path=None, target=None):
        return None if name.split(".")[0] in BLOCKED else PathFinder.find_spec(name, path, target)

sys.meta_path[:] = [Without if finder is PathFinder else finder for finder in sys.meta_path]
from pathlib import Path
import numpy as np, torch
from neuroflux_fl.block_training import TrainSettings
from neuroflux_fl.data.images import LabelledImages
from neuroflux_fl.device_training import CacheSettings, DeviceData, DeviceTrainer
from neuroflux_fl.heads import HeadSettings
from neuroflux_fl.local_network import build_network
from neuroflux_fl.machine_speed import MachineSpeed
from neuroflux_fl.unit_chain import chain_from_modules
from neuroflux_fl.planning import PlannerSettings, plan_units
from neuroflux_fl.profiling import profile_network
from neuroflux_fl.unit_store import UnitStore
import neuroflux_fl.exits

torch.set_num_threads(1)
units = [torch.nn.Sequential(torch.nn.Conv2d(channels, 8, 3), torch.nn.BatchNorm2d(8)) for channels in (1, 8)]
chain = chain_from_modules(units, image_shape=(1, 16, 16), classes=2)
network = build_network(chain, HeadSettings(filters=8))
plan = plan_units(
    profile_network(network, speed=MachineSpeed()), 3 * 2**20, PlannerSettings(maximum_batch=4)
)
images = LabelledImages(images=np.zeros((8, 1, 16, 16), np.uint8), labels=np.arange(8) % 2)
data = DeviceData(train=images, validation=images, mean=(0.5,), std=(0.5,), horizontal_flip=False)
store = UnitStore(Path(sys.argv[1]) / "store", network)
store.initialise(0)
trainer = DeviceTrainer(
    network, store, data, cache=CacheSettings(folder=Path(sys.argv[1]) / "cache"),
    settings=TrainSettings(epochs=1, views=1), planner=PlannerSettings(), memory_bytes=None, device=torch.device("cpu"),
)
result = trainer.train(plan)
scores = trainer.score_exits(0, 1)
loaded = {{name.split(".")[0] for name in sys.modules}}
print("trained", len(result.blocks) > 0, sorted(scores), loaded & set(BLOCKED))
"""


def test_the_core_trains_where_only_torch_torchvision_and_numpy_are_installed(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TRAIN_WITHOUT_EXTRAS, str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "trained True [0, 1] set()"
