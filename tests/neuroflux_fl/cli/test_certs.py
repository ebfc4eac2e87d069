"""``certs``, ``enroll``, ``revoke`` and ``devices``: one line and an exit code for every mistake, JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from neuroflux_fl.cli.main import main
from server import enrolment
from server.state_folder import ServerState


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
    def run(*arguments: str | Path) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["neuroflux-fl", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        text = capsys.readouterr()
        assert ended.value.code is None or isinstance(ended.value.code, int)
        return Outcome(ended.value.code or 0, text.out, text.err)

    return run


@pytest.fixture
def state(tmp_path: Path, command: Command) -> ServerState:
    """As a server leaves it that runs with TLS."""
    assert command("certs", tmp_path / "certs", "--host", "fleet.example.org").code == 0
    made = ServerState(tmp_path / "state")
    made.flwr_home.mkdir(parents=True)
    made.flwr_config.write_text(
        f'[superlink.fleet]\naddress = "127.0.0.1:1"\nroot-certificates = "{tmp_path / "certs" / "ca.crt"}"\n'
    )
    return made


@pytest.fixture
def superlink(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that lets everyone in and sees nobody."""

    def ask(state: ServerState, command: Sequence[str]) -> dict[str, Any]:
        return {"node-id": 11700480961939477886, "nodes": [{"node-id": "17", "status": "online"}]}

    monkeypatch.setattr(enrolment, "ask_flower", ask)


def test_certificates_are_made_and_renewed(command: Command, tmp_path: Path) -> None:
    folder = tmp_path / "certs"
    made = command("certs", folder, "--host", "fleet.example.org", "--host", "192.0.2.1", "--json").json
    certificate = x509.load_pem_x509_certificate((folder / "server.crt").read_bytes())

    assert made["hosts"] == ["fleet.example.org", "192.0.2.1", "localhost", "127.0.0.1"]
    assert not made["renewed"]
    assert datetime.fromisoformat(made["server_expires_at"]) == certificate.not_valid_after_utc
    assert (certificate.not_valid_after_utc - datetime.now(certificate.not_valid_after_utc.tzinfo)).days in (396, 397)

    before = (folder / "server.crt").read_bytes()
    told = command("certs", folder, "--renew", "--days", "30")
    assert told.code == 0
    assert "Authority (kept)" in told.out
    assert "for fleet.example.org, 192.0.2.1, localhost, 127.0.0.1" in told.out
    assert (folder / "server.crt").read_bytes() != before


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--host", "https://fleet"], 2, "Host 'https://fleet' is neither"),
        (["--host", "a", "--days", "0"], 2, "Days 0 is out of range"),
        (["--host", "a", "--days", "many"], 2, "Invalid value for '--days'"),
        ([], 2, "give --host"),
        (["--renew"], 6, "has no authority"),
    ],
)
def test_mistakes_with_certificates_are_one_line(
    command: Command, tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    outcome = command("certs", tmp_path / "certs", *arguments)

    assert outcome.code == code
    assert message in outcome.err
    assert "Traceback" not in outcome.err
    assert not (tmp_path / "certs").exists()


def test_an_existing_authority_is_refused(command: Command, state: ServerState, tmp_path: Path) -> None:
    outcome = command("certs", tmp_path / "certs", "--host", "a")

    assert outcome.code == 6
    assert outcome.err.count("\n") == 1
    assert "--renew" in outcome.err


@pytest.mark.usefixtures("superlink")
def test_a_device_is_enrolled_listed_and_revoked(command: Command, state: ServerState, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    enrolled = command("enroll", "pi", "--state", state.root, "--out", bundle, "--json").json
    assert enrolled["node_id"] == "11700480961939477886"
    assert enrolled["fingerprint"].startswith("SHA256:")
    assert (bundle / "ca.crt").read_bytes() == (tmp_path / "certs" / "ca.crt").read_bytes()

    taken = command("enroll", "pi", "--state", state.root, "--out", tmp_path / "other")
    assert (taken.code, taken.err.count("\n")) == (2, 1)
    assert "'pi' is taken" in taken.err

    listed = command("devices", "--state", state.root, "--json").json
    assert [(row["name"], row["status"]) for row in listed["devices"]] == [("pi", "unknown")]
    assert listed["unlisted_node_ids"] == ["17"]
    shown = command("devices", "--state", state.root).out
    assert "pi" in shown
    assert "not in this list, enrolled by other means: 17" in shown

    assert command("revoke", "pi", "--state", state.root, "--json").json["revoked_at"] is not None
    assert command("revoke", "pi", "--state", state.root).code == 2
    assert command("revoke", "nobody", "--state", state.root).code == 2
    # A secret is in its file and nowhere else.
    secret = (bundle / "node.key").read_text().split("\n")[2]
    assert secret not in repr(enrolled) + taken.err + shown


def test_without_a_server_it_says_so(command: Command, state: ServerState, tmp_path: Path) -> None:
    for arguments in (["enroll", "pi", "--out", tmp_path / "bundle"], ["devices"]):
        outcome = command(*arguments, "--state", state.root)
        assert outcome.code == 7
        assert outcome.err.count("\n") == 1
        assert "does not answer: is it running" in outcome.err
    assert not (tmp_path / "bundle").exists()
    assert not state.devices_file.exists()
    assert command("devices", "--state", tmp_path / "nowhere").code == 7
