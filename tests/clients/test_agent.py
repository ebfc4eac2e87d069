"""A real agent process: same answers as in the ClientApp's own process, and kills on either side lose no work."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict, UserConfig

from clients import agent_messages
from clients import agent_pb2 as pb
from clients import app as app_module
from clients.agent_client import agent_status, ask_agent
from clients.agent_messages import SERVICE
from clients.app import app
from clients.request import Arrays, DeviceAnswer, DeviceRequest
from clients.tasks import perform
from neuroflux_fl.device_report import TrainingReading
from neuroflux_fl.errors import FleetError, UsageError, WireError
from neuroflux_fl.fleet_model import run_network
from neuroflux_fl.local_network import EMPTY_PREFIX
from neuroflux_fl.run_config import RunConfig
from neuroflux_fl.wire import EvaluateTask, TrainReport, TrainTask
from server.grid import InProcessGrid

ROOT = Path(__file__).resolve().parents[2]
FORWARD = Path(__file__).with_name("forward.py")
# The first unit needs smaller batches than the others: a plan of two blocks.
CONFIG = RunConfig(
    model="vgg11", width=0.05, train_limit=60, test_limit=20, partition="iid",
    planner="threshold", rho=1.0, local_epochs=1, views=2,
)  # fmt: skip
TASK = TrainTask(round=1, first_unit=0, last_unit=2, epochs=2, prefix_version=EMPTY_PREFIX)
LONG_TASK = replace(TASK, epochs=30)
WAIT_SECONDS = 120.0


@contextmanager
def running_agent(socket: Path) -> Iterator[subprocess.Popen[str]]:
    """An agent that answers; ended by its id."""
    process = subprocess.Popen(
        [sys.executable, "-m", "clients.agent", "--socket", str(socket)],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        wait_until(lambda: process.poll() is not None or answers(socket))
        yield process
    finally:
        process.kill()
        process.communicate(timeout=10)


def answers(socket: Path) -> bool:
    try:
        return agent_status(socket, 5.0).pid > 0
    except FleetError:
        return False


def reading_of(socket: Path) -> TrainingReading:
    reading = agent_status(socket, 5.0).training
    assert reading is not None
    return reading


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < end, "what was waited for did not happen"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def agent_socket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    socket = tmp_path_factory.mktemp("agent") / "own" / "agent.sock"
    with running_agent(socket):
        yield socket


@pytest.fixture(scope="module")
def long_answer(tmp_path_factory: pytest.TempPathFactory) -> DeviceAnswer:
    """Of the long task, worked on in one go in this process."""
    return perform(make_request(tmp_path_factory.mktemp("own"), LONG_TASK))


def arrays_of(*units: int, seed: int = 0) -> Arrays:
    return {f"unit-{unit:03d}": run_network(CONFIG).initial(unit, seed) for unit in units}


def make_request(folder: Path, task: TrainTask = TASK, **changes: Any) -> DeviceRequest:
    node: UserConfig = {"memory-budget": "2100KiB", "state-folder": str(folder), "device-class": "test"}
    request = DeviceRequest(
        kind="train", run_id=1, node_id=1, run_config=CONFIG.to_flat(), node_config=node, task=task.to_bytes(),
        arrays=arrays_of(0, 1, 2),
    )  # fmt: skip
    return replace(request, **changes)


def assert_same(one: DeviceAnswer, other: DeviceAnswer) -> None:
    """Bit for bit, and the same work."""
    assert one.examples == other.examples
    assert sorted(one.arrays) == sorted(other.arrays) == ["unit-000", "unit-001", "unit-002"]
    for key, array in one.arrays.items():
        np.testing.assert_array_equal(array, other.arrays[key], strict=True)
    reports = [TrainReport.from_bytes(answer.content) for answer in (one, other)]
    assert reports[0].plan == reports[1].plan
    assert reports[0].updates == reports[1].updates
    assert reports[0].exits == reports[1].exits


def finished_blocks(folder: Path) -> list[dict[str, Any]]:
    """Blocks in the journal of the device whose state is in ``folder``."""
    try:
        blocks: list[dict[str, Any]] = json.loads((folder / "task.json").read_text())["report"].get("blocks", [])
    except FileNotFoundError:
        return []
    return blocks


def block_seconds(answer: DeviceAnswer) -> list[float]:
    return [block.seconds for block in TrainReport.from_bytes(answer.content).blocks]


def test_answers_are_those_of_the_own_process(agent_socket: Path, tmp_path: Path) -> None:
    # Two nodes in turn, in different runs: each has its own state.
    for node, seed in ((1, 0), (2, 5), (1, 0)):
        arrays = arrays_of(0, 1, 2, seed=seed)
        request = make_request(tmp_path / f"agent-{node}", run_id=10 + node, node_id=node, arrays=arrays)

        answer = ask_agent(agent_socket, request, wait_seconds=WAIT_SECONDS)

        own = perform(make_request(tmp_path / f"own-{node}", run_id=10 + node, node_id=node, arrays=dict(arrays)))
        assert answer is not None
        assert_same(answer, own)
        assert len(request.arrays) == 3  # kept, to be sent again
    status = agent_status(agent_socket, 5.0)
    assert status.tasks_done >= 3
    assert status.busy_with == ""
    assert status.resident_bytes > 100e6


def test_status_tells_of_the_training_while_it_lasts(agent_socket: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, run_name="fleet-9").to_flat()
    request = make_request(tmp_path, replace(TASK, epochs=6), run_config=config)
    before = reading_of(agent_socket)

    def at_work() -> bool:
        reading = reading_of(agent_socket)
        return reading.run == "fleet-9" and bool(reading.losses)

    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask_agent, agent_socket, request, wait_seconds=WAIT_SECONDS)
        wait_until(lambda: at_work() or answer.done())
        live = reading_of(agent_socket)
        result = answer.result()

    assert result is not None
    report, after = TrainReport.from_bytes(result.content), reading_of(agent_socket)
    assert (live.run, live.round, live.busy) == ("fleet-9", 1, True)
    assert live.training_bytes is not None
    assert before.samples < live.samples < after.samples
    assert after.samples - before.samples == sum(block.samples for block in report.blocks)
    assert (after.busy, after.tasks, after.training_bytes) == (False, before.tasks + 1, 0)
    assert [(b.batch_size, b.predicted_peak_bytes, b.measured_peak_bytes) for b in after.blocks] == [
        (b.batch_size, b.predicted_peak_bytes, b.measured_peak_bytes) for b in report.blocks
    ]
    assert dict(after.losses) == pytest.approx({unit: loss for block in report.blocks for unit, loss in block.losses})
    spent = {name: getattr(after.seconds, name) - getattr(before.seconds, name) for name in ("train", "cache")}
    assert spent == pytest.approx({"train": report.seconds.train, "cache": report.seconds.cache}, abs=0.01)


def test_a_reading_that_cannot_be_made_does_not_hide_that_the_agent_lives(
    agent_socket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forged = pb.StatusReply(protocol_version=agent_messages.AGENT_PROTOCOL_VERSION, pid=7, training=b"\xff\xff garbage")
    monkeypatch.setattr(pb.StatusReply, "FromString", lambda _: forged)

    status = agent_status(agent_socket, 5.0)

    assert (status.pid, status.training) == (7, None)


def test_messages_go_through_the_agent(agent_socket: Path, tmp_path: Path) -> None:
    node = dict(make_request(tmp_path).node_config) | {"agent-socket": str(agent_socket)}
    before = agent_status(agent_socket, 5.0).tasks_done
    grid = InProcessGrid(app, {1: node}, CONFIG.to_flat())
    arrays = ArrayRecord({key: Array(array) for key, array in arrays_of(0, 1, 2).items()})
    scoring = EvaluateTask(round=1, first_unit=0, last_unit=2, prefix_version=EMPTY_PREFIX)

    def ask(kind: str, task: bytes) -> Message:
        content = RecordDict({"arrays": arrays.copy(), "config": ConfigRecord({"task": task})})
        (reply,) = grid.send_and_receive([Message(content, 1, kind)])
        return reply

    trained, scored = ask("train", TASK.to_bytes()), ask("evaluate", scoring.to_bytes())
    described, refused = ask("query.capabilities", b""), ask("train", b"\xff\xff garbage")

    assert sorted(trained.content.array_records["arrays"]) == ["unit-000", "unit-001", "unit-002"]
    assert trained.content.metric_records["metrics"]["num-examples"] == 51
    assert scored.content.config_records["config"]["report"]
    assert described.content.config_records["config"]["capabilities"]
    assert str(refused.error.reason).startswith("WireError: TrainTask of 10 bytes does not parse")
    assert agent_status(agent_socket, 5.0).tasks_done == before + 4


def test_forwarding_process_does_without_torch(agent_socket: Path, tmp_path: Path) -> None:
    request = make_request(tmp_path / "device")

    with forwarder(request, agent_socket, tmp_path) as process:
        assert process.wait(WAIT_SECONDS) == 0

    answer = json.loads((tmp_path / "answer.json").read_text())
    assert answer["torch"] is False
    assert len(answer["arrays"]) == 3
    assert TrainReport.from_bytes(bytes.fromhex(answer["config"]["report"])).round == 1


@contextmanager
def forwarder(request: DeviceRequest, socket: Path, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The process that Flower would start for this message."""
    values = {
        "kind": request.kind,
        "run_id": request.run_id,
        "node_id": request.node_id,
        "run_config": dict(request.run_config),
        "node_config": dict(request.node_config) | {"agent-socket": str(socket)},
        "task": request.task.hex(),
    }
    folder.mkdir(exist_ok=True)
    (folder / "message.json").write_text(json.dumps(values))
    np.savez(folder / "arrays.npz", allow_pickle=False, **request.arrays)
    files = [str(folder / name) for name in ("message.json", "arrays.npz", "answer.json")]
    process = subprocess.Popen([sys.executable, str(FORWARD), *files], cwd=ROOT)
    try:
        yield process
    finally:
        process.kill()
        process.wait(10)


def test_only_the_owner_reaches_the_socket(agent_socket: Path) -> None:
    assert agent_socket.is_socket()
    assert agent_socket.stat().st_mode & 0o777 == 0o600
    assert agent_socket.parent.stat().st_mode & 0o777 == 0o700


def test_second_agent_at_a_socket_refuses(agent_socket: Path) -> None:
    first = agent_status(agent_socket, 5.0).pid

    with running_agent(agent_socket) as second:
        _, errors = second.communicate(timeout=WAIT_SECONDS)

    assert second.returncode == 2
    assert f"error: Another agent (process {first}) serves {agent_socket}: end it" in errors
    assert agent_status(agent_socket, 5.0).pid == first


def test_socket_in_an_open_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir(mode=0o755)

    with running_agent(tmp_path / "open" / "agent.sock") as process:
        _, errors = process.communicate(timeout=WAIT_SECONDS)

    assert process.returncode == 2
    assert "is open to other users: chmod 700" in errors


def test_socket_path_must_fit() -> None:
    with pytest.raises(UsageError, match="has a path of 204 bytes; a Unix socket allows 107"):
        agent_status(Path("/" + 203 * "x"), 1.0)


def test_other_protocol_version_is_a_clear_error(
    agent_socket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_messages, "AGENT_PROTOCOL_VERSION", 2)

    with pytest.raises(WireError, match="The ClientApp speaks agent protocol 2, this side 1: restart the device agent"):
        ask_agent(agent_socket, make_request(tmp_path), wait_seconds=WAIT_SECONDS)
    with pytest.raises(WireError, match="The device agent speaks agent protocol 1, this side 2"):
        agent_status(agent_socket, 5.0)


def test_absent_agent_is_replaced_by_the_own_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    socket = tmp_path / "agent.sock"
    monkeypatch.setattr(app_module, "AGENT_WAIT_SECONDS", 0.2)
    node = dict(make_request(tmp_path / "device").node_config) | {"agent-socket": str(socket)}
    grid = InProcessGrid(app, {1: node}, CONFIG.to_flat())
    record = ArrayRecord({key: Array(array) for key, array in arrays_of(0, 1, 2).items()})
    content = RecordDict({"arrays": record, "config": ConfigRecord({"task": TASK.to_bytes()})})

    (reply,) = grid.send_and_receive([Message(content, 1, "train")])

    own = perform(make_request(tmp_path / "own"))
    for key, array in reply.content.array_records["arrays"].items():
        np.testing.assert_array_equal(array.numpy(), own.arrays[key])
    assert f"No device agent at {socket}: train (run 1, node 1) runs in the ClientApp's own process" in caplog.text
    with pytest.raises(FleetError, match=r"No device agent answers at .* within 0\.1 s"):
        agent_status(socket, 0.1)


@pytest.mark.slow
def test_killed_agent_goes_on_after_its_last_finished_block(tmp_path: Path, long_answer: DeviceAnswer) -> None:
    socket, folder = tmp_path / "own" / "agent.sock", tmp_path / "device"
    answers: list[DeviceAnswer | FleetError | None] = []

    def ask(request: DeviceRequest, resends: int) -> None:
        try:
            answers.append(ask_agent(socket, request, wait_seconds=WAIT_SECONDS, resends=resends))
        except FleetError as error:
            answers.append(error)

    with running_agent(socket) as agent:
        client = threading.Thread(target=ask, args=(make_request(folder, LONG_TASK), 1))
        client.start()
        wait_until(lambda: len(finished_blocks(folder)) == 1)
        agent.send_signal(signal.SIGKILL)
        agent.wait(10)
    kept = finished_blocks(folder)
    assert len(kept) == 1
    assert socket.is_socket()  # left behind by the killed one; the next replaces it

    with running_agent(socket) as agent:
        client.join(WAIT_SECONDS)
        # And an orderly end in the middle of another task.
        other = make_request(folder, replace(LONG_TASK, round=2, epochs=1000))
        client = threading.Thread(target=ask, args=(other, 0))
        client.start()
        wait_until(lambda: agent_status(socket, 5.0).busy_with != "")
        agent.send_signal(signal.SIGTERM)
        _, log = agent.communicate(timeout=10)
        client.join(WAIT_SECONDS)

    answer, ended = answers
    assert isinstance(answer, DeviceAnswer)
    assert_same(answer, long_answer)
    assert block_seconds(answer)[0] == kept[0]["seconds"]
    assert log.count("train (run 1, node 1) done in") == 1
    assert "went away 1 times" in str(ended)
    assert agent.returncode == 0
    assert not socket.exists()


@pytest.mark.slow
def test_killed_client_finds_the_answer_when_the_task_comes_again(
    agent_socket: Path, tmp_path: Path, long_answer: DeviceAnswer
) -> None:
    request, folder = make_request(tmp_path / "device", LONG_TASK), tmp_path / "device"
    before = agent_status(agent_socket, 5.0).tasks_done
    with forwarder(request, agent_socket, tmp_path / "first") as process:
        wait_until(lambda: len(finished_blocks(folder)) == 1)
        assert agent_status(agent_socket, 5.0).busy_with == "train (run 1, node 1)"
        process.send_signal(signal.SIGKILL)
        process.wait(10)

    with forwarder(request, agent_socket, tmp_path / "second") as process:
        assert process.wait(WAIT_SECONDS) == 0

    assert agent_status(agent_socket, 5.0).tasks_done == before + 2
    answer = json.loads((tmp_path / "second" / "answer.json").read_text())
    report = TrainReport.from_bytes(bytes.fromhex(answer["config"]["report"]))
    assert [block.seconds for block in report.blocks] == [block["seconds"] for block in finished_blocks(folder)]
    digests = {key: hashlib.sha256(array.tobytes()).hexdigest() for key, array in long_answer.arrays.items()}
    assert answer["arrays"] == digests


def test_agent_that_goes_away_every_time_is_given_up(tmp_path: Path) -> None:
    calls: list[str] = []

    def go_away(parts: Any, context: Any) -> None:
        calls.append(next(parts).header.kind)
        context.abort(grpc.StatusCode.UNAVAILABLE, "killed")

    server = grpc.server(ThreadPoolExecutor(max_workers=1))
    handler = grpc.stream_stream_rpc_method_handler(
        go_away, request_deserializer=pb.Request.FromString, response_serializer=pb.Reply.SerializeToString
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"Handle": handler}),))
    server.add_insecure_port(f"unix:{tmp_path}/agent.sock")
    server.start()
    try:
        with pytest.raises(FleetError, match=r"went away 4 times during train .* \(UNAVAILABLE: killed\)"):
            ask_agent(tmp_path / "agent.sock", make_request(tmp_path), wait_seconds=WAIT_SECONDS)
    finally:
        server.stop(None).wait(10)

    assert calls == 4 * ["train"]
