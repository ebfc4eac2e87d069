"""``server`` and ``client`` before they start anything: what they refuse, and the commands that they would run."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from clients import own_data
from clients.own_data import OwnData
from neuroflux_fl.cli.main import main
from neuroflux_fl.cli.settle_run import settle_run
from neuroflux_fl.errors import DataError, UsageError
from server.certificates import create_certificates
from server.gateway_settings import GatewaySettings, parse_gateway_command
from server.run_record import RunRecord
from server.state_folder import ServerState
from server.superlink import Endpoint


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a command gave."""

    code: int
    out: str
    err: str


Command = Callable[..., Outcome]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))

    def run(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["neuroflux-fl", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        text = capsys.readouterr()
        code = ended.value.code
        assert code is None or isinstance(code, int)
        return Outcome(code or 0, text.out, " ".join(text.err.split()))

    return run


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    folder.mkdir()
    for name in ("ca.crt", "node.key"):
        (folder / name).write_text("SECRET" if name == "node.key" else "")
        (folder / name).chmod(0o600)
    return folder


@pytest.fixture
def digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking at data has tests of its own."""
    found = OwnData(data="digits", images=10, class_names=("a", "b"), image_shape=(1, 8, 8), cuda=False)
    monkeypatch.setattr(own_data, "look_at_data", lambda *_: found)


def test_the_servers_commands(command: Command, tmp_path: Path) -> None:
    create_certificates(tmp_path / "certs", ["localhost"])

    shown = command("server", "--certs", "certs", "--dry-run")
    as_json = command("server", "--certs", "certs", "--dry-run", "--json")

    commands: dict[str, list[str]] = json.loads(as_json.out)["commands"]
    assert {
        name: shlex.split(line) for name, line in (row.split(": ", 1) for row in shown.out.splitlines())
    } == commands
    state = ServerState(tmp_path / "xdg" / "neuroflux-fl" / "server")
    assert str(state.secret) in commands["superexec"]
    assert commands["run"][1:] == [
        "run", str(state.app), "--run-config", str(state.run_config_file), "fleet", "--format", "json"
    ]  # fmt: skip
    assert not state.root.exists()
    served, gateway = parse_gateway_command(commands["telemetry"][4:])
    assert served == state
    assert gateway.endpoint == Endpoint(host="127.0.0.1", port=8444, certificates=tmp_path / "certs")
    assert (gateway.metrics_host, gateway.metrics_port) == ("127.0.0.1", 9464)


def test_where_the_servers_telemetry_goes(command: Command) -> None:
    options = ["server", "--insecure", "--port", "7000", "--dry-run", "--json"]
    more = ["--telemetry-port", "7005", "--metrics-host", "::1", "--metrics-port", "7006", "--max-devices", "5"]

    commands = json.loads(command(*options, *more, "--stale-after", "30").out)["commands"]

    gateway = parse_gateway_command(commands["telemetry"][4:])[1]
    assert gateway == GatewaySettings(
        endpoint=Endpoint(host="127.0.0.1", port=7005, certificates=None), metrics_host="::1", metrics_port=7006,
        most_devices=5, stale_seconds=30.0,
    )  # fmt: skip
    assert "telemetry" not in json.loads(command(*options, "--telemetry", "off").out)["commands"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "Give either --certs DIR"),
        (["--insecure", "--certs", "x"], 2, "Give either --certs DIR"),
        (["--insecure", "--host", "0.0.0.0"], 2, "--insecure-network"),
        (["--insecure", "--port", "0"], 2, "ports are 1 to 65535"),
        (["--insecure", "--port", "65535"], 2, "Give another --telemetry-port"),
        (["--insecure", "--metrics-port", "8444"], 2, "change --metrics-port"),
        (["--insecure", "--telemetry", "maybe"], 2, "--telemetry maybe is not allowed: it is on or off"),
        (["--certs", "nowhere"], 6, "nowhere has no ca.crt"),
    ],
)
def test_what_the_server_refuses(command: Command, arguments: list[str], code: int, message: str) -> None:
    result = command("server", *arguments)

    assert (result.code, result.out) == (code, "")
    assert message in result.err


@pytest.mark.usefixtures("digits")
def test_the_clients_commands(command: Command, bundle: Path, tmp_path: Path) -> None:
    options = [
        *("client", "--server", "fleet.example.org:8443", "--bundle", "bundle", "--data", "digits", "--dry-run"),
        *("--partition-id", "1", "--partitions", "4", "--device-class", "nano", "--port", "5000"),
    ]

    given = command(*options, "--budget", "1GiB", "--json")
    shown = command(*options, "--budget", "1GiB", "--no-agent")

    commands: dict[str, list[str]] = json.loads(given.out)["commands"]
    state = tmp_path / "xdg" / "neuroflux-fl" / "client"
    assert list(commands) == ["agent", "supernode", "superexec"]
    assert json.loads(given.out)["telemetry"] == ["fleet.example.org:8443", "fleet.example.org:8444"]
    assert commands["supernode"][-1] == (
        f'memory-budget="1073741824" device-class="nano" state-folder="{state / "device"}" data="digits" '
        f'partition-id=1 num-partitions=4 agent-socket="{state / "run" / "agent.sock"}"'
    )
    assert "Memory budget: 1.0 GiB, as given." in given.err
    assert [row.split(": ")[0] for row in shown.out.splitlines()] == ["supernode", "superexec"]
    assert "SECRET" not in given.out + shown.out
    assert not state.exists()


@pytest.mark.usefixtures("digits")
def test_a_client_that_is_scraped_says_where(command: Command) -> None:
    options = ["client", "--server", "a.example:1", "--insecure", "--data", "digits", "--budget", "1GiB", "--dry-run"]

    scraped = json.loads(command(*options, "--metrics-port", "9465", "--metrics-host", "10.0.0.7", "--json").out)
    both = json.loads(command(*options, "--metrics-port", "9465", "--telemetry", "auto", "--json").out)
    neither = json.loads(command(*options, "--telemetry", "off", "--json").out)

    assert 'metrics-address="10.0.0.7:9465"' in scraped["commands"]["supernode"][-1]
    assert scraped["telemetry"] == []
    assert 'metrics-address="127.0.0.1:9465"' in both["commands"]["supernode"][-1]
    assert both["telemetry"] == ["a.example:1", "a.example:2"]
    assert "metrics-address" not in neither["commands"]["supernode"][-1]
    assert neither["telemetry"] == []


@pytest.mark.usefixtures("digits")
def test_the_client_finds_its_budget(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    from clients import budget
    from clients.budget import HOST_RESERVE_BYTES, MemoryReadings
    from neuroflux_fl.sizes import MIB

    readings = MemoryReadings(host=HOST_RESERVE_BYTES + 100 * MIB)
    monkeypatch.setattr(budget, "read_memory", lambda *, cuda: readings)
    options = ["client", "--server", "a.example:1", "--insecure", "--data", "digits", "--dry-run"]

    enough = command(*options)
    readings = MemoryReadings(host=1)
    too_little = command(*options)

    assert 'memory-budget="104857600"' in enough.out
    assert "Memory budget: 100.0 MiB: the machine has 868.0 MiB free, less 768.0 MiB for Flower" in enough.err
    assert (too_little.code, too_little.out) == (5, "")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--server", "nowhere", "--insecure"], 2, "is not HOST:PORT"),
        (["--server", "a:1"], 2, "Give either --bundle DIR"),
        (["--server", "a:1", "--insecure", "--bundle", "x"], 2, "Give either --bundle DIR"),
        (["--server", "a:1", "--bundle", "x"], 6, "has no ca.crt"),
        (["--server", "a:1", "--insecure", "--port", "70000"], 2, "ports are 0 to 65535"),
        (["--server", "a:1", "--insecure", "--partition-id", "2", "--partitions", "2"], 2, "is not a share"),
        (["--server", "a:1", "--insecure", "--partition-id", "0"], 2, "is not a share"),
        (["--server", "a:1", "--insecure", "--budget", "much"], 2, "is not a number of bytes"),
        (["--server", "a:1", "--insecure", "--telemetry", "on"], 2, "give auto, off or HOST:PORT"),
        (["--server", "a:1", "--insecure", "--metrics-port", "0"], 2, "0"),
    ],
)
def test_what_the_client_refuses(command: Command, arguments: list[str], code: int, message: str) -> None:
    result = command("client", *arguments, "--data", "digits")

    assert (result.code, result.out) == (code, "")
    assert message in result.err


def test_bad_data_is_found_before_anything_starts(command: Command, tmp_path: Path) -> None:
    result = command("client", "--server", "a:1", "--insecure", "--data", "nothing", "--state", "state")

    assert result.code == DataError.exit_code
    assert result.err.startswith("Error: Data 'nothing' is neither")
    assert not (tmp_path / "state").exists()


def test_two_servers_do_not_share_a_folder(command: Command, tmp_path: Path) -> None:
    from neuroflux_fl.state_home import locked

    (tmp_path / "state").mkdir()
    with locked(tmp_path / "state" / "lock", "A server"):
        result = command("server", "--insecure", "--state", "state")

    assert result.code == 6
    assert "runs already as process" in result.err


def request(state: Path, **more: Any) -> dict[str, Any]:
    flags = {"train-limit": 100, "test-limit": 20}
    return {"state": str(state), "flags": flags, "path": None, "settings": [], "new_run": False, **more}


def test_a_new_run_is_described_for_devices_with_other_data(tmp_path: Path) -> None:
    assert settle_run(request(tmp_path)) is None

    record = RunRecord.load(tmp_path / "server.json")
    assert record is not None
    assert record.config["image-shape"] == "1x32x32"
    assert json.loads(str(record.config["class-names"])) == [str(digit) for digit in range(10)]
    assert record.config["out"] == str(tmp_path / "out")
    assert (record.asked["image-shape"], record.asked["out"], record.finished) == ("", "", False)


@pytest.mark.parametrize(("given", "kept"), [("", r"run-\d{8}-\d{6}"), ("attic", "attic")])
def test_a_run_keeps_its_name_and_gets_one_where_it_has_none(tmp_path: Path, given: str, kept: str) -> None:
    settings = [f"run-name={given}"] if given else []
    settle_run(request(tmp_path, settings=settings))
    first = RunRecord.load(tmp_path / "server.json")
    settle_run(request(tmp_path, settings=settings))

    assert first is not None
    assert re.fullmatch(kept, str(first.config["run-name"]))
    assert first.asked["run-name"] == given
    assert RunRecord.load(tmp_path / "server.json") == first


def test_the_same_request_again_changes_nothing_and_another_is_refused(tmp_path: Path) -> None:
    settle_run(request(tmp_path))
    (tmp_path / "out").mkdir()
    before = (tmp_path / "server.json").read_text()

    assert settle_run(request(tmp_path)) is None
    with pytest.raises(UsageError, match="with seed 0, now 1"):
        settle_run(request(tmp_path, settings=["seed=1"]))

    assert (tmp_path / "server.json").read_text() == before
    assert (tmp_path / "out").is_dir()


def test_a_new_run_keeps_the_old_results(tmp_path: Path) -> None:
    settle_run(request(tmp_path))
    (tmp_path / "out").mkdir()

    assert settle_run(request(tmp_path, settings=["seed=1"], new_run=True)) == str(tmp_path / "out-1")


def test_bad_data_leaves_everything_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()

    with pytest.raises(DataError, match="neither a known name"):
        settle_run(request(tmp_path, flags={"data": str(tmp_path / "nothing")}))

    assert [path.name for path in tmp_path.iterdir()] == ["out"]
