"""The processes of a device: where they keep their state, and their commands."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from clients.bundle import Bundle
from clients.telemetry_options import TelemetryOptions
from neuroflux_fl.flower_environment import flower_command, flower_environment
from neuroflux_fl.memory_allocator import allocator_environment
from neuroflux_fl.toml_text import Value, flower_arguments

RUNTIME_HOST = "127.0.0.1"
"""Where a device's SuperNode talks to its own task runner."""


@dataclass(frozen=True, slots=True)
class ClientState:
    """Names inside a device's state folder; nothing is read or made here."""

    root: Path

    @property
    def flwr_home(self) -> Path:
        """``FLWR_HOME`` of the device's Flower processes."""
        return self.root / "flwr-home"

    @property
    def device(self) -> Path:
        """Weights and caches: what training keeps from round to round."""
        return self.root / "device"

    @property
    def logs(self) -> Path:
        """One file for each process."""
        return self.root / "logs"

    @property
    def run(self) -> Path:
        """The agent's socket; open to the owner alone."""
        return self.root / "run"

    @property
    def secret(self) -> Path:
        """What proves to the SuperNode that a task runner is ours; mode 0600."""
        return self.root / "superexec.secret"

    @property
    def last_connected(self) -> Path:
        """Touched while the device is connected."""
        return self.root / "last-connected"

    @property
    def lock_file(self) -> Path:
        """Held by the client that uses the folder."""
        return self.root / "client.lock"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientOptions:
    """What one client was asked to do."""

    state: ClientState
    server: str
    """``host:port`` of the SuperLink, or of the gate before it."""
    bundle: Bundle | None
    """None connects without TLS and without a key of its own."""
    node_config: Mapping[str, Value]
    """For Flower's node configuration, without the agent's socket."""
    agent_socket: Path | None
    """None trains in a new process for every task."""
    port: int = 0
    """For the device's own processes to talk to each other; 0 takes a free one at every start."""
    threads: int = 0
    """Of torch; 0 leaves them alone."""
    telemetry: TelemetryOptions = field(default_factory=TelemetryOptions)

    def environment(self) -> dict[str, str]:
        """Of every process."""
        environment = flower_environment(self.state.flwr_home)
        if self.threads:
            environment |= {"OMP_NUM_THREADS": str(self.threads), "MKL_NUM_THREADS": str(self.threads)}
        return environment

    def training_environment(self) -> dict[str, str]:
        """Of the processes that train, or start those that do."""
        environment = self.environment()
        return environment | allocator_environment(environment)


def agent_command(socket: Path) -> list[str]:
    """The device agent."""
    # -P: a folder named clients in the working directory must not be taken for the package.
    return [sys.executable, "-P", "-m", "clients.agent", "--socket", str(socket)]


def supernode_command(options: ClientOptions, port: int) -> list[str]:
    """``flower-supernode``: fetches tasks and hands them to our own task runner."""
    node_config = dict(options.node_config)
    if options.agent_socket is not None:
        node_config["agent-socket"] = str(options.agent_socket)
    command = [flower_command("flower-supernode"), "--superlink", options.server]
    if options.bundle is None:
        command.append("--insecure")
    else:
        command += ["--root-certificates", str(options.bundle.root_certificate)]
        command += ["--auth-supernode-private-key", str(options.bundle.key)]
    command += ["--isolation", "process", "--host", RUNTIME_HOST, "--port", str(port)]
    command += ["--superexec-auth-secret-file", str(options.state.secret)]
    return [*command, "--node-config", flower_arguments(node_config)]


def superexec_command(options: ClientOptions, port: int) -> list[str]:
    """``flower-superexec``: starts a ClientApp for each task. What it says stays on this device, hence no TLS."""
    return [
        flower_command("flower-superexec"), "--insecure", "--runtime-api-address", f"{RUNTIME_HOST}:{port}",
        "--superexec-auth-secret-file", str(options.state.secret),
    ]  # fmt: skip


def default_device_class() -> str:
    """What the board calls itself, or else its processor and number of cores."""
    try:
        model = Path("/proc/device-tree/model").read_text(errors="replace").strip("\0 \n")
    except OSError:
        model = ""
    return model or f"{os.uname().machine}-{os.cpu_count() or 1}-cores"
