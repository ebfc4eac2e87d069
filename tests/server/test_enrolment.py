"""Enrolment: names, keys, bundles and the list of devices. tests/deploy/test_gate.py does it with a real SuperLink."""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.cli.supernode.register import try_load_public_key

from neuroflux_fl.errors import ConfigError, FleetError, NeurofluxError, StorageError, UsageError
from server import enrolment
from server.enrolment import enrol, list_devices, revoke
from server.flower_cli import NODE_NOT_FOUND, PUBLIC_KEY_IN_USE, FlowerRefusal, ask_flower
from server.node_keys import fingerprint
from server.state_folder import ServerState


class SuperLink:
    """Stands in for ``flwr supernode``: keys are unique for ever, nodes are marked and never removed."""

    def __init__(self) -> None:
        self.keys: list[bytes] = []
        self.status: dict[int, str] = {}
        self.fails: NeurofluxError | None = None

    def __call__(self, state: ServerState, command: Sequence[str]) -> dict[str, Any]:
        if self.fails is not None:
            raise self.fails
        what, argument = command[1], command[-1]
        if what == "register":
            key = try_load_public_key(Path(argument))  # Flower's own reading of it
            if key in self.keys:
                raise FlowerRefusal("[code: 23] Public key already in use.", PUBLIC_KEY_IN_USE)
            self.keys.append(key)
            node_id = 2**63 + len(self.keys)
            self.status[node_id] = "registered"
            return {"node-id": node_id}
        if what == "unregister":
            if self.status.get(int(argument), "unregistered") == "unregistered":
                raise FlowerRefusal("[code: 24] Node ID not found for account.", NODE_NOT_FOUND)
            self.status[int(argument)] = "unregistered"
            return {}
        return {"nodes": [{"node-id": str(node_id), "status": status} for node_id, status in self.status.items()]}


@pytest.fixture
def superlink(monkeypatch: pytest.MonkeyPatch) -> SuperLink:
    server = SuperLink()
    monkeypatch.setattr(enrolment, "ask_flower", server)
    return server


@pytest.fixture
def state(tmp_path: Path) -> ServerState:
    made = ServerState(tmp_path / "state")
    made.flwr_home.mkdir(parents=True)
    root = tmp_path / "root.crt"
    root.write_text("the root\n")
    made.flwr_config.write_text(f'[superlink.fleet]\naddress = "127.0.0.1:1"\nroot-certificates = "{root}"\n')
    return made


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def listed(state: ServerState) -> dict[str, str]:
    return {row.device.name: row.status for row in list_devices(state)[0]}


def own_key(folder: Path, key: Any = None) -> Path:
    """The ``.pub`` file of a key that a device made."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    path = folder / "own.pub"
    path.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
        + b" me@here\n"
    )
    return path


def test_a_bundle_has_all_that_a_device_needs_and_only_it_can_read_the_key(
    superlink: SuperLink, state: ServerState, tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle"
    device = enrol(state, "kitchen-pi.2", bundle)

    assert sorted(path.name for path in bundle.iterdir()) == ["ca.crt", "name", "node.key", "node.key.pub"]
    assert (bundle / "ca.crt").read_text() == "the root\n"
    assert (bundle / "name").read_text() == "kitchen-pi.2\n"
    assert (mode(bundle), mode(bundle / "node.key"), mode(state.devices_file)) == (0o700, 0o600, 0o600)
    key = load_ssh_private_key((bundle / "node.key").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert key.curve.name == "secp384r1"
    assert (bundle / "node.key.pub").read_text() == f"{device.public_key}\n"
    assert superlink.keys == [try_load_public_key(bundle / "node.key.pub")]
    saved = json.loads(state.devices_file.read_text())["kitchen-pi.2"]
    assert saved["node_id"] == str(2**63 + 1)  # too large for many a reader of JSON
    assert saved["fingerprint"] == fingerprint(key.public_key())
    # The secret is in one place only.
    secret = (bundle / "node.key").read_text().split("\n")[2]
    others = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "node.key"]
    assert not [path for path in others if secret in path.read_text()]


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="ssh-keygen is not installed")
def test_openssh_reads_the_key_and_shows_the_same_fingerprint(
    superlink: SuperLink, state: ServerState, tmp_path: Path
) -> None:
    device = enrol(state, "a", tmp_path / "bundle")

    def keygen(*arguments: str) -> str:
        return subprocess.run(
            ["ssh-keygen", *arguments], cwd=tmp_path / "bundle", capture_output=True, text=True, check=True, timeout=20
        ).stdout

    assert keygen("-y", "-f", "node.key").strip() == device.public_key
    assert keygen("-l", "-f", "node.key.pub").split()[:2] == ["384", device.fingerprint]


def test_a_devices_own_key_never_leaves_it(superlink: SuperLink, state: ServerState, tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    device = enrol(state, "a", tmp_path / "bundle", own_key(tmp_path, key))

    assert sorted(path.name for path in (tmp_path / "bundle").iterdir()) == ["ca.crt", "name"]
    assert device.fingerprint == fingerprint(key.public_key())
    assert superlink.keys == [try_load_public_key(tmp_path / "own.pub")]


@pytest.mark.parametrize("name", ["", "-a", ".", "..", "a/b", "a b", "ä", "a" * 64, "a\n"])
def test_bad_names_are_refused(superlink: SuperLink, state: ServerState, tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="not allowed"):
        enrol(state, name, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_bad_keys_are_refused_and_never_quoted(superlink: SuperLink, state: ServerState, tmp_path: Path) -> None:
    private = tmp_path / "key"
    private.write_bytes(
        ec.generate_private_key(ec.SECP384R1()).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
        )
    )
    (tmp_path / "words").write_text("correct horse battery staple")
    cases = {
        private: "must not leave the device",
        tmp_path / "words": "no public key in SSH form",
        tmp_path / "none": "cannot be read",
        own_key(tmp_path, ed25519.Ed25519PrivateKey.generate()): "not of the ECDSA kind",
    }
    for path, message in cases.items():
        with pytest.raises(UsageError, match=message) as told:
            enrol(state, "a", tmp_path / "bundle", path)
        assert "horse" not in str(told.value)
        assert private.read_text().split("\n")[1] not in str(told.value)
    assert not (tmp_path / "bundle").exists()
    assert not superlink.keys


def test_a_name_is_taken_until_it_is_revoked(superlink: SuperLink, state: ServerState, tmp_path: Path) -> None:
    first = enrol(state, "a", tmp_path / "one")
    with pytest.raises(UsageError, match="'a' is taken since"):
        enrol(state, "a", tmp_path / "two")
    assert not (tmp_path / "two").exists()

    assert revoke(state, "a").revoked_at is not None
    assert superlink.status == {first.node_id: "unregistered"}
    with pytest.raises(UsageError, match="was revoked on"):
        revoke(state, "a")
    assert enrol(state, "a", tmp_path / "two").node_id != first.node_id
    assert listed(state) == {"a": "never-connected"}


def test_a_key_is_good_for_one_device_once(superlink: SuperLink, state: ServerState, tmp_path: Path) -> None:
    key = own_key(tmp_path)
    enrol(state, "a", tmp_path / "one", key)
    with pytest.raises(UsageError, match="belongs to device 'a'"):
        enrol(state, "b", tmp_path / "two", key)
    revoke(state, "a")
    with pytest.raises(UsageError, match="was revoked with device 'a'"):
        enrol(state, "a", tmp_path / "two", key)
    state.devices_file.unlink()
    with pytest.raises(UsageError, match="was registered with the server before"):
        enrol(state, "a", tmp_path / "two", key)


def test_unknown_devices_are_not_revoked(superlink: SuperLink, state: ServerState, tmp_path: Path) -> None:
    enrol(state, "kitchen-pi", tmp_path / "one")

    with pytest.raises(UsageError, match="did you mean 'kitchen-pi'"):
        revoke(state, "kitchen-p1")
    with pytest.raises(UsageError, match="neuroflux-fl devices"):
        revoke(state, "zzz")


def test_the_list_shows_what_the_server_knows(superlink: SuperLink, state: ServerState, tmp_path: Path) -> None:
    nodes = {name: enrol(state, name, tmp_path / name).node_id for name in "abcde"}
    revoke(state, "c")
    superlink.status[nodes["a"]] = "online"
    superlink.status[nodes["b"]] = "offline"
    del superlink.status[nodes["e"]]  # a server that lost its database
    superlink.status[99] = "online"  # registered by other means

    assert listed(state) == {"a": "online", "b": "offline", "c": "revoked", "d": "never-connected", "e": "unknown"}
    assert list_devices(state)[1] == [99]
    revoke(state, "e")
    assert listed(state)["e"] == "revoked"


def test_a_refused_enrolment_leaves_nothing(superlink: SuperLink, state: ServerState, tmp_path: Path) -> None:
    superlink.fails = FleetError("does not answer")
    with pytest.raises(FleetError, match="does not answer"):
        enrol(state, "a", tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
    assert not state.devices_file.exists()

    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("kept")
    superlink.fails = None
    with pytest.raises(StorageError, match="not empty"):
        enrol(state, "a", tmp_path / "full")
    assert (tmp_path / "full" / "thesis.tex").read_text() == "kept"
    assert not superlink.keys


def test_a_device_that_cannot_be_recorded_is_not_let_in(
    superlink: SuperLink, state: ServerState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise StorageError("no space")

    monkeypatch.setattr(enrolment, "write_registry", full)
    with pytest.raises(StorageError, match="no space"):
        enrol(state, "a", tmp_path / "bundle")

    assert list(superlink.status.values()) == ["unregistered"]
    assert not (tmp_path / "bundle").exists()


def test_a_damaged_list_is_told_and_kept(superlink: SuperLink, state: ServerState, tmp_path: Path) -> None:
    for content in ("{", "[]", '{"a": 3}', '{"a": {"node_id": "1"}}', '{"a": {}}'):
        state.devices_file.write_text(content)
        with pytest.raises(StorageError, match="damaged"):
            enrol(state, "b", tmp_path / "bundle")
        assert state.devices_file.read_text() == content


def test_without_tls_keys_prove_nothing(superlink: SuperLink, state: ServerState, tmp_path: Path) -> None:
    state.flwr_config.write_text('[superlink.fleet]\naddress = "127.0.0.1:1"\ninsecure = true\n')
    with pytest.raises(ConfigError, match="--certs"):
        enrol(state, "a", tmp_path / "bundle")
    state.flwr_config.write_text("[superlink]\n")
    with pytest.raises(StorageError, match="no connection 'fleet'"):
        enrol(state, "a", tmp_path / "bundle")
    with pytest.raises(FleetError, match="No server was ever started"):
        enrol(ServerState(tmp_path / "nowhere"), "a", tmp_path / "bundle")


def test_flowers_command_says_so_when_no_server_answers(state: ServerState) -> None:
    state.flwr_config.write_text('[superlink.fleet]\naddress = "127.0.0.1:1"\ninsecure = true\n')
    with pytest.raises(FleetError, match="does not answer: is it running"):
        ask_flower(state, ("supernode", "list"))
    with pytest.raises(FleetError, match="No server was ever started"):
        ask_flower(ServerState(state.root / "nowhere"), ("supernode", "list"))
    state.flwr_config.write_text("[superlink.other]\n")
    with pytest.raises(FlowerRefusal, match=r"Command flwr supernode list failed: .* not found"):
        ask_flower(state, ("supernode", "list"))
