"""How the telemetry gateway is started: what its command line says, written and read in one place."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from neuroflux_fl.errors import UsageError
from server.state_folder import ServerState
from server.superlink import Endpoint

MODULE = "server.telemetry_gateway"
DEFAULT_METRICS_HOST = "127.0.0.1"
DEFAULT_METRICS_PORT = 9464


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewaySettings:
    """Where the gateway listens, and what it allows."""

    endpoint: Endpoint
    """Of the stream of reports: TLS and enrolled devices only, or, without certificates, neither."""
    metrics_host: str = DEFAULT_METRICS_HOST
    metrics_port: int = DEFAULT_METRICS_PORT
    """Of the pages that Prometheus reads; there is no TLS and no password."""
    run: str = ""
    """Name of the run, a label of every device's metrics."""
    most_devices: int = 200
    """With labels of their own."""
    most_streams: int = 2000
    stale_seconds: float = 60.0
    interval_seconds: float = 5.0

    def __post_init__(self) -> None:
        """Raise UsageError for a value that is not allowed."""
        for option, port in (("--telemetry-port", self.endpoint.port), ("--metrics-port", self.metrics_port)):
            if not 1 <= port <= 65535:
                raise UsageError(f"Port {port} is not allowed: ports are 1 to 65535. Give another {option}.")
        if self.endpoint.port == self.metrics_port:
            raise UsageError(f"Port {self.metrics_port} cannot take reports and show metrics: change --metrics-port.")
        if self.most_devices < 0:
            raise UsageError(f"--max-devices {self.most_devices} is not allowed: it must be at least 0.")
        if self.most_streams < 1:
            raise UsageError(f"--max-streams {self.most_streams} is not allowed: it must be at least 1.")
        if not 0 < self.interval_seconds <= self.stale_seconds / 2:
            raise UsageError(
                f"--stale-after {self.stale_seconds:g} is not allowed: it must be at least twice the interval of "
                f"reports, {self.interval_seconds:g} s, or every late report would look like a lost device."
            )


def gateway_command(state: ServerState, settings: GatewaySettings) -> list[str]:
    """The command that starts the gateway of a server's state folder.

    Raises:
        StorageError: the certificate folder is not whole.
    """
    endpoint = settings.endpoint
    # -P: what happens to lie in the folder that it is started in must not be taken for a package.
    command = [sys.executable, "-P", "-m", MODULE, "--state", str(state.root)]
    command += ["--host", endpoint.host, "--port", str(endpoint.port)]
    if endpoint.certificates is not None:
        endpoint.certificate("server.crt")
        command += ["--certs", str(endpoint.certificates)]
    for option, value in (
        ("metrics-host", settings.metrics_host), ("metrics-port", settings.metrics_port), ("run", settings.run),
        ("max-devices", settings.most_devices), ("max-streams", settings.most_streams),
        ("stale-after", f"{settings.stale_seconds:g}"), ("interval", f"{settings.interval_seconds:g}"),
    ):  # fmt: skip
        command.append(f"--{option}={value}")
    return command


def parse_gateway_command(arguments: Sequence[str]) -> tuple[ServerState, GatewaySettings]:
    """What ``gateway_command``'s options say; ends the process where they are none.

    Raises:
        UsageError: a value is not allowed.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", allow_abbrev=False, description=_DESCRIPTION)
    add = parser.add_argument
    add("--state", type=Path, required=True, help="the server's state folder")
    add("--host", required=True, help="name or address that reports come to")
    add("--port", type=int, required=True, help="its port")
    add("--certs", type=Path, help="folder with server.crt and server.key; without it there is no TLS and no proof")
    add("--metrics-host", default=DEFAULT_METRICS_HOST, help="name or address of /metrics and /targets")
    add("--metrics-port", type=int, default=DEFAULT_METRICS_PORT, help="its port")
    add("--run", default="", help="name of the run")
    add("--max-devices", type=int, default=200, help="devices with labels of their own")
    add("--max-streams", type=int, default=2000, help="devices that may be connected at a time")
    add("--stale-after", type=float, default=60.0, help="seconds without a report until a device's metrics are gone")
    add("--interval", type=float, default=5.0, help="seconds between a device's reports")
    given = parser.parse_args(arguments)
    settings = GatewaySettings(
        endpoint=Endpoint(host=given.host, port=given.port, certificates=given.certs),
        metrics_host=given.metrics_host,
        metrics_port=given.metrics_port,
        run=given.run,
        most_devices=given.max_devices,
        most_streams=given.max_streams,
        stale_seconds=given.stale_after,
        interval_seconds=given.interval,
    )
    return ServerState(given.state), settings


_DESCRIPTION = "Takes devices' telemetry and shows it to Prometheus. neuroflux-fl server starts one."
