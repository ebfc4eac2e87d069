"""The protocol against devices that fail, lie or lack memory; and its average against Flower's own."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Array, ConfigRecord, Context, Message, RecordDict, UserConfig
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from numpy.typing import NDArray

from clients.app import app as client_app
from clients.device import run_profile
from neuroflux_fl.errors import FleetError
from neuroflux_fl.fleet_model import run_network
from neuroflux_fl.run_config import RunConfig
from neuroflux_fl.wire import Capabilities, EvaluateReport, ExitScore, TrainReport
from server.fleet import Fleet, FleetResult
from server.grid import InProcessGrid, isolated

CONFIG = RunConfig(
    model="vgg11",
    width=0.05,
    train_limit=120,
    test_limit=40,
    partition="iid",
    schedule="joint",
    num_server_rounds=1,
    local_epochs=1,
    reach=1,
    views=1,
    poll_seconds=0.0,
    wait_seconds=0.0,
    seed=3,
)
UNITS = 8
HONEST, SUSPECT = 1, 2
Change = Callable[[RecordDict], None]


@dataclass
class Recorder(ClientApp):
    """The real client app; keeps the last answer of each kind of each node."""

    answers: dict[tuple[str, int], Message]

    def __call__(self, message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        self.answers[message.metadata.message_type, context.node_id] = isolated(reply)
        return reply


@dataclass
class Replay(ClientApp):
    """Gives recorded answers. ``change`` works on the suspect's answer to a training task before it is sent."""

    answers: dict[tuple[str, int], Message]
    change: Change | None = None

    def __call__(self, message: Message, context: Context) -> Message:
        kind = message.metadata.message_type
        content = isolated(self.answers[kind, context.node_id]).content
        if self.change is not None and kind == "train" and context.node_id == SUSPECT:
            self.change(content)
        return Message(content, reply_to=message)


@dataclass(frozen=True, slots=True, kw_only=True)
class JointRound:
    """One round in which two devices with equal budgets trained every unit."""

    answers: dict[tuple[str, int], Message]
    result: FleetResult


def make_nodes(folder: Path, *budgets: int) -> dict[int, UserConfig]:
    return {
        index + 1: {
            "partition-id": index,
            "num-partitions": len(budgets),
            "memory-budget": str(budget),
            "state-folder": str(folder / f"device-{index}"),
        }
        for index, budget in enumerate(budgets)
    }


def run_fleet(app: ClientApp, nodes: dict[int, UserConfig], config: RunConfig = CONFIG) -> FleetResult:
    network = run_network(config)
    with InProcessGrid(app, nodes, config.to_flat()) as grid:
        return Fleet(grid, config, network).run()


def needed(unit: int, batch: int) -> int:
    profile = run_profile(CONFIG, torch.device("cpu"))
    return CONFIG.planner_settings(examples=64).needed_budget(profile.unit(unit).peak_bytes(batch))


def initial(unit: int) -> NDArray[np.float32]:
    return run_network(CONFIG).initial(unit, CONFIG.seed)


def report_of(content: RecordDict) -> TrainReport:
    data = content.config_records["config"]["report"]
    assert isinstance(data, bytes)
    return TrainReport.from_bytes(data)


def put_report(content: RecordDict, report: TrainReport | bytes) -> None:
    data = report if isinstance(report, bytes) else report.to_bytes()
    content["config"] = ConfigRecord({"report": data})


@pytest.fixture(scope="module")
def joint(tmp_path_factory: pytest.TempPathFactory) -> JointRound:
    recorder = Recorder({})
    nodes = make_nodes(tmp_path_factory.mktemp("joint"), 64 * 1024**2, 64 * 1024**2)
    result = run_fleet(recorder, nodes)
    return JointRound(answers=recorder.answers, result=result)


def replay(joint: JointRound, change: Change | None = None, config: RunConfig = CONFIG) -> FleetResult:
    return run_fleet(Replay(joint.answers, change), {HONEST: {}, SUSPECT: {}}, config)


def test_equal_devices_give_what_flowers_fedavg_gives(joint: JointRound) -> None:
    # Prepare: the very answers that were aggregated.
    replies = [isolated(joint.answers["train", node]) for node in (HONEST, SUSPECT)]
    plans = [report_of(reply.content).plan for reply in replies]
    assert plans[0].blocks == plans[1].blocks

    # Execute
    arrays, _ = FedAvg().aggregate_train(1, replies)

    # Assert
    assert arrays is not None
    assert joint.result.state.history[0].contributors == dict.fromkeys(range(UNITS), 2)
    for unit in range(UNITS):
        theirs = arrays[f"unit-{unit:03d}"].numpy()
        np.testing.assert_allclose(joint.result.arrays[unit], theirs, rtol=1e-5, atol=1e-6)
        assert not np.allclose(theirs, initial(unit), rtol=1e-5, atol=1e-6)


def test_final_scores_are_those_that_devices_answered(joint: JointRound) -> None:
    totals = dict.fromkeys(range(UNITS), 0)
    for node in (HONEST, SUSPECT):
        data = joint.answers["evaluate", node].content.config_records["config"]["report"]
        assert isinstance(data, bytes)
        for score in EvaluateReport.from_bytes(data).exits:
            totals[score.unit] += score.total
    assert {unit: score.total for unit, score in joint.result.validation.items()} == totals


def change_array(unit: int, change: Callable[[NDArray[np.float32]], NDArray[np.generic]]) -> Change:
    def apply(content: RecordDict) -> None:
        arrays = content.array_records["arrays"]
        key = f"unit-{unit:03d}"
        arrays[key] = Array(np.ascontiguousarray(change(arrays[key].numpy().copy())))

    return apply


def change_bytes(unit: int, data: bytes) -> Change:
    def apply(content: RecordDict) -> None:
        arrays = content.array_records["arrays"]
        arrays[f"unit-{unit:03d}"] = Array(dtype="float32", shape=(4,), stype="numpy.ndarray", data=data)

    return apply


def drop_array(content: RecordDict) -> None:
    del content.array_records["arrays"]["unit-002"]


def name_another_round(content: RecordDict) -> None:
    put_report(content, replace(report_of(content), round=7))


def name_another_unit(content: RecordDict) -> None:
    report = report_of(content)
    updates = tuple(replace(update, unit=100) if update.unit == 2 else update for update in report.updates)
    put_report(content, replace(report, updates=updates))
    content.array_records["arrays"]["unit-100"] = content.array_records["arrays"]["unit-002"]


def as_archive() -> bytes:
    file = io.BytesIO()
    np.savez(file, values=np.zeros(4, np.float32))
    return file.getvalue()


def claiming_shape(shape: str) -> bytes:
    """A NumPy file whose header claims more values than follow."""
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


ONE_UNIT_REJECTED = [
    ("not_finite", change_array(2, lambda array: array * np.float32(np.nan))),
    ("wrong_size", change_array(2, lambda array: array[:-1])),
    ("wrong_dtype", change_array(2, lambda array: array.astype(np.float64))),
    ("absurd_norm", change_array(2, lambda array: array * np.float32(1e4))),
    ("missing_array", drop_array),
    ("unknown_unit", name_another_unit),
    ("unreadable", change_bytes(2, b"garbage")),
    ("unreadable", change_bytes(2, as_archive())),
    ("unreadable", change_bytes(2, b"PK\x03\x04 no archive")),
    ("unreadable", change_bytes(2, claiming_shape("(10000000000000,)"))),
    ("unreadable", change_bytes(2, claiming_shape("(10000000000000000000000000,)"))),
]


@pytest.mark.parametrize(("reason", "change"), ONE_UNIT_REJECTED)
def test_bad_update_of_one_unit_is_left_out(joint: JointRound, reason: str, change: Change) -> None:
    result = replay(joint, change)

    (record,) = result.state.history
    assert record.rejected == {reason: 1}
    assert record.contributors == {unit: 1 if unit == 2 else 2 for unit in range(UNITS)}
    honest = joint.answers["train", HONEST].content.array_records["arrays"]["unit-002"].numpy()
    np.testing.assert_allclose(result.arrays[2], honest, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(result.arrays[3], joint.result.arrays[3])


def garbage_report(content: RecordDict) -> None:
    put_report(content, b"\xff\xfe garbage")


def no_report(content: RecordDict) -> None:
    content["config"] = ConfigRecord({})


def text_report(content: RecordDict) -> None:
    content["config"] = ConfigRecord({"report": "text"})


def no_records(content: RecordDict) -> None:
    for name in list(content):
        del content[name]


def no_arrays(content: RecordDict) -> None:
    del content["arrays"]


@pytest.mark.parametrize(
    ("rejected", "change"),
    [
        ({"wrong_round": UNITS}, name_another_round),
        ({"malformed": 1}, garbage_report),
        ({"malformed": 1}, no_report),
        ({"malformed": 1}, text_report),
        ({"malformed": 1}, no_records),
        ({"missing_array": UNITS}, no_arrays),
    ],
)
def test_bad_answer_is_left_out_altogether(joint: JointRound, rejected: dict[str, int], change: Change) -> None:
    result = replay(joint, change)

    (record,) = result.state.history
    assert record.rejected == rejected
    assert record.contributors == dict.fromkeys(range(UNITS), 1)
    honest = joint.answers["train", HONEST].content.array_records["arrays"]
    for unit in range(UNITS):
        np.testing.assert_allclose(result.arrays[unit], honest[f"unit-{unit:03d}"].numpy(), rtol=1e-5, atol=1e-6)


def test_scores_of_exits_outside_the_stage_are_not_counted(joint: JointRound) -> None:
    def score_unknown_exit(content: RecordDict) -> None:
        report = report_of(content)
        put_report(content, replace(report, exits=(*report.exits, ExitScore(unit=99, correct=9, total=9))))

    (record,) = replay(joint, score_unknown_exit).state.history

    assert sorted(record.exits) == list(range(UNITS))


def fail(content: RecordDict) -> None:
    raise ValueError("battery empty")


def test_failed_device_is_counted_and_the_run_goes_on(joint: JointRound, caplog: pytest.LogCaptureFixture) -> None:
    result = replay(joint, fail)

    (record,) = result.state.history
    assert (record.failed, record.rejected) == (1, {})
    assert record.contributors == dict.fromkeys(range(UNITS), 1)
    assert "Device 2 failed: ValueError: battery empty" in caplog.messages


def test_missed_quorum_ends_the_run(joint: JointRound) -> None:
    with pytest.raises(FleetError, match="Round 1 got 1 good replies; the quorum is 2"):
        replay(joint, fail, replace(CONFIG, quorum=2))


def test_run_needs_its_nodes(joint: JointRound) -> None:
    with pytest.raises(FleetError, match="the run needs 3"):
        replay(joint, None, replace(CONFIG, min_nodes=3))


def test_cohort_is_part_of_the_fleet(joint: JointRound) -> None:
    (record,) = replay(joint, None, replace(CONFIG, cohort=1)).state.history

    assert record.contributors == dict.fromkeys(range(UNITS), 1)


def test_fleet_that_answers_no_query_is_an_error(joint: JointRound) -> None:
    class Mute(ClientApp):
        def __call__(self, message: Message, context: Context) -> Message:
            return Message(RecordDict({"config": ConfigRecord({"capabilities": b"\xff"})}), reply_to=message)

    with pytest.raises(FleetError, match="None of 2 devices answered the capability query: answers that do not parse"):
        run_fleet(Mute(), {1: {}, 2: {}})


def with_capabilities(joint: JointRound, change: Callable[[Capabilities], Capabilities]) -> JointRound:
    answers = dict(joint.answers)
    for node in (HONEST, SUSPECT):
        data = answers["query.capabilities", node].content.config_records["config"]["capabilities"]
        assert isinstance(data, bytes)
        changed = isolated(answers["query.capabilities", node])
        capabilities = change(Capabilities.from_bytes(data)).to_bytes()
        changed.content["config"] = ConfigRecord({"capabilities": capabilities})
        answers["query.capabilities", node] = changed
    return JointRound(answers=answers, result=joint.result)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("backprop-fitting", "None of 2 devices has the memory for backpropagation"),
        ("neuroflux", "None of 2 devices has the memory for any of units 0 to 7"),
    ],
)
def test_fleet_without_the_memory_is_an_error(joint: JointRound, method: str, message: str) -> None:
    poor = with_capabilities(joint, lambda c: replace(c, memory_budget_bytes=1024**2, holds_backprop=False))

    with pytest.raises(FleetError, match=message):
        replay(poor, None, replace(CONFIG, method=method))


def test_deepening_ends_where_no_device_has_the_memory(joint: JointRound) -> None:
    # Prepare: the second half of the network needs more than any device has.
    def heavy_end(capabilities: Capabilities) -> Capabilities:
        lines = tuple(replace(line, fixed_bytes=2**40) if line.unit >= 4 else line for line in capabilities.unit_memory)
        return replace(capabilities, unit_memory=lines)

    config = replace(CONFIG, schedule="progressive", stage_units=4, num_server_rounds=4)

    # Execute
    result = replay(with_capabilities(joint, heavy_end), None, config)

    # Assert: the answers recorded are to round 1 and are refused in round 2; what matters is that the run ends well.
    assert [record.stage for record in result.state.history] == [0, 0]
    assert sorted(result.validation) == [0, 1, 2, 3]


def test_unit_that_nobody_trained_keeps_its_value(tmp_path: Path) -> None:
    # Prepare: a budget just too small for the first unit, whose activations are the largest.
    budget = needed(0, 2) - 1
    assert all(needed(unit, 2) <= budget for unit in range(1, UNITS))

    # Execute
    result = run_fleet(client_app, make_nodes(tmp_path, budget))

    # Assert
    assert result.state.history[0].contributors == dict.fromkeys(range(1, UNITS), 1)
    np.testing.assert_array_equal(result.arrays[0], initial(0))
    assert all(not np.array_equal(result.arrays[unit], initial(unit)) for unit in range(1, UNITS))
    assert sorted(result.validation) == list(range(1, UNITS))
