"""The three commands: JSON alone on standard output, a user's mistake as one line and an exit code of its kind."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families

from neuroflux_fl import __version__, activation_cache, block_training, device_training
from neuroflux_fl.activation_cache import ActivationCache
from neuroflux_fl.cli import profiles
from neuroflux_fl.cli.main import main
from neuroflux_fl.cli.output import log_progress
from neuroflux_fl.errors import StorageError
from neuroflux_fl.evaluation import score_exits
from neuroflux_fl.exits import load_exit
from neuroflux_fl.plan import Block
from neuroflux_fl.profiling import profile_network
from neuroflux_fl.sizes import format_bytes
from neuroflux_fl.unit_store import UnitStore

SMALL_TRAIN = ["--width", "0.05", "--train-limit", "120", "--test-limit", "40", "--epochs", "1", "--views", "1"]
SMALL_FLEET = [
    *("--width", "0.05", "--train-limit", "120", "--test-limit", "40", "--partition", "iid", "--threads", "1"),
    *("--local-epochs", "1", "--set", "views=1", "--workers", "0"),
]
BLOCK_KEYS = {"first_unit", "last_unit", "windows", "batch_size", "learning_rate", "predicted_peak_bytes"}
EXIT_KEYS = {"unit", "validation_accuracy", "test_accuracy", "parameters"}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a command gave."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Command = Callable[..., Outcome]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    def run(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["neuroflux-fl", *arguments])
        threads = torch.get_num_threads()
        try:
            with pytest.raises(SystemExit) as ended:
                main()
        finally:
            torch.set_num_threads(threads)
        text = capsys.readouterr()
        code = ended.value.code
        assert code is None or isinstance(code, int)
        return Outcome(code or 0, text.out, text.err)

    return run


@pytest.fixture(autouse=True)
def _traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tracing is tested elsewhere; here each network is traced once for all tests."""
    monkeypatch.setattr(profiles, "profile_network", trace_once)


def trace_once(network: Any, **options: Any) -> Any:
    chosen = {name: value for name, value in options.items() if name != "speed"}
    key = (network.chain.name, network.chain.output_shapes, network.chain.classes, network.norm, repr(chosen))
    if (key, network.head_settings) not in _traced:
        _traced[key, network.head_settings] = profile_network(network, **options)
    return _traced[key, network.head_settings]


_traced: dict[Any, Any] = {}


def test_plan_as_json(command: Command) -> None:
    result = command("plan", "--model", "vgg11", "--width", "0.05", "--image", "1x32x32", "--budget", "3MiB", "--json")

    plan = result.json
    assert (result.code, result.err) == (0, "")
    assert (plan["model"], plan["budget_bytes"]) == ("vgg11", 3 * 1024**2)
    assert plan["minimum_budget_bytes"] < plan["backprop_minimum_bytes"] <= 4 * 1024**2
    assert [set(unit) for unit in plan["units"]] == [
        {"index", "name", "fixed_bytes", "bytes_per_sample", "head_filters"}
    ] * 8
    assert [unit["index"] for unit in plan["units"]] == list(range(8))
    for block in plan["blocks"]:
        assert set(block) >= BLOCK_KEYS
        assert block["predicted_peak_bytes"] <= 3 * 1024**2
        assert block["windows"][0][0] == block["first_unit"]
        assert block["windows"][-1][1] == block["last_unit"]
    trained = {unit for block in plan["blocks"] for unit in range(block["first_unit"], block["last_unit"] + 1)}
    assert trained | set(plan["untrained_units"]) == set(range(8))


def test_named_minimum_budget_is_enough_and_no_more_than_needed(command: Command) -> None:
    options = ["plan", "--model", "vgg11", "--width", "0.05", "--image", "1x32x32", "--json"]
    smallest = command(*options).json["minimum_budget_bytes"]

    enough = command(*options, "--budget", str(smallest)).json
    too_small = command(*options, "--budget", str(smallest - 1)).json

    assert 0 not in enough["untrained_units"]
    assert 0 in too_small["untrained_units"]


def test_plan_for_people(command: Command) -> None:
    options = ["plan", "--model", "vgg11", "--width", "0.05", "--image", "1x32x32", "--method", "backprop"]
    figures = command(*options, "--json").json

    result = command(*options)

    text = " ".join(result.out.split())
    assert result.code == 0
    assert "Blocks under 64.0 MiB" in text
    assert "0-7" in text
    assert f"trains the first unit: {format_bytes(figures['minimum_budget_bytes'])};" in text
    assert f"backpropagation: {format_bytes(figures['backprop_minimum_bytes'])}." in text


def test_train_as_json_and_as_files(command: Command, tmp_path: Path) -> None:
    options = ("--budget", "3MiB", "--depth-patience", "0", "--out", str(tmp_path / "out"), "--json")
    result = command("train", *SMALL_TRAIN, *options)

    summary = result.json
    assert result.code == 0
    assert len(result.err.splitlines()) == len(summary["blocks"])
    assert all(set(block) > BLOCK_KEYS | {"measured_peak_bytes"} for block in summary["blocks"])
    assert all(block["measured_peak_bytes"] > 0 for block in summary["blocks"])
    assert any(first < last for block in summary["blocks"] for first, last in block["windows"])
    assert [row["unit"] for row in summary["exits"]] == list(range(8)), "those inside windows too"
    assert [set(row) for row in summary["exits"]] == [EXIT_KEYS] * 8
    assert summary["chosen_exit"] in summary["exits"]
    parameters = [row["parameters"] for row in summary["exits"]]
    assert len(set(parameters)) == 8
    assert {"profile", "train", "cache", "evaluate"} <= set(summary["seconds"])
    assert sum(summary["seconds"].values()) <= summary["total_seconds"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["exit", "run.json"]
    assert json.loads((tmp_path / "out" / "run.json").read_text()) == summary
    model = load_exit(tmp_path / "out" / "exit")
    assert sum(parameter.numel() for parameter in model.parameters()) == summary["chosen_exit"]["parameters"]
    assert model.description["test_accuracy"] == summary["chosen_exit"]["test_accuracy"]


def test_train_with_backpropagation(command: Command) -> None:
    summary = command("train", *SMALL_TRAIN, "--method", "backprop", "--json").json

    (block,) = summary["blocks"]
    assert (block["first_unit"], block["last_unit"], block["windows"]) == (0, 7, [[0, 7]])
    assert [row["unit"] for row in summary["exits"]] == [7]
    assert summary["chosen_exit"]["unit"] == 7


def test_backpropagation_at_the_depth_of_an_exit(command: Command) -> None:
    shallow = command("train", *SMALL_TRAIN, "--method", "backprop", "--depth", "3", "--json").json
    blocks = command("train", *SMALL_TRAIN, "--reach", "1", "--json").json

    assert [(block["first_unit"], block["last_unit"]) for block in shallow["blocks"]] == [(0, 2)]
    (row,) = shallow["exits"]
    (same,) = [other for other in blocks["exits"] if other["unit"] == 2]
    assert (row["unit"], row["parameters"]) == (2, same["parameters"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--depth", "3"], "give 1 or more, with --method backprop"),
        (["--method", "backprop", "--depth", "9"], "8 units"),
    ],
)
def test_depth_out_of_place_is_refused(command: Command, options: list[str], words: str) -> None:
    result = command("train", *SMALL_TRAIN, *options)

    assert (result.code, result.out) == (2, "")
    assert words in result.err


def test_training_is_a_function_of_the_seed(command: Command) -> None:
    first, again, other = (
        command("train", *SMALL_TRAIN, "--planner", "threshold", "--seed", seed, "--json").json["exits"]
        for seed in ("1", "1", "2")
    )

    assert first == again
    assert first != other


def test_full_quota_is_told_and_training_goes_on(command: Command) -> None:
    result = command("train", *SMALL_TRAIN, "--budget", "3MiB", "--cache-quota", "1KiB")

    assert result.code == 0
    assert "Cache not used everywhere: quota of 1024 bytes is too small" in " ".join(result.out.split())
    assert "(chosen)" in result.out


def test_full_disk_is_told_and_training_goes_on(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(activation_cache, "_as_stored", full)

    options = ("--budget", "3MiB", "--depth-patience", "0", "--head-passes", "0", "--json")
    summary = command("train", *SMALL_TRAIN, *options).json

    assert summary["cache"]["written_bytes"] == 0
    assert all("No space left on device" in reason for reason in summary["cache"]["refusals"])
    assert summary["cache"]["refusals"]
    ends = [window[1] for block in summary["blocks"] for window in block["windows"]]
    assert [row["unit"] for row in summary["exits"]] == ends


class Scraper(threading.Thread):
    """Scrapes as Prometheus does, until it is told to stop; keeps what came last."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self.url = f"http://127.0.0.1:{port}/metrics"
        self.text = ""
        self.stop = threading.Event()

    def run(self) -> None:
        while not self.stop.wait(0.1):
            try:
                with urllib.request.urlopen(self.url, timeout=10) as answer:
                    self.text = answer.read().decode()
            except urllib.error.HTTPError as error:
                with error:
                    self.text = f"error {error.code}: {error.read()!r}"
            except OSError:
                continue  # not yet, or not any more

    def labels(self) -> set[tuple[str, str]]:
        """Metrics with the names of their runs."""
        families = text_string_to_metric_families(self.text)
        return {(sample.name, sample.labels.get("run", "")) for family in families for sample in family.samples}


@pytest.mark.parametrize("kept", [True, False])
def test_metrics_of_a_simulation_are_those_of_a_fleet(command: Command, tmp_path: Path, kept: bool) -> None:
    out = tmp_path / "attic"
    port = free_port()
    scraper = Scraper(port)
    scraper.start()

    try:
        result = command(
            "simulate", *SMALL_FLEET, "--devices", "2", "--rounds", "1", "--metrics-port", str(port), "--json",
            *(["--out", str(out)] if kept else []),
        )  # fmt: skip
    finally:
        scraper.stop.set()
        scraper.join()

    assert result.code == 0
    assert result.json["config"]["out"] == (str(out) if kept else "")
    name = "attic" if kept else "simulation"
    # Whatever moment of the run the last scrape was of, these are there.
    assert {
        ("neuroflux_round", name),
        ("neuroflux_tasks_total", name),
        ("neuroflux_build_info", ""),
    } <= scraper.labels()
    assert [path.name for path in tmp_path.iterdir()] == (["attic"] if kept else [])
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(scraper.url)


def test_simulate_as_json_and_as_files(command: Command, tmp_path: Path) -> None:
    out = tmp_path / "out"

    result = command(
        "simulate", *SMALL_FLEET, "--devices", "2", "--rounds", "2", "--budgets", "2MiB,64MiB", "--out", str(out),
        "--json",
    )  # fmt: skip

    summary = result.json
    assert result.code == 0
    assert [line.split(":")[0] for line in result.err.splitlines()] == ["round 1/2", "round 2/2"]
    assert [row["budget_bytes"] for row in summary["devices"]] == [2 * 1024**2, 64 * 1024**2]
    assert summary["devices"][0]["blocks"] != summary["devices"][1]["blocks"]
    assert [set(row) for row in summary["exits"]] == [EXIT_KEYS] * len(summary["exits"])
    files = {"answers.jsonl", "exit", "fleet.safetensors", "rounds.jsonl", "run.json", "setting.json", "status.json"}
    assert files <= {path.name for path in out.iterdir()}
    assert json.loads((out / "run.json").read_text()) == summary
    assert summary["config"]["run-name"] == "out"


def test_simulate_for_people(command: Command) -> None:
    result = command("simulate", *SMALL_FLEET, "--devices", "2", "--rounds", "1", "--set", "stage-units=2")

    assert result.code == 0
    for title in ("Devices", "Rounds", "Exits of the final model", "device-seconds"):
        assert title in result.out


def test_dry_run_shows_plans_and_trains_nothing(command: Command, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["simulate", *SMALL_FLEET, "--devices", "3", "--budgets", "2MiB,1MiB", "--out", str(out), "--dry-run"]

    table, result = command(*options), command(*options, "--json")

    assert "Plans" in table.out
    rows = result.json["devices"]
    assert [row["device"] for row in rows] == [0, 1, 2]
    assert rows[0]["blocks"]
    assert (rows[1]["blocks"], rows[1]["untrained_units"]) == ([], list(range(8)))
    assert "Raise the budget" in rows[1]["note"]
    assert not out.exists()


def test_settings_come_from_file_then_set_then_flags(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text("seed = 1\nrho = 0.1\nalpha = 9.0\npoll-seconds = 2.0\n")

    result = command(
        "simulate", *SMALL_FLEET, "--devices", "2", "--config", str(path), "--set", "rho=0.2", "--set", "alpha=8.0",
        "--set", "budgets=2MiB", "--alpha", "7", "--dry-run", "--json",
    )  # fmt: skip

    config = result.json["config"]
    assert (config["seed"], config["rho"], config["alpha"], config["poll-seconds"]) == (1, 0.2, 7.0, 2.0)
    assert config["budgets"] == "2MiB"


def empty_folder(folder: Path) -> list[str]:
    (folder / "data").mkdir()
    return ["--data", str(folder / "data")]


def corrupt_parquet(folder: Path) -> list[str]:
    options = empty_folder(folder)
    for split in ("train", "test"):
        (folder / "data" / f"{split}-0.parquet").write_bytes(b"PAR1 garbage PAR1")
    return options


def class_without_images(folder: Path) -> list[str]:
    from PIL import Image

    options = empty_folder(folder)
    for name in ("cat", "dog"):
        (folder / "data" / name).mkdir()
    for index in range(5):
        image = Image.fromarray(np.full((8, 8), index, np.uint8))
        image.save(folder / "data" / "cat" / f"{index}.png")
    return options


def out_is_a_file(folder: Path) -> list[str]:
    (folder / "file").write_text("")
    return ["--out", str(folder / "file")]


def unknown_key_in_file(folder: Path) -> list[str]:
    (folder / "run.toml").write_text("num-server-round = 3\n")
    return ["--config", str(folder / "run.toml")]


def nothing(folder: Path) -> list[str]:
    return []


PLAN = "plan --model vgg11 --width 0.05 --image 1x32x32"
TRAIN = "train " + " ".join(SMALL_TRAIN)
FLEET = "simulate --devices 2 --rounds 1 " + " ".join(SMALL_FLEET)
MISTAKES: list[tuple[str, int, str, Callable[[Path], list[str]]]] = [
    (f"{PLAN} --budget 100KiB", 5, "Raise the budget to 2MiB", nothing),
    (f"{PLAN} --budget 100KiB --method backprop", 5, "too small for backpropagation", nothing),
    (f"{PLAN} --budget lots", 2, "Size 'lots' is not a number of bytes", nothing),
    (f"{PLAN} --budget -5MiB", 2, "Size '-5MiB' is not a number of bytes", nothing),
    (f"{PLAN} --method magic", 2, "choose neuroflux or backprop", nothing),
    (f"{PLAN} --profile magic", 2, "choose traced or measured", nothing),
    (f"{PLAN} --maximum-batch 0", 2, "Batch sizes 2 to 0", nothing),
    ("plan --model vgg99", 2, "vgg99", nothing),
    ("plan --image 3x32", 2, "write for example 3x32x32", nothing),
    ("plan --image 0x32x32", 2, "write for example 3x32x32", nothing),
    ("plan --image 99999999x99999999x999999", 2, "or one over 16384", nothing),
    ("plan --classes 99999999999999999999999", 2, "2 to 1000000 classes", nothing),
    (f"{TRAIN} --model vgg99", 2, "vgg99", nothing),
    (f"{TRAIN} --budget 100KiB", 5, "Raise the budget to 2MiB", nothing),
    (f"{TRAIN} --epochs 0", 2, "Epochs 0 is too small", nothing),
    (f"{TRAIN} --standard-errors=-2", 2, "Standard errors -2.0 are not allowed", nothing),
    (f"{TRAIN} --validation-fraction 1", 2, "Validation fraction 1.0", nothing),
    (f"{TRAIN} --maximum-batch -3", 2, "Maximum batch -3 is too small", nothing),
    (f"{TRAIN} --threads -1", 2, "Threads -1 is not allowed", nothing),
    (f"{TRAIN} --threads 100000", 2, "Threads 100000 is not allowed", nothing),
    (f"{TRAIN} --learning-rate inf", 2, "Learning rate inf is not positive and finite", nothing),
    (f"{TRAIN} --similarity inf", 2, "Similarity inf is not allowed", nothing),
    (f"{TRAIN} --image-side 99999999999", 4, "give 4096 at most", nothing),
    (f"{TRAIN} --train-limit 1", 4, "leaves 1 images to train on", nothing),
    (f"{TRAIN} --cache-precision float64", 2, "Cache precision 'float64'", nothing),
    (f"{TRAIN} --precision float16", 2, "Precision 'float16' is for GPUs", nothing),
    (f"{TRAIN} --views 99999999999999999999", 2, "give at most 10000", nothing),
    (f"{TRAIN} --seed -1", 2, "-1", nothing),
    (TRAIN, 4, "has no class folders", empty_folder),
    (TRAIN, 4, "is not a readable Parquet file", corrupt_parquet),
    (TRAIN, 4, "has no PNG or JPEG pictures", class_without_images),
    (f"{TRAIN} --data cifar11", 4, "Did you mean 'cifar10'", nothing),
    (TRAIN, 6, "Choose another with --out", out_is_a_file),
    (FLEET, 4, "has no class folders", empty_folder),
    (FLEET, 4, "is not a readable Parquet file", corrupt_parquet),
    (FLEET, 4, "has no PNG or JPEG pictures", class_without_images),
    (FLEET, 6, "Choose another with --out", out_is_a_file),
    (FLEET, 3, "Did you mean 'num-server-rounds'", unknown_key_in_file),
    (f"{FLEET} --config missing.toml", 3, "missing.toml cannot be read", nothing),
    (f"{FLEET} --set nope=1", 3, "Configuration key 'nope' is unknown", nothing),
    (f"{FLEET} --set seed", 3, "write --set key=value", nothing),
    (f"{FLEET} --set cache-precision=float64", 3, "choose one of float16, float32", nothing),
    (f"{FLEET} --alpha -1", 3, "alpha is -1.0", nothing),
    (f"{FLEET} --rounds 0", 3, "num-server-rounds is 0", nothing),
    (f"{FLEET} --partition shards --set require-all-classes=true", 4, "has no image of class", nothing),
    (f"{FLEET} --devices 100", 4, "too few for 100 devices", nothing),
    (f"{FLEET} --devices 0", 2, "at least 1 device", nothing),
    (f"{FLEET} --workers -1", 2, "Workers -1 is negative", nothing),
    (f"{FLEET} --budgets lots", 2, "Size 'lots' is not a number of bytes", nothing),
    (f"{FLEET} --budgets 1MiB", 7, "None of 2 devices has the memory", nothing),
    (f"{FLEET} --budgets 1MiB --method backprop-fitting", 7, "memory for backpropagation", nothing),
    (f"{FLEET} --metrics-port 70000", 2, "Metrics port 70000 of 127.0.0.1 cannot be opened", nothing),
    (f"{FLEET} --model vgg99", 2, "vgg99", nothing),
]


@pytest.mark.parametrize(("line", "code", "message", "prepare"), MISTAKES)
def test_mistake_is_one_line_and_leaves_nothing(
    command: Command, tmp_path: Path, line: str, code: int, message: str, prepare: Callable[[Path], list[str]]
) -> None:
    out = tmp_path / "out"
    writes = [] if line.startswith("plan") else ["--out", str(out)]

    result = command(*line.split(), *writes, *prepare(tmp_path))

    assert result.err.startswith("Error: ")
    assert message in result.err
    assert result.err.count("\n") == 1
    assert (result.code, result.out) == (code, "")
    # A fleet that has been asked and cannot go on leaves word why; anything else leaves nothing.
    left = {path.name for path in out.iterdir()} if out.exists() else set()
    assert left == ({"setting.json", "status.json"} if code == 7 else set())


@pytest.mark.parametrize("json_", [["--json"], []])
def test_output_that_cannot_be_written_is_told(
    command: Command, monkeypatch: pytest.MonkeyPatch, json_: list[str]
) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)

        result = command(*PLAN.split(), "--budget", "none", *json_)
        monkeypatch.undo()
        with contextlib.suppress(OSError):
            full.close()

    assert result.code == 6
    assert "No space left on device" in result.err
    assert result.err.count("\n") == 1


def test_a_log_that_is_closed_does_not_end_a_training(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    closed = open(writing, "w")  # noqa: SIM115 (closing it fails)
    monkeypatch.setattr(sys, "stderr", closed)
    log_progress("units 0-2, pass 1/8")
    monkeypatch.setattr(sys, "stderr", None)
    log_progress("units 0-2, pass 2/8")
    with pytest.raises(BrokenPipeError):
        closed.close()


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("could not create a primitive")])
def test_memory_that_runs_out_outside_training_is_told(
    command: Command, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def run_out(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("neuroflux_fl.data.load_data", run_out)

    result = command("train", *SMALL_TRAIN)

    assert (result.code, result.err.count("\n")) == (5, 1)
    assert "memory of this machine ran out" in result.err


def test_resume_needs_a_folder(command: Command) -> None:
    result = command(*FLEET.split(), "--resume")

    assert (result.code, result.err) == (
        2,
        "Error: --resume needs --out: the folder of the run that was interrupted.\n",
    )


def test_port_in_use_is_told_before_training(command: Command, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]

        result = command(*FLEET.split(), "--metrics-port", str(port), "--out", str(tmp_path / "out"))

    expected = (
        f"Error: Metrics port {port} of 127.0.0.1 cannot be opened: Address already in use. Choose a free port.\n"
    )
    assert (result.code, result.out, result.err) == (2, "", expected)
    assert not (tmp_path / "out").exists()


def test_unknown_option_is_no_traceback(command: Command) -> None:
    result = command("train", "--nope")

    assert result.code == 2
    assert "--nope" in result.err
    assert "Traceback" not in result.err


def test_version_and_help(command: Command) -> None:
    assert command("--version").out == f"{__version__}\n"
    for name in ("plan", "train", "simulate"):
        assert "Example:" in command(name, "--help").out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_has_its_own_code(command: Command, monkeypatch: pytest.MonkeyPatch, number: signal.Signals) -> None:
    def interrupt(*_: object, **__: object) -> None:
        os.kill(os.getpid(), number)
        time.sleep(10)

    monkeypatch.setattr("neuroflux_fl.data.load_data", interrupt)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it

    try:
        result = command("train", *SMALL_TRAIN)
    finally:
        signal.signal(signal.SIGINT, before)

    assert (result.code, result.err) == (130, "Error: Interrupted.\n")


@pytest.mark.parametrize(("during", "number"), [("train_block", signal.SIGTERM), ("train_inner_heads", signal.SIGHUP)])
def test_interrupted_training_keeps_the_blocks_it_has_finished(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, during: str, number: signal.Signals
) -> None:
    blocks: list[Block] = []
    work = getattr(device_training, during)

    def work_or_end(store: UnitStore, block: Block, *arguments: Any, **options: Any) -> Any:
        blocks.append(block)
        if len(blocks) == (2 if during == "train_block" else 1):
            os.kill(os.getpid(), number)
        return work(store, block, *arguments, **options)

    monkeypatch.setattr(device_training, during, work_or_end)
    before = signal.getsignal(number)

    result = command(
        "train", *SMALL_TRAIN, "--budget", "2MiB", "--maximum-batch", "8", "--out", str(tmp_path), "--json"
    )

    first = blocks[0]
    assert result.code == 130
    saved = f"Training ended early; what was finished is in {tmp_path}."
    assert result.err.splitlines()[1:] == [saved, "Error: Interrupted."]
    assert result.json["interrupted"]
    assert result.json["left_out_units"] == list(range(first.last_unit + 1, 8))
    assert [row["unit"] for row in result.json["exits"]][-1] == first.last_unit
    assert load_exit(tmp_path / "exit")(torch.zeros(2, 1, 32, 32)).shape == (2, 10)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["exit", "run.json"]
    assert signal.getsignal(number) is before


def test_training_that_fails_keeps_the_blocks_it_has_finished(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    blocks: list[Block] = []
    caches: list[Path] = []
    train_block, keep_only = block_training.train_block, ActivationCache.keep_only

    def train_or_fail(store: UnitStore, block: Block, *arguments: Any, **options: Any) -> Any:
        blocks.append(block)
        if len(blocks) == 2:
            caches.extend(store.folder.parent.glob("cache/*"))
            raise StorageError("Cannot write weights: No space left on device.")
        return train_block(store, block, *arguments, **options)

    def keep_and_look(cache: ActivationCache, keys: Any) -> None:
        keep_only(cache, keys)
        assert caches
        assert not any(path.exists() for path in caches), "their room is needed for the exit"
        caches.clear()

    monkeypatch.setattr(device_training, "train_block", train_or_fail)
    monkeypatch.setattr(ActivationCache, "keep_only", keep_and_look)

    result = command(
        "train", *SMALL_TRAIN, "--budget", "2MiB", "--maximum-batch", "8", "--out", str(tmp_path), "--json"
    )

    assert result.code == 6
    assert result.err.splitlines()[-1] == "Error: Cannot write weights: No space left on device."
    assert not caches
    assert [row["unit"] for row in result.json["exits"]][-1] == blocks[0].last_unit
    assert load_exit(tmp_path / "exit")(torch.zeros(2, 1, 32, 32)).shape == (2, 10)


def test_a_loss_that_is_no_number_any_more_is_told(command: Command) -> None:
    result = command("train", *SMALL_TRAIN, "--maximum-batch", "8", "--learning-rate", "1e300", "--json")

    assert result.code == 0
    assert "is no number any more: choose a smaller --learning-rate." in result.err
    assert result.json["chosen_exit"] is not None


def test_training_that_is_interrupted_while_it_is_scored_is_saved(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def score_and_ask_to_end(*arguments: Any, **options: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return score_exits(*arguments, **options)

    monkeypatch.setattr(device_training, "score_exits", score_and_ask_to_end)

    result = command("train", *SMALL_TRAIN, "--maximum-batch", "8", "--out", str(tmp_path), "--json")

    assert result.code == 130
    assert not result.json["interrupted"], "all of it is trained"
    assert load_exit(tmp_path / "exit")(torch.zeros(2, 1, 32, 32)).shape == (2, 10)


@pytest.mark.slow
def test_installed_command_has_the_same_manners(tmp_path: Path) -> None:
    path = Path(sys.executable).parent / "neuroflux-fl"

    ended = subprocess.run(
        [path, "train", "--data", str(tmp_path / "missing")], capture_output=True, text=True, timeout=100, check=False
    )

    assert ended.returncode == 4
    assert ended.stdout == ""
    assert ended.stderr.startswith("Error: Data ")
    assert ended.stderr.count("\n") == 1


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
