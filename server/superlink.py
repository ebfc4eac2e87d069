"""The two Flower processes of a server: their commands, and the files that they and ``flwr`` read."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from neuroflux_fl.errors import StorageError, UsageError
from neuroflux_fl.flower_environment import flower_command
from neuroflux_fl.output_folder import write_text
from neuroflux_fl.state_home import keep_secret, prepare_private_folder
from neuroflux_fl.toml_text import Value, toml_lines, toml_value
from server.state_folder import CONNECTION, ServerState

_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where the SuperLink listens, and how it proves who it is."""

    host: str
    """Name or address to listen on."""
    port: int
    certificates: Path | None
    """Folder with ca.crt, server.crt and server.key; None listens without TLS and without device authentication."""

    @property
    def loopback(self) -> bool:
        """Whether only this machine can connect."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def local_host(self) -> str:
        """Name or address under which this machine's own processes connect; the certificate must hold it."""
        return _WILDCARDS.get(self.host, self.host)

    @property
    def local_address(self) -> str:
        """``local_host`` and port, in one text."""
        return f"[{self.local_host}]:{self.port}" if ":" in self.local_host else f"{self.local_host}:{self.port}"

    def certificate(self, name: str) -> str:
        """Absolute path of a file in ``certificates``.

        Raises:
            StorageError: it is not there.
        """
        if self.certificates is None:
            raise StorageError("A server without TLS has no certificates.")
        path = (self.certificates / name).resolve()
        if not path.is_file():
            raise StorageError(
                f"Certificate folder {self.certificates} has no {name}: make it with neuroflux-fl certs "
                f"{self.certificates} --host {self.local_host}."
            )
        return str(path)


def check_exposure(endpoint: Endpoint, *, insecure_network: bool) -> None:
    """Refuse to listen in the clear for other machines, unless that is asked for in so many words.

    Raises:
        UsageError: the server would be open to the network without TLS.
    """
    if endpoint.certificates is None and not endpoint.loopback and not insecure_network:
        raise UsageError(
            f"--insecure with host {endpoint.host} would let everyone on the network train, read and stop: use --certs "
            "DIR, or say --insecure-network as well where the network is private."
        )


def superlink_command(state: ServerState, endpoint: Endpoint) -> list[str]:
    """``flower-superlink``: durable, with a task runner of its own, TLS and enrolled devices only."""
    command = [flower_command("flower-superlink"), "--host", endpoint.host, "--port", str(endpoint.port)]
    command += ["--database", str(state.database), "--isolation", "process"]
    command += ["--superexec-auth-secret-file", str(state.secret)]
    if endpoint.certificates is None:
        return [*command, "--insecure"]
    for option, name in (("ca-certfile", "ca.crt"), ("certfile", "server.crt"), ("keyfile", "server.key")):
        command += [f"--ssl-{option}", endpoint.certificate(name)]
    return [*command, "--enable-supernode-auth"]


def superexec_command(state: ServerState, endpoint: Endpoint) -> list[str]:
    """``flower-superexec``: runs the ServerApp, and alone may fetch its tasks."""
    command = [flower_command("flower-superexec"), "--runtime-api-address", endpoint.local_address]
    command += ["--superexec-auth-secret-file", str(state.secret)]
    if endpoint.certificates is None:
        return [*command, "--insecure"]
    return [*command, "--root-certificates", endpoint.certificate("ca.crt")]


def flower_connections(endpoint: Endpoint) -> str:
    """``config.toml`` of the state folder's Flower home: how ``flwr`` reaches this server."""
    values: dict[str, Value] = {"address": endpoint.local_address}
    if endpoint.certificates is None:
        values["insecure"] = True
    else:
        values["root-certificates"] = endpoint.certificate("ca.crt")
    return f"[superlink]\ndefault = {toml_value(CONNECTION)}\n\n[superlink.{CONNECTION}]\n{toml_lines(values)}"


def app_project(config: Mapping[str, Value]) -> str:
    """``pyproject.toml`` of the Flower app. Both apps are found in the installed packages, so it is the whole app."""
    return f"""[project]
name = "neuroflux-fleet"
version = "1.0.0"
description = "A fleet run of neuroflux-fl."
license = "Apache-2.0"
dependencies = ["flwr>=1.41,<1.42"]

[tool.flwr.app]
publisher = "neuroflux"

[tool.flwr.app.components]
serverapp = "server.app:app"
clientapp = "clients.app:app"

[tool.flwr.app.config]
{toml_lines(config)}"""


def prepare_files(state: ServerState, endpoint: Endpoint, defaults: Mapping[str, Value]) -> None:
    """Write everything that the processes read: folders, secret, connections, app.

    Args:
        state: where.
        endpoint: where the SuperLink will be.
        defaults: every key of the run's configuration, with any value of the right type.

    Raises:
        StorageError: the folder cannot be written, or a certificate is missing.
    """
    for folder in (state.root, state.flwr_home, state.logs, state.app):
        prepare_private_folder(folder)
    keep_secret(state.secret)
    write_text(state.flwr_config, flower_connections(endpoint))
    write_text(state.app / "pyproject.toml", app_project(defaults))
