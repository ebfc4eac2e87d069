"""Commands and files of a server: what is open to whom, and that no secret is anywhere but in its file."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from flwr.common.config import validate_config

from neuroflux_fl.errors import StorageError, UsageError
from neuroflux_fl.run_config import RunConfig
from server.state_folder import ServerState
from server.superlink import (
    Endpoint,
    app_project,
    check_exposure,
    flower_connections,
    prepare_files,
    superexec_command,
    superlink_command,
)


def certificates(folder: Path) -> Path:
    folder.mkdir()
    for name in ("ca.crt", "server.crt", "server.key"):
        (folder / name).write_text("")
    return folder


def options(command: list[str]) -> dict[str, str]:
    """Options with a value; a flag has none."""
    pairs = zip(command[1:], [*command[2:], "--"], strict=True)
    return {name: "" if value.startswith("--") else value for name, value in pairs if name.startswith("--")}


def test_commands_with_tls(tmp_path: Path) -> None:
    state = ServerState(tmp_path / "state")
    certs = certificates(tmp_path / "certs")
    endpoint = Endpoint(host="0.0.0.0", port=8443, certificates=certs)

    assert options(superlink_command(state, endpoint)) == {
        "--host": "0.0.0.0",
        "--port": "8443",
        "--database": str(state.database),
        "--isolation": "process",
        "--superexec-auth-secret-file": str(state.secret),
        "--ssl-ca-certfile": str(certs / "ca.crt"),
        "--ssl-certfile": str(certs / "server.crt"),
        "--ssl-keyfile": str(certs / "server.key"),
        "--enable-supernode-auth": "",
    }
    assert options(superexec_command(state, endpoint)) == {
        "--runtime-api-address": "127.0.0.1:8443",
        "--superexec-auth-secret-file": str(state.secret),
        "--root-certificates": str(certs / "ca.crt"),
    }


def test_commands_without_tls(tmp_path: Path) -> None:
    state, endpoint = ServerState(tmp_path), Endpoint(host="127.0.0.1", port=9000, certificates=None)

    link, runner = superlink_command(state, endpoint), superexec_command(state, endpoint)

    assert "--insecure" in link
    assert "--insecure" in runner
    assert not any("ssl" in word or ("auth-" in word and "secret" not in word) for word in link)
    assert options(link)["--superexec-auth-secret-file"] == str(state.secret)


def test_a_missing_certificate_is_named(tmp_path: Path) -> None:
    certs = certificates(tmp_path / "certs")
    (certs / "server.key").unlink()

    with pytest.raises(StorageError, match=r"has no server\.key: make it with neuroflux-fl certs"):
        superlink_command(ServerState(tmp_path), Endpoint(host="::1", port=1, certificates=certs))


@pytest.mark.parametrize(
    ("host", "loopback", "address"),
    [
        ("127.0.0.1", True, "127.0.0.1:1"),
        ("localhost", True, "localhost:1"),
        ("::1", True, "[::1]:1"),
        ("0.0.0.0", False, "127.0.0.1:1"),
        ("::", False, "[::1]:1"),
        ("192.0.2.1", False, "192.0.2.1:1"),
        ("fleet.example.org", False, "fleet.example.org:1"),
    ],
)
def test_endpoints(host: str, loopback: bool, address: str) -> None:
    endpoint = Endpoint(host=host, port=1, certificates=None)

    assert (endpoint.loopback, endpoint.local_address) == (loopback, address)


def test_nothing_is_served_in_the_clear_to_a_network_unasked(tmp_path: Path) -> None:
    everywhere = Endpoint(host="0.0.0.0", port=1, certificates=None)

    with pytest.raises(UsageError, match="--insecure-network"):
        check_exposure(everywhere, insecure_network=False)
    check_exposure(everywhere, insecure_network=True)
    check_exposure(Endpoint(host="127.0.0.1", port=1, certificates=None), insecure_network=False)
    check_exposure(Endpoint(host="0.0.0.0", port=1, certificates=tmp_path), insecure_network=False)


def test_the_connection_of_flowers_commands(tmp_path: Path) -> None:
    certs = certificates(tmp_path / "a 'quoted' \"folder\"")

    with_tls = tomllib.loads(flower_connections(Endpoint(host="0.0.0.0", port=7, certificates=certs)))
    without = tomllib.loads(flower_connections(Endpoint(host="127.0.0.1", port=7, certificates=None)))

    assert with_tls["superlink"] == {
        "default": "fleet",
        "fleet": {"address": "127.0.0.1:7", "root-certificates": str(certs / "ca.crt")},
    }
    assert without["superlink"]["fleet"] == {"address": "127.0.0.1:7", "insecure": True}


def test_the_app_holds_every_key_of_a_run(tmp_path: Path) -> None:
    config = RunConfig(data="/my/pictures", out="/results").to_flat()

    project = tomllib.loads(app_project(config))

    is_valid, errors, warnings = validate_config(project)
    assert (is_valid, errors, warnings) == (True, [], [])
    assert project["tool"]["flwr"]["app"]["config"] == config
    assert project["tool"]["flwr"]["app"]["components"] == {
        "serverapp": "server.app:app",
        "clientapp": "clients.app:app",
    }


def test_files_are_private_and_the_secret_is_in_one_of_them(tmp_path: Path) -> None:
    state = ServerState(tmp_path / "state")
    endpoint = Endpoint(host="127.0.0.1", port=7, certificates=None)

    prepare_files(state, endpoint, RunConfig().to_flat())
    secret = state.secret.read_bytes()
    prepare_files(state, endpoint, RunConfig().to_flat())

    assert state.secret.read_bytes() == secret
    assert state.secret.stat().st_mode & 0o777 == 0o600
    assert state.root.stat().st_mode & 0o777 == 0o700
    assert not any(
        secret in path.read_bytes() for path in state.root.rglob("*") if path.is_file() and path != state.secret
    )
    assert sorted(path.name for path in state.app.iterdir()) == ["pyproject.toml"]
