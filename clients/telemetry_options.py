"""Which roads a device's readings take, from what the command line says."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass

from clients.server_check import parse_address
from neuroflux_fl.errors import UsageError, WireError
from neuroflux_fl.toml_text import Value
from neuroflux_fl.wire.checks import check_address

AUTO, OFF = "auto", "off"
_ANY_ADDRESS = ("", "0.0.0.0", "::")


@dataclass(frozen=True, slots=True, kw_only=True)
class TelemetryOptions:
    """No road at all by default."""

    gateways: tuple[str, ...] = ()
    """Where reports are pushed to, ``host:port``, tried in turn; empty pushes nothing."""
    metrics_host: str = ""
    metrics_port: int = 0
    """Where ``/metrics`` is served; port 0 serves none."""
    name: str = ""
    """Label of this device on its own page."""

    @property
    def wanted(self) -> bool:
        """Whether anybody is told anything."""
        return bool(self.gateways or self.metrics_port)


def gateway_addresses(choice: str | None, server: str, *, scraped: bool) -> tuple[str, ...]:
    """Where the gateway may be.

    Args:
        choice: ``auto``, ``off`` or ``host:port``; None is ``auto``, but ``off`` for a device that is scraped.
        server: ``host:port`` of the server. The gate passes telemetry on at the same port; a gateway without a gate
            listens at the next one.
        scraped: the device serves its metrics itself.

    Raises:
        UsageError: the choice is none of these.
    """
    choice = choice or (OFF if scraped else AUTO)
    if choice == OFF:
        return ()
    if choice != AUTO:
        try:
            parse_address(choice)
        except UsageError:
            raise UsageError(f"Telemetry {choice!r} is unknown: give auto, off or HOST:PORT.") from None
        return (choice,)
    _, port = parse_address(server)
    host = server.rpartition(":")[0]
    return (server, f"{host}:{port + 1}") if port < 65535 else (server,)


def announced_address(host: str, port: int, server: str) -> str:
    """``HOST:PORT`` at which others find this device's metrics.

    Where they are served on every address of the device, it is the one from which the device reaches its server.

    Raises:
        UsageError: it is no address that can be passed on.
    """
    if host in _ANY_ADDRESS:
        host = _address_towards(server)
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        check_address("metrics address", address)
    except WireError:
        raise UsageError(
            f"Metrics address {address!r} is none that others could connect to: give --metrics-host a name or number."
        ) from None
    return address


def device_name(bundle_name: str, node_config: Mapping[str, Value]) -> str:
    """What to call a device: as it was enrolled, or by its share of the data, or as the machine is called."""
    if bundle_name:
        return bundle_name
    if "partition-id" in node_config:
        return f"device-{node_config['partition-id']}"
    return socket.gethostname()


def _address_towards(server: str) -> str:
    host, port = parse_address(server)
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(address)  # of a datagram socket: looks the route up and sends nothing
            return str(probe.getsockname()[0])
    except OSError:
        return socket.gethostname()
