"""The gateway's command line says what it was written from, and values that make no sense are refused."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from neuroflux_fl.errors import StorageError, UsageError
from server.gateway_settings import GatewaySettings, gateway_command, parse_gateway_command
from server.state_folder import ServerState
from server.superlink import Endpoint


def settings(**given: Any) -> GatewaySettings:
    endpoint = Endpoint(host="127.0.0.1", port=8444, certificates=None)
    return GatewaySettings(**{"endpoint": endpoint, **given})


def test_the_command_line_says_it_all(tmp_path: Path) -> None:
    certificates = tmp_path / "certs"
    certificates.mkdir()
    (certificates / "server.crt").touch()
    state = ServerState(tmp_path / "state")
    written = settings(
        endpoint=Endpoint(host="::", port=1, certificates=certificates), metrics_host="::1", metrics_port=2,
        run="--a run", most_devices=3, most_streams=4, stale_seconds=5.5, interval_seconds=0.5,
    )  # fmt: skip

    command = gateway_command(state, written)

    assert command[:4] == [sys.executable, "-P", "-m", "server.telemetry_gateway"]
    assert parse_gateway_command(command[4:]) == (state, written)


def test_without_tls_no_certificates_are_named(tmp_path: Path) -> None:
    command = gateway_command(ServerState(tmp_path), settings())

    assert "--certs" not in command
    assert parse_gateway_command(command[4:])[1].endpoint.certificates is None


def test_a_certificate_folder_must_be_whole(tmp_path: Path) -> None:
    endpoint = Endpoint(host="127.0.0.1", port=8444, certificates=tmp_path)

    with pytest.raises(StorageError, match=r"has no server\.crt"):
        gateway_command(ServerState(tmp_path), settings(endpoint=endpoint))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"endpoint": Endpoint(host="h", port=65536, certificates=None)}, "give another --telemetry-port"),
        ({"metrics_port": 0}, "Give another --metrics-port"),
        ({"metrics_port": 8444}, "change --metrics-port"),
        ({"most_devices": -1}, "--max-devices -1 is not allowed"),
        ({"most_streams": 0}, "--max-streams 0 is not allowed"),
        ({"stale_seconds": 9.0}, "--stale-after 9 is not allowed: it must be at least twice"),
        ({"stale_seconds": float("nan")}, "--stale-after nan is not allowed"),
        ({"interval_seconds": 0.0}, "is not allowed"),
    ],
)
def test_values_that_make_no_sense(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=f"(?i){message}"):
        settings(**given)
