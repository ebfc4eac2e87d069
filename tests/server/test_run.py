"""A whole tiny fleet with the real client code: what is trained, what travels, what is written, and how it resumes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, Message, UserConfig
from flwr.clientapp import ClientApp
from numpy.typing import NDArray

from clients.app import app as client_app
from clients.device import run_profile
from neuroflux_fl.errors import FleetError, StorageError
from neuroflux_fl.evaluation import Score
from neuroflux_fl.exits import load_exit
from neuroflux_fl.fleet_model import run_data, run_network
from neuroflux_fl.run_config import RunConfig
from neuroflux_fl.wire import EvaluateTask, TrainReport, TrainTask
from server.device_totals import DeviceTotals
from server.fleet_state import FleetState, RoundRecord
from server.grid import InProcessGrid, isolated
from server.grid_workers import worker_grid
from server.run import execute_run
from server.run_folder import read_run_folder

# Plans of the threshold planner do not depend on how busy the machine is, so worker processes make the same ones.
CONFIG = RunConfig(
    model="vgg11",
    width=0.05,
    train_limit=210,
    test_limit=40,
    partition="iid",
    planner="threshold",
    rho=0.0,
    stage_units=4,
    num_server_rounds=3,
    local_epochs=1,
    views=1,
    patience=9,
    poll_seconds=0.0,
    seed=3,
    run_name="trial",
)
SMALL, LARGE, TINY = 1, 2, 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """One message to a device and its answer, as they travelled."""

    node: int
    sent: Message
    reply: Message

    @property
    def kind(self) -> str:
        return self.sent.metadata.message_type

    @property
    def sent_units(self) -> list[int]:
        return units_of(self.sent)

    @property
    def task(self) -> TrainTask | EvaluateTask:
        data = as_bytes(self.sent.content.config_records["config"]["task"])
        return TrainTask.from_bytes(data) if self.kind == "train" else EvaluateTask.from_bytes(data)

    @property
    def report(self) -> TrainReport:
        return TrainReport.from_bytes(as_bytes(self.reply.content.config_records["config"]["report"]))


@dataclass
class Recorder(ClientApp):
    """The real client app, with a record of all that goes in and out."""

    exchanges: list[Exchange] = field(default_factory=list)

    def __call__(self, message: Message, context: Context) -> Message:
        sent = isolated(message)
        reply = client_app(message, context)
        self.exchanges.append(Exchange(node=context.node_id, sent=sent, reply=isolated(reply)))
        return reply

    def of(self, kind: str, node: int) -> list[Exchange]:
        return [exchange for exchange in self.exchanges if (exchange.kind, exchange.node) == (kind, node)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A finished run."""

    config: RunConfig
    out: Path
    summary: dict[str, Any]
    recorder: Recorder
    arrays: dict[int, NDArray[np.float32]]


def as_bytes(value: object) -> bytes:
    assert isinstance(value, bytes)
    return value


def units_of(message: Message) -> list[int]:
    return [int(key.removeprefix("unit-")) for key in message.content.array_records["arrays"]]


def bytes_of(message: Message) -> int:
    arrays = message.content.array_records["arrays"].values()
    config = message.content.config_records["config"].values()
    return sum(len(array.data) for array in arrays) + sum(len(value) for value in config if isinstance(value, bytes))


def make_nodes(folder: Path) -> dict[int, UserConfig]:
    """A device for small batches, one without limits that matter, and one that cannot train the first stage."""
    profile = run_profile(CONFIG, torch.device("cpu"))
    planner = CONFIG.planner_settings(examples=64)

    def needed(unit: int, batch: int) -> int:
        return planner.needed_budget(profile.unit(unit).peak_bytes(batch))

    budgets = {SMALL: needed(0, 4), LARGE: 64 * 1024**2, TINY: min(needed(unit, 2) for unit in range(4)) - 1}
    assert budgets[TINY] >= min(needed(unit, 2) for unit in range(4, 8))
    return {
        node: {
            "partition-id": node - 1,
            "num-partitions": 3,
            "memory-budget": str(budget),
            "state-folder": str(folder / f"device-{node}"),
        }
        for node, budget in budgets.items()
    }


def run_fleet(folder: Path, *, resume: bool = False, stop_after: int | None = None) -> Run:
    config = replace(CONFIG, out=str(folder / "out"))

    def observe(record: RoundRecord, devices: Sequence[DeviceTotals]) -> None:
        if record.round == stop_after:
            raise KeyboardInterrupt

    recorder = Recorder()
    with InProcessGrid(recorder, make_nodes(folder), config.to_flat()) as grid:
        summary = execute_run(grid, config, observer=observe, resume=resume)
    return Run(config=config, out=folder / "out", summary=summary, recorder=recorder, arrays=saved_arrays(folder))


def saved_arrays(folder: Path) -> dict[int, NDArray[np.float32]]:
    saved = FleetState.load(folder / "out")
    assert saved is not None
    return {int(key.removeprefix("unit-")): array for key, array in saved[1].items()}


def assert_equal_arrays(first: dict[int, NDArray[np.float32]], second: dict[int, NDArray[np.float32]]) -> None:
    assert first.keys() == second.keys()
    for unit, array in first.items():
        np.testing.assert_array_equal(array, second[unit], err_msg=f"unit {unit}")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Three rounds: two of the first stage, one of the second."""
    return run_fleet(tmp_path_factory.mktemp("fleet"))


def test_devices_make_their_own_plans_within_their_budgets(run: Run) -> None:
    rows = {row["node_id"]: row for row in run.summary["devices"]}

    assert rows[SMALL]["blocks"] != rows[LARGE]["blocks"]
    first_batch = {node: rows[node]["blocks"][0]["batch_size"] for node in (SMALL, LARGE)}
    assert first_batch[SMALL] == 4 < first_batch[LARGE]
    for row in rows.values():
        assert 0 < row["predicted_peak_bytes"] <= row["budget_bytes"]
        assert row["measured_peak_bytes"] > 0
        assert row["samples"] > 0


def test_stages_are_trained_one_after_the_other(run: Run) -> None:
    rounds = run.summary["rounds"]

    assert [(record["round"], record["stage"]) for record in rounds] == [(1, 0), (2, 0), (3, 1)]
    # The tiny device trains nothing of the first stage.
    assert rounds[0]["contributors"] == rounds[1]["contributors"] == dict.fromkeys(range(4), 2)
    assert rounds[2]["contributors"].keys() == set(range(4, 8))
    assert rounds[2]["contributors"][7] == 3
    assert all(not record["rejected"] and not record["failed"] and not record["missing"] for record in rounds)


def test_frozen_stage_does_not_change_any_more(run: Run) -> None:
    second, third = (exchange.sent for exchange in run.recorder.of("train", LARGE)[1:])
    scored = run.recorder.of("evaluate", LARGE)[-1].sent

    assert units_of(second) == [0, 1, 2, 3]
    assert units_of(third) == [4, 5, 6, 7]
    for unit in range(4):
        key = f"unit-{unit:03d}"
        final = scored.content.array_records["arrays"][key].numpy()
        np.testing.assert_array_equal(final, run.arrays[unit])
        assert not np.array_equal(final, second.content.array_records["arrays"][key].numpy())


def test_device_that_cannot_train_a_stage_still_scores_its_exits(run: Run) -> None:
    for exchange in run.recorder.of("train", TINY)[:2]:
        assert (exchange.report.updates, units_of(exchange.reply)) == ((), [])
        assert exchange.report.plan.untrained_units == (0, 1, 2, 3)
        assert [score.unit for score in exchange.report.exits] == [0, 1, 2, 3]
        assert all(score.total > 0 for score in exchange.report.exits)
    assert run.recorder.of("train", TINY)[2].report.updates


def test_only_the_stages_units_travel(run: Run) -> None:
    for node in (SMALL, LARGE):
        trained = run.recorder.of("train", node)
        assert [exchange.sent_units for exchange in trained[:2]] == [[0, 1, 2, 3]] * 2
        assert [units_of(exchange.reply) for exchange in trained[:2]] == [[0, 1, 2, 3]] * 2
        assert units_of(trained[2].reply) == [4, 5, 6, 7]
        # The device scored the finished stage, so it holds the prefix of the next.
        assert (trained[2].sent_units, trained[2].task.sends_prefix) == ([4, 5, 6, 7], False)
        assert trained[2].task.prefix_version != trained[0].task.prefix_version


def test_tasks_go_on_where_earlier_rounds_ended(run: Run) -> None:
    tasks = [exchange.task for exchange in run.recorder.of("train", LARGE)]

    trained = [task for task in tasks if isinstance(task, TrainTask)]
    assert [(task.round, task.first_epoch, task.epochs) for task in trained] == [(1, 0, 1), (2, 1, 1), (3, 2, 1)]
    # The rate falls within a stage and starts anew with the next.
    assert [task.learning_rate_scale for task in trained] == pytest.approx([1.0, 0.525, 1.0])


def test_bytes_of_a_round_are_those_that_travelled(run: Run) -> None:
    for number, record in enumerate(run.summary["rounds"]):
        exchanges = [run.recorder.of("train", node)[number] for node in (SMALL, LARGE, TINY)]
        assert record["bytes_down"] == sum(bytes_of(exchange.sent) for exchange in exchanges)
        assert record["bytes_up"] == sum(bytes_of(exchange.reply) for exchange in exchanges)
    assert run.summary["bytes_up"] >= sum(record["bytes_up"] for record in run.summary["rounds"])


def test_files_say_what_the_summary_says(run: Run) -> None:
    assert sorted(path.name for path in run.out.iterdir()) == [
        "answers.jsonl", "exit", "fleet.safetensors", "rounds.jsonl", "run.json", "setting.json", "status.json",
    ]  # fmt: skip
    as_json = json.loads(json.dumps(run.summary))
    assert json.loads((run.out / "run.json").read_text()) == as_json
    lines = (run.out / "rounds.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == as_json["rounds"]


def test_setting_tells_what_the_run_is_about(run: Run) -> None:
    setting = json.loads((run.out / "setting.json").read_text())

    assert setting["run"] == "trial"
    for key in ("config", "data", "versions", "machine"):
        assert setting[key] == run.summary[key]
    sizes = {row["unit"]: row["parameters"] for row in run.summary["exits"]}
    every = {row["unit"]: row["exit_parameters"] for row in setting["units"]}
    assert sizes.items() < every.items(), "heads inside windows are not trained"
    tested = {int(unit) for record in run.summary["rounds"] for unit in record["test"]}
    assert tested == sizes.keys()
    assert setting["started_at"] < run.summary["rounds"][0]["ended_at"]


def test_answers_are_those_that_devices_gave(run: Run) -> None:
    answers = read_run_folder(run.out).answers

    assert [(answer.round, answer.node_id) for answer in answers] == [
        (number, node) for number in (1, 2, 3) for node in (SMALL, LARGE, TINY)
    ]
    for answer in answers:
        exchange = run.recorder.of("train", answer.node_id)[answer.round - 1]
        seconds, record = exchange.report.seconds, run.summary["rounds"][answer.round - 1]
        assert (answer.fate, answer.bytes_up) == ("answered", bytes_of(exchange.reply))
        assert (answer.profile, answer.train, answer.cache, answer.evaluate) == (
            seconds.profile, seconds.train, seconds.cache, seconds.evaluate,
        )  # fmt: skip
        assert answer.samples == max((block.samples for block in exchange.report.blocks), default=0)
        assert answer.seconds is not None
        assert 0 < answer.seconds <= record["seconds"]
        assert record["elapsed_seconds"] - record["seconds"] <= answer.sent_at < record["elapsed_seconds"]


def test_rounds_add_up_to_the_runs_totals(run: Run) -> None:
    rounds = run.summary["rounds"]

    assert sum(record["samples"] for record in rounds) == run.summary["samples"]
    trained = [exchange.report for node in (SMALL, LARGE, TINY) for exchange in run.recorder.of("train", node)]
    spent = [report.seconds for report in trained]
    assert sum(record["device_seconds"] for record in rounds) == pytest.approx(
        sum(one.profile + one.train + one.cache + one.evaluate for one in spent)
    )
    for before, record in pairwise(rounds):
        assert before["ended_at"] < record["ended_at"]
        assert before["elapsed_seconds"] < record["elapsed_seconds"] < run.summary["seconds"]
    for record in rounds:
        assert 0 < record["aggregation_seconds"] < record["seconds"]
        assert (record["below_quorum"], record["update_error"]) == (False, 0.0)


def test_folder_of_a_finished_run_reads_back(run: Run) -> None:
    folder = read_run_folder(run.out)

    assert folder.summary == json.loads(json.dumps(run.summary))
    assert folder.state is not None
    assert [asdict(record) for record in folder.state.history] == run.summary["rounds"]
    assert folder.status is not None
    assert (folder.status["phase"], folder.status["round"]) == ("finished", 3)
    assert read_run_folder(run.out, answers=False).answers == ()


def test_saved_exit_has_the_test_accuracy_that_was_reported(run: Run) -> None:
    data = run_data(run.config)

    model = load_exit(run.out / "exit")
    with torch.no_grad():
        scores = model(torch.from_numpy(data.test.images))

    chosen = run.summary["chosen_exit"]
    accuracy = float((scores.argmax(1).numpy() == data.test.labels).mean())
    assert accuracy == pytest.approx(chosen["test_accuracy"])
    assert sum(parameter.numel() for parameter in model.parameters()) == chosen["parameters"]
    assert chosen in run.summary["exits"]
    best = max(row["validation_accuracy"] for row in run.summary["exits"])
    images = round(0.9 * run.config.validation_fraction * run.config.train_limit)  # at least; shares are rounded
    standard_error = Score(round(best * images), images).standard_error
    assert chosen["validation_accuracy"] >= best - run.config.standard_errors * standard_error


def test_resumed_run_ends_with_the_same_numbers(run: Run, tmp_path: Path) -> None:
    # Prepare: end a run after its second round, as a kill would.
    with pytest.raises(KeyboardInterrupt):
        run_fleet(tmp_path, stop_after=2)
    out = tmp_path / "out"
    assert not (out / "run.json").exists()
    setting = json.loads((out / "setting.json").read_text())
    # The kill came between the answers of a round and its state.
    lost = '{"round":3,"node_id":1,"sent_at":1.0,"seconds":2.0,"fate":"answered"}\n{"round":3,"nod'
    with (out / "answers.jsonl").open("a") as file:
        file.write(lost)

    # Execute
    resumed = run_fleet(tmp_path, resume=True)

    # Assert
    assert [exchange.task.round for exchange in resumed.recorder.of("train", LARGE)] == [3]
    assert resumed.recorder.of("train", LARGE)[0].sent_units == list(range(8))
    assert_equal_arrays(resumed.arrays, run.arrays)
    assert resumed.summary["exits"] == run.summary["exits"]
    assert len((tmp_path / "out" / "rounds.jsonl").read_text().splitlines()) == 3
    counted = ("node_id", "rounds", "evaluations", "last_round", "samples", "losses", "untrained_units")
    assert [[row[name] for name in counted] for row in resumed.summary["devices"]] == [
        [row[name] for name in counted] for row in run.summary["devices"]
    ]
    of_block = ("first_unit", "last_unit", "batch_size", "predicted_peak_bytes", "samples", "loss")
    assert [[[block[name] for name in of_block] for block in row["blocks"]] for row in resumed.summary["devices"]] == [
        [[block[name] for name in of_block] for block in row["blocks"]] for row in run.summary["devices"]
    ]
    folder = read_run_folder(out)
    assert [(answer.round, answer.node_id, answer.samples) for answer in folder.answers] == [
        (answer.round, answer.node_id, answer.samples) for answer in read_run_folder(run.out).answers
    ]
    assert folder.setting["started_at"] == setting["started_at"]
    for before, record in pairwise(resumed.summary["rounds"]):
        assert before["elapsed_seconds"] < record["elapsed_seconds"]
    # Measured times, as protobuf codes them, differ in length by a few bytes.
    assert resumed.summary["bytes_up"] == pytest.approx(run.summary["bytes_up"], abs=200)
    assert resumed.summary["tasks"] == run.summary["tasks"]
    fields = ("round", "stage", "exits", "test", "contributors", "samples", "below_quorum")
    assert [[record[name] for name in fields] for record in resumed.summary["rounds"]] == [
        [record[name] for name in fields] for record in run.summary["rounds"]
    ]


def test_state_of_another_model_is_refused(run: Run, tmp_path: Path) -> None:
    for changes in ({"width": 0.1}, {"schedule": "joint"}):
        config = replace(run.config, **changes)
        with (
            InProcessGrid(client_app, make_nodes(tmp_path), config.to_flat()) as grid,
            pytest.raises(StorageError, match="another model or schedule"),
        ):
            execute_run(grid, config, resume=True)


@pytest.mark.slow
def test_worker_process_gives_the_same_numbers(run: Run, tmp_path: Path) -> None:
    config = replace(CONFIG, out=str(tmp_path / "out"))
    grid = worker_grid(
        "clients.app:app",
        make_nodes(tmp_path),
        config.to_flat(),
        workers=1,
        torch_threads=1,
        initializer="clients.process:prepare_process",
    )

    with grid:
        summary = execute_run(grid, config)

    assert_equal_arrays(saved_arrays(tmp_path), run.arrays)
    assert summary["exits"] == run.summary["exits"]


def test_run_that_starts_anew_leaves_nothing_of_the_one_before(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_fleet(tmp_path, stop_after=2)
    (tmp_path / "out" / "run.json").write_text("{}")

    with pytest.raises(KeyboardInterrupt):
        run_fleet(tmp_path, stop_after=1)

    folder = read_run_folder(tmp_path / "out")
    assert folder.state is not None
    assert (folder.state.round, folder.summary) == (1, None)
    assert {answer.round for answer in folder.answers} == {1}


def test_run_that_fails_says_why_in_its_folder(tmp_path: Path) -> None:
    config = replace(CONFIG, out=str(tmp_path), wait_seconds=0.0)

    with InProcessGrid(client_app, {}, {}) as grid, pytest.raises(FleetError, match="needs 1"):
        execute_run(grid, config)

    folder = read_run_folder(tmp_path)
    assert folder.status is not None
    assert (folder.status["phase"], folder.status["error_kind"]) == ("failed", "FleetError")
    assert "the run needs 1" in folder.status["error"]
    assert (folder.state, folder.summary, folder.setting["run"]) == (None, None, "trial")


def test_folder_that_cannot_be_written_ends_the_run_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    config = replace(CONFIG, out=str(tmp_path / "out"))

    with InProcessGrid(client_app, {}, {}) as grid, pytest.raises(StorageError, match="Choose another with --out"):
        execute_run(grid, config)


def test_network_of_the_run_is_built_once() -> None:
    assert run_network(CONFIG) is run_network(replace(CONFIG, budgets="1MiB"))
