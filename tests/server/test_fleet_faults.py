"""Devices that come, go, answer late or too few: every task ends up somewhere, and what was trained is used."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from neuroflux_fl.errors import FleetError, WireError
from neuroflux_fl.fleet_model import run_network
from neuroflux_fl.plan import Plan
from neuroflux_fl.run_config import RunConfig
from neuroflux_fl.update_codec import encode_update
from neuroflux_fl.wire import (
    PREFIX_NEEDED,
    Capabilities,
    EvaluateReport,
    ExitScore,
    TrainReport,
    TrainTask,
    UnitUpdate,
)
from server.answer_log import Answer
from server.fleet import Fleet, FleetResult
from server.fleet_state import FleetState, RoundRecord
from server.grid import InProcessGrid
from server.run_status import RunStatus

CONFIG = RunConfig(
    model="vgg11",
    width=0.05,
    train_limit=120,
    test_limit=40,
    schedule="joint",
    num_server_rounds=3,
    patience=9,
    local_epochs=1,
    views=1,
    poll_seconds=0.0,
    wait_seconds=10.0,
    reconnect_seconds=0.5,
    late_rounds=2,
    seed=3,
)
LAYOUTS = [run_network(CONFIG).layout(unit) for unit in range(8)]
UNIT = 2
STEP = 0.01
TOLERANCE = 1e-3
NO_PLAN = Plan(budget_bytes=None, blocks=(), untrained_units=())


def task_of(message: Message) -> bytes:
    data = message.content.config_records["config"]["task"]
    assert isinstance(data, bytes)
    return data


class AddingClient(ClientApp):
    """Trains one unit by adding a step for each node id to every parameter. All devices have ten images."""

    def __init__(self, precision_sent: str | None = None) -> None:
        super().__init__()
        self.tasks: list[tuple[int, int]] = []
        self.precision_sent = precision_sent
        self.forgetful: set[tuple[int, int]] = set()
        """(node, round) in which a device finds that it has lost its prefix."""
        self.prefixes_received: list[int] = []

    def __call__(self, message: Message, context: Context) -> Message:
        kind = message.metadata.message_type
        node = context.node_id
        if kind == "query.capabilities":
            capabilities = Capabilities(
                device_class="fake", memory_budget_bytes=None, train_examples=10, validation_examples=4
            )
            return answer(message, "capabilities", capabilities.to_bytes())
        if kind == "evaluate":
            exits = (ExitScore(unit=UNIT, correct=1, total=2),)
            return answer(message, "report", EvaluateReport(exits=exits, seconds=0.0).to_bytes())
        train = TrainTask.from_bytes(task_of(message))
        self.tasks.append((node, train.round))
        if (node, train.round) in self.forgetful and not train.sends_prefix:
            raise WireError(f"Prefix is not on this device: {PREFIX_NEEDED}.")
        self.prefixes_received += [node] * train.sends_prefix
        if UNIT not in range(train.first_unit, train.last_unit + 1):
            report = TrainReport(round=train.round, plan=NO_PLAN, updates=(), prefix_version=train.prefix_version)
            return answer(message, "report", report.to_bytes(), {})
        received = message.content.array_records["arrays"][f"unit-{UNIT:03d}"].numpy()
        trained = received.copy()
        trained[LAYOUTS[UNIT].unit_parameter_slice] += STEP * node
        trained[LAYOUTS[UNIT].head_parameter_slice] += STEP * node
        report = TrainReport(
            round=train.round,
            plan=NO_PLAN,
            updates=(UnitUpdate(unit=UNIT, examples=10, steps=1, effective_steps=1.0, has_head=True),),
            prefix_version=train.prefix_version,
        )
        coded = encode_update(trained, received, self.precision_sent or train.update_precision)
        return answer(message, "report", report.to_bytes(), {f"unit-{UNIT:03d}": Array(coded)})


def answer(message: Message, key: str, data: bytes, arrays: dict[str, Array] | None = None) -> Message:
    content = RecordDict({"config": ConfigRecord({key: data})})
    if arrays is not None:
        content["arrays"] = ArrayRecord(arrays)
    return Message(content, reply_to=message)


class FaultyGrid(InProcessGrid):
    """A fleet whose faults are scripted: by (node, round) an answer is withheld or lost; nodes come and go by poll."""

    def __init__(self, client: AddingClient, nodes: Iterable[int]) -> None:
        super().__init__(client, {node: {} for node in nodes}, CONFIG.to_flat())
        self.withheld: dict[tuple[int, int], int] = {}
        """Until when an answer is withheld: it comes once a task of this round has been sent."""
        self.lost: dict[tuple[int, int], int] = {}
        """How often a task is lost before it gets through."""
        self.absent: dict[int, range] = {}
        """Polls for connected nodes in which a node is not there."""
        self.polls = 0
        self.latest_round = 0
        self.sent: dict[str, tuple[int, int]] = {}
        self.messages: dict[str, Message] = {}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        batch = list(messages)
        ids = list(super().push_messages(batch))
        for message_id, message in zip(ids, batch, strict=True):
            kind, node = message.metadata.message_type, message.metadata.dst_node_id
            number = TrainTask.from_bytes(task_of(message)).round if kind == "train" else 0
            self.latest_round = max(self.latest_round, number)
            self.sent[message_id] = (node, number)
            self.messages[message_id] = message
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        wanted = []
        for message_id in message_ids:
            key = self.sent[message_id]
            if self.lost.get(key, 0):
                self.lost[key] -= 1
                return [Message(Error(code=5, reason="gone"), reply_to=self.messages[message_id])]
            if self.latest_round >= self.withheld.get(key, 0):
                wanted.append(message_id)
        return super().pull_messages(wanted)

    def get_node_ids(self) -> Iterable[int]:
        self.polls += 1
        return [node for node in super().get_node_ids() if self.polls not in self.absent.get(node, range(0))]


def run(
    grid: FaultyGrid,
    config: RunConfig = CONFIG,
    statuses: list[RunStatus] | None = None,
    answers: list[Answer] | None = None,
) -> tuple[FleetResult, tuple[RoundRecord, ...]]:
    on_status = None if statuses is None else statuses.append

    def checkpoint(state: FleetState, arrays: object, of_round: Sequence[Answer]) -> None:
        if answers is not None:
            answers.extend(of_round)

    result = Fleet(grid, config, run_network(config), on_status=on_status, checkpoint=checkpoint).run()
    return result, result.state.history


def fates(answers: Iterable[Answer]) -> list[tuple[int, int, str]]:
    return [(answer.round, answer.node_id, answer.fate) for answer in answers]


def moved(result: FleetResult) -> float:
    """How many steps the unit's parameters have moved from their start: one number, as all move alike."""
    where = LAYOUTS[UNIT].unit_parameter_slice
    start = run_network(CONFIG).initial(UNIT, CONFIG.seed)
    distance = (result.arrays[UNIT][where] - start[where]) / STEP
    np.testing.assert_allclose(distance, distance[0], atol=TOLERANCE)
    return float(distance[0])


def accounts(history: Iterable[RoundRecord]) -> list[tuple[int, int, int, int, int, int]]:
    return [(r.tasks, r.failed, r.missing, r.resent, r.late_used, r.late_dropped) for r in history]


def test_all_is_well() -> None:
    result, history = run(FaultyGrid(AddingClient(), [1, 2, 3]))

    assert accounts(history) == [(3, 0, 0, 0, 0, 0)] * 3
    assert moved(result) == pytest.approx(3 * 2.0, abs=TOLERANCE)


def test_lost_device_is_sent_its_task_again_and_counts_once() -> None:
    client = AddingClient()
    grid = FaultyGrid(client, [1, 2, 3])
    grid.lost = {(3, 2): 2}

    result, history = run(grid)

    assert accounts(history) == [(3, 0, 0, 0, 0, 0), (3, 0, 0, 2, 0, 0), (3, 0, 0, 0, 0, 0)]
    assert client.tasks.count((3, 2)) == 1
    assert moved(result) == pytest.approx(3 * 2.0, abs=TOLERANCE)


def test_prefix_travels_only_to_the_device_that_has_lost_it() -> None:
    # Prepare: the unit is in the second stage, whose prefix all devices have scored.
    client = AddingClient()
    client.forgetful = {(3, 2)}
    grid = FaultyGrid(client, [1, 2, 3])
    grid.lost = {(2, 2): 1}  # it comes back with its folder

    # Execute
    result, history = run(grid, replace(CONFIG, schedule="progressive", stage_units=2, num_server_rounds=2))

    # Assert
    assert [record.stage for record in history] == [0, 1]
    assert client.prefixes_received == [3]
    assert accounts(history)[1] == (3, 0, 0, 2, 0, 0)
    assert moved(result) == pytest.approx(2.0, abs=TOLERANCE)


def test_device_that_does_not_come_back_has_failed() -> None:
    grid = FaultyGrid(AddingClient(), [1, 2, 3])
    grid.lost = {(3, 2): 99}
    answers: list[Answer] = []

    result, history = run(grid, answers=answers)

    assert fates(answers)[3:6] == [(2, 1, "answered"), (2, 2, "answered"), (2, 3, "failed")]
    assert (answers[5].seconds, answers[5].bytes_up) == (None, 0)
    assert accounts(history) == [(3, 0, 0, 0, 0, 0), (3, 1, 0, 2, 0, 0), (3, 0, 0, 0, 0, 0)]
    assert moved(result) == pytest.approx(2.0 + 1.5 + 2.0, abs=TOLERANCE)


def test_late_answer_is_used_at_a_discount() -> None:
    # Prepare: device 3's answer to round 1 comes when round 2 has begun; until then it gets no other task.
    client = AddingClient()
    grid = FaultyGrid(client, [1, 2, 3])
    grid.withheld = {(3, 1): 2}
    config = replace(CONFIG, deadline_seconds=0.2)
    answers: list[Answer] = []

    # Execute
    result, history = run(grid, config, answers=answers)

    # Assert: round 2 averages 1 and 2 with weight 10 each and 3 with weight 5.
    assert accounts(history) == [(3, 0, 1, 0, 0, 0), (2, 0, 0, 0, 1, 0), (3, 0, 0, 0, 0, 0)]
    assert [node for node, number in client.tasks if number == 2] == [1, 2]
    assert history[1].contributors == {UNIT: 3}
    assert moved(result) == pytest.approx(1.5 + (10 + 20 + 15) / 25 + 2.0, abs=TOLERANCE)
    assert fates(answers)[:6] == [
        (1, 1, "answered"), (1, 2, "answered"), (1, 3, "missing"),
        (2, 1, "answered"), (2, 2, "answered"), (2, 3, "late_used"),
    ]  # fmt: skip
    missing, late = answers[2], answers[5]
    assert (missing.seconds, missing.bytes_up) == (None, 0)
    # The line of the round in which it came knows when the device was asked.
    assert late.sent_at == missing.sent_at < history[0].elapsed_seconds
    assert late.seconds is not None
    assert history[0].elapsed_seconds < late.sent_at + late.seconds <= history[1].elapsed_seconds
    assert late.bytes_up > 0


@pytest.mark.parametrize("changes", [{"late_rounds": 0}, {"staleness_discount": 0.0}])
def test_late_answer_that_is_not_wanted_is_counted(changes: dict[str, float]) -> None:
    grid = FaultyGrid(AddingClient(), [1, 2, 3])
    grid.withheld = {(3, 1): 2}

    result, history = run(grid, replace(CONFIG, deadline_seconds=0.2, **changes))  # type: ignore[arg-type]

    assert accounts(history) == [(3, 0, 1, 0, 0, 0), (2, 0, 0, 0, 0, 1), (3, 0, 0, 0, 0, 0)]
    assert moved(result) == pytest.approx(1.5 + 1.5 + 2.0, abs=TOLERANCE)


def test_answer_that_is_too_late_is_counted() -> None:
    grid = FaultyGrid(AddingClient(), [1, 2, 3])
    grid.withheld = {(3, 1): 3}

    answers: list[Answer] = []

    result, history = run(grid, replace(CONFIG, deadline_seconds=0.2, late_rounds=1), answers=answers)

    assert fates(answers)[-1] == (3, 3, "late_dropped")
    assert accounts(history) == [(3, 0, 1, 0, 0, 0), (2, 0, 0, 0, 0, 0), (2, 0, 0, 0, 0, 1)]
    assert moved(result) == pytest.approx(1.5 + 1.5 + 1.5, abs=TOLERANCE)


def test_round_ends_when_the_cohort_has_answered_and_the_others_come_late() -> None:
    # Two are wanted, three are asked.
    client = AddingClient()
    grid = FaultyGrid(client, [1, 2, 3])

    _, history = run(grid, replace(CONFIG, cohort=2, over_selection=0.5, quorum=2))

    # Device 3 is asked first and left over, answers in round 2, and is left over again in round 3.
    assert [(record.tasks, record.missing, record.late_used) for record in history] == [(3, 1, 0), (2, 0, 1), (3, 1, 0)]
    assert [record.contributors[UNIT] for record in history] == [2, 3, 2]


def test_device_that_joins_in_mid_run_takes_part() -> None:
    client = AddingClient()
    grid = FaultyGrid(client, [1, 2, 3])
    grid.absent = {3: range(3)}  # not there when the run and its first round begin

    result, history = run(grid)

    assert [record.tasks for record in history] == [2, 3, 3]
    assert sorted(device.node_id for device in result.state.devices) == [1, 2, 3]
    assert moved(result) == pytest.approx(1.5 + 2.0 + 2.0, abs=TOLERANCE)


def test_devices_that_are_lost_at_the_first_question_are_asked_again() -> None:
    grid = FaultyGrid(AddingClient(), [1, 2, 3])
    grid.lost = dict.fromkeys([(1, 0), (2, 0), (3, 0)], 2)  # what the SuperLink says after a fault of everyone

    result, history = run(grid)

    assert accounts(history) == [(3, 0, 0, 0, 0, 0)] * 3
    assert moved(result) == pytest.approx(3 * 2.0, abs=TOLERANCE)


def test_round_waits_while_too_few_devices_are_there() -> None:
    grid = FaultyGrid(AddingClient(), [1, 2, 3])
    grid.absent = dict.fromkeys((1, 2, 3), range(3, 6))  # all are gone when round 2 begins
    statuses: list[RunStatus] = []

    result, history = run(grid, replace(CONFIG, min_nodes=2), statuses)

    assert accounts(history) == [(3, 0, 0, 0, 0, 0)] * 3
    assert moved(result) == pytest.approx(3 * 2.0, abs=TOLERANCE)
    phases = [status.phase for status in statuses]
    assert "waiting" in phases[phases.index("training") : -1]
    assert (phases[-1], statuses[-1].contributors) == ("finished", {UNIT: 3})


def test_fleet_that_stays_away_ends_the_run_with_a_clear_message() -> None:
    grid = FaultyGrid(AddingClient(), [1, 2, 3])
    grid.absent = dict.fromkeys((1, 2, 3), range(3, 10**6))

    with pytest.raises(
        FleetError, match=r"0 devices were connected after 0\.3 s .* needed: 1 connected and .* can be resumed"
    ):
        run(grid, replace(CONFIG, wait_seconds=0.3))


def test_round_below_its_quorum_asks_again_and_counts_nobody_twice() -> None:
    # Prepare: two of three are lost in round 2, more often than a task is sent in one go.
    client = AddingClient()
    grid = FaultyGrid(client, [1, 2, 3])
    grid.lost = {(2, 2): 2, (3, 2): 2}

    # Execute
    result, history = run(grid, replace(CONFIG, quorum=3, task_attempts=2))

    # Assert
    assert accounts(history)[1] == (3, 0, 0, 4, 0, 0)
    assert [record.below_quorum for record in history] == [False, True, False]
    assert [client.tasks.count((node, 2)) for node in (1, 2, 3)] == [1, 1, 1]
    assert history[1].contributors == {UNIT: 3}
    assert moved(result) == pytest.approx(3 * 2.0, abs=TOLERANCE)


def test_device_that_failed_and_is_then_too_late_is_only_missing() -> None:
    # Prepare: devices 2 and 3 are lost and asked again for want of answers; then 2 is late.
    grid = FaultyGrid(AddingClient(), [1, 2, 3])
    grid.lost = {(2, 1): 2, (3, 1): 2}
    grid.withheld = {(2, 1): 2}
    answers: list[Answer] = []

    # Execute
    config = replace(CONFIG, quorum=2, task_attempts=2, deadline_seconds=0.4, num_server_rounds=2)
    _, history = run(grid, config, answers=answers)

    # Assert
    assert accounts(history) == [(3, 0, 1, 4, 0, 0), (2, 0, 0, 0, 1, 0)]
    assert fates(answers)[:3] == [(1, 1, "answered"), (1, 2, "missing"), (1, 3, "answered")]


def test_unit_below_its_quorum_keeps_its_value() -> None:
    grid = FaultyGrid(AddingClient(), [1, 2, 3])
    grid.lost = {(2, 2): 99, (3, 2): 99}

    result, history = run(grid, replace(CONFIG, unit_quorum=2))

    assert history[1].contributors == {UNIT: 1}
    assert [record.below_quorum for record in history] == [False, True, False]
    assert moved(result) == pytest.approx(2.0 + 2.0, abs=TOLERANCE)


@pytest.mark.parametrize(("precision", "tolerance"), [("float16", 2e-3), ("int8", 2e-2)])
def test_coded_updates_are_averaged(precision: str, tolerance: float) -> None:
    result, history = run(FaultyGrid(AddingClient(), [1, 2, 3]), replace(CONFIG, update_precision=precision))

    assert all(record.rejected == {} for record in history)
    assert moved(result) == pytest.approx(6.0, abs=tolerance)
    full = run(FaultyGrid(AddingClient(), [1, 2, 3]))[1]
    assert history[0].bytes_up < 0.52 * full[0].bytes_up


@pytest.mark.parametrize(("asked", "sent"), [("int8", "float32"), ("float16", "int8"), ("float32", "int8")])
def test_update_in_another_coding_is_rejected(asked: str, sent: str) -> None:
    grid = FaultyGrid(AddingClient(precision_sent=sent), [1, 2])

    result, history = run(grid, replace(CONFIG, update_precision=asked))

    reason = "wrong_dtype" if asked == "float32" else "wrong_coding"
    assert [record.rejected for record in history] == [{reason: 2}] * 3
    assert moved(result) == 0


def test_late_coded_update_is_decoded_with_the_weights_that_it_began_with() -> None:
    grid = FaultyGrid(AddingClient(), [1, 2, 3])
    grid.withheld = {(3, 1): 2}

    result, history = run(grid, replace(CONFIG, deadline_seconds=0.2, update_precision="float16"))

    assert history[1].late_used == 1
    assert moved(result) == pytest.approx(1.5 + (10 + 20 + 15) / 25 + 2.0, abs=5e-3)


def test_status_file_is_whole_json(tmp_path: Path) -> None:
    import json

    from server.run_status import STATUS_FILE, write_status

    write_status(tmp_path, RunStatus(phase="training", round=2, contributors={3: 4}))

    status = json.loads((tmp_path / STATUS_FILE).read_text())
    assert (status["phase"], status["round"], status["contributors"]) == ("training", 2, {"3": 4})
    assert status["updated_at"] > 0
