"""Commands of a device's processes, and the bundle that they are made from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from flwr.common.config import parse_config_args

from clients.bundle import read_bundle
from clients.client_commands import (
    ClientOptions,
    ClientState,
    agent_command,
    default_device_class,
    superexec_command,
    supernode_command,
)
from neuroflux_fl.errors import StorageError
from neuroflux_fl.toml_text import Value

NODE_CONFIG: dict[str, Value] = {
    "memory-budget": "268435456",
    "device-class": 'Board "Nano" 4 GB',
    "data": "/home/o'neil/my pictures",
    "partition-id": 0,
}


@pytest.fixture
def bundle_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "ca.crt").write_text("certificate")
    (folder / "node.key").write_text("PRIVATE")
    (folder / "node.key").chmod(0o600)
    (folder / "name").write_text("kitchen\n")
    return folder


@pytest.fixture
def options(tmp_path: Path, bundle_folder: Path) -> ClientOptions:
    return ClientOptions(
        state=ClientState(tmp_path / "state"),
        server="fleet.example.org:8443",
        bundle=read_bundle(bundle_folder),
        node_config=NODE_CONFIG,
        agent_socket=tmp_path / "agent.sock",
    )


def value(command: list[str], option: str) -> str:
    return command[command.index(option) + 1]


def test_the_supernode(options: ClientOptions, bundle_folder: Path) -> None:
    command = supernode_command(options, 5000)

    assert value(command, "--superlink") == "fleet.example.org:8443"
    assert value(command, "--root-certificates") == str(bundle_folder / "ca.crt")
    assert value(command, "--auth-supernode-private-key") == str(bundle_folder / "node.key")
    assert (value(command, "--host"), value(command, "--port")) == ("127.0.0.1", "5000")
    assert value(command, "--isolation") == "process"
    assert parse_config_args([value(command, "--node-config")]) == {
        **NODE_CONFIG,
        "agent-socket": str(options.agent_socket),
    }
    assert "PRIVATE" not in " ".join(command)
    assert "--insecure" not in command


def test_without_bundle_and_agent(options: ClientOptions) -> None:
    command = supernode_command(replace(options, bundle=None, agent_socket=None), 5000)

    assert "--insecure" in command
    assert not {"--root-certificates", "--auth-supernode-private-key"} & set(command)
    assert parse_config_args([value(command, "--node-config")]) == NODE_CONFIG


def test_the_task_runner_proves_that_it_is_ours(options: ClientOptions) -> None:
    secrets = {
        value(command, "--superexec-auth-secret-file")
        for command in (supernode_command(options, 5000), superexec_command(options, 5000))
    }

    assert secrets == {str(options.state.secret)}
    assert value(superexec_command(options, 5000), "--runtime-api-address") == "127.0.0.1:5000"


def test_the_agent_is_that_of_the_installed_package(tmp_path: Path) -> None:
    command = agent_command(tmp_path / "a.sock")

    assert command[1:] == ["-P", "-m", "clients.agent", "--socket", str(tmp_path / "a.sock")]


def test_threads(options: ClientOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    assert replace(options, threads=3).environment()["OMP_NUM_THREADS"] == "3"
    assert "OMP_NUM_THREADS" not in options.environment()
    assert options.environment()["FLWR_HOME"] == str(options.state.flwr_home)


def test_a_device_has_a_class() -> None:
    assert default_device_class()


def test_a_bundle(bundle_folder: Path) -> None:
    assert read_bundle(bundle_folder).name == "kitchen"
    (bundle_folder / "name").unlink()
    assert read_bundle(bundle_folder).name == ""


def test_a_key_that_others_can_read(bundle_folder: Path) -> None:
    (bundle_folder / "node.key").chmod(0o644)

    with pytest.raises(StorageError, match="chmod 600"):
        read_bundle(bundle_folder)


@pytest.mark.parametrize("name", ["ca.crt", "node.key"])
def test_half_a_bundle(bundle_folder: Path, name: str) -> None:
    (bundle_folder / name).unlink()

    with pytest.raises(StorageError, match=f"has no {name}: neuroflux-fl enroll"):
        read_bundle(bundle_folder)
