"""``neuroflux-fl client``: a device in a fleet, started once and kept there."""

from __future__ import annotations

import os
import shlex
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from neuroflux_fl.cli.live_view import LiveView
from neuroflux_fl.cli.output import print_json, progress_console, result_console
from neuroflux_fl.cli.threads import check_threads
from neuroflux_fl.errors import StorageError, UsageError
from neuroflux_fl.sizes import format_bytes, parse_bytes
from neuroflux_fl.state_home import default_state_folder, keep_secret, locked, prepare_private_folder

if TYPE_CHECKING:
    from clients.client_commands import ClientOptions, ClientState
    from neuroflux_fl.toml_text import Value

_LONGEST_SOCKET_PATH = 100
"""Of the 107 bytes that a Unix socket's path may have."""


def client(
    server: Annotated[str, typer.Option(help="HOST:PORT of the server, or of the gate before it.")],
    data: Annotated[
        str, typer.Option(help="This device's own data: digits, cifar10, cifar100, fashion-mnist, or a folder.")
    ],
    bundle: Annotated[
        Path | None, typer.Option(help="Folder that neuroflux-fl enroll made for this device: ca.crt and node.key.")
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="No TLS and no key: for trials with a server that runs so as well.")
    ] = False,
    budget: Annotated[
        str | None,
        typer.Option(help="Memory for training, for example 256MiB. Default: what is free, less what Flower needs."),
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option(help="Folder for weights and caches, kept over restarts. Default: in the user's state folder."),
    ] = None,
    device_class: Annotated[
        str | None, typer.Option(help="What kind of device this is, for tables. Default: what the board says it is.")
    ] = None,
    partition_id: Annotated[
        int | None, typer.Option(help="With --partitions: take only this share of the data, counted from 0.")
    ] = None,
    partitions: Annotated[int | None, typer.Option(help="Number of devices that share the data.")] = None,
    agent: Annotated[
        bool, typer.Option("--agent/--no-agent", help="Keep torch, model and data in memory between tasks.")
    ] = True,
    port: Annotated[
        int, typer.Option(help="Port of 127.0.0.1 for the device's own processes; 0 takes a free one.")
    ] = 0,
    threads: Annotated[int, typer.Option(help="Threads of torch; 0 leaves them alone.")] = 0,
    telemetry: Annotated[
        str | None,
        typer.Option(
            help="Where to push readings (memory, speed, losses; no images): auto (the server, default), off, or "
            "HOST:PORT of a gateway.",
            metavar="auto|off|HOST:PORT",
        ),
    ] = None,
    metrics_port: Annotated[
        int | None, typer.Option(help="Serve /metrics here for Prometheus, instead of pushing.", min=1, max=65535)
    ] = None,
    metrics_host: Annotated[
        str, typer.Option(help="Address of this device on which /metrics is served: one that Prometheus reaches.")
    ] = "127.0.0.1",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the commands and start nothing.")] = False,
    json: Annotated[bool, typer.Option("--json", help="With --dry-run: print JSON on standard output.")] = False,
) -> None:
    """Take part in a fleet with this device's own data, until it is stopped (Ctrl-C, SIGTERM).

    Checks the data, finds the memory budget, and keeps three processes running: the device agent, which trains, and
    Flower's SuperNode and SuperExec, which fetch tasks. What ends is started again, after growing pauses; a server
    that is away is waited for. No image leaves the device.

    Example: neuroflux-fl client --server fleet.example.org:8443 --bundle bundle --data ~/pictures --budget 256MiB
    """
    from clients.bundle import read_bundle
    from clients.client_commands import ClientOptions, ClientState, default_device_class
    from clients.server_check import parse_address
    from clients.telemetry_options import TelemetryOptions, announced_address, device_name, gateway_addresses
    from neuroflux_fl.flower_environment import flower_environment

    parse_address(server)
    if (bundle is None) != insecure:
        raise UsageError("Give either --bundle DIR (neuroflux-fl enroll makes one) or, for a trial, --insecure.")
    if not 0 <= port <= 65535:
        raise UsageError(f"Port {port} is not allowed: ports are 0 to 65535.")
    check_threads(threads)
    share = _share(partition_id, partitions)
    gateways = gateway_addresses(telemetry, server, scraped=metrics_port is not None)
    wanted = None if budget is None else parse_bytes(budget)
    credentials = None if bundle is None else read_bundle(bundle)
    folder = ClientState((state or default_state_folder("client")).expanduser().resolve())
    name, budget_bytes = _look_around(data, wanted, flower_environment(folder.flwr_home))
    values: dict[str, Value] = {
        "memory-budget": str(budget_bytes),
        "device-class": device_class or default_device_class(),
        "state-folder": str(folder.device),
        "data": name,
        **share,
    }
    if metrics_port is not None:
        values["metrics-address"] = announced_address(metrics_host, metrics_port, server)
    with _socket_folder(folder, needed=agent and not dry_run) as sockets:
        options = ClientOptions(
            state=folder,
            server=server,
            bundle=credentials,
            node_config=values,
            agent_socket=sockets / "agent.sock" if agent else None,
            port=port,
            threads=threads,
            telemetry=TelemetryOptions(
                gateways=gateways,
                metrics_host=metrics_host,
                metrics_port=metrics_port or 0,
                name=device_name("" if credentials is None else credentials.name, values),
            ),
        )
        if dry_run:
            _show_commands(options, json)
        else:
            _take_part(options)


def _share(partition_id: int | None, partitions: int | None) -> dict[str, int]:
    if partition_id is None and partitions is None:
        return {}
    if partition_id is None or partitions is None or not 0 <= partition_id < partitions:
        raise UsageError(
            f"Partition {partition_id} of {partitions} is not a share: give both --partition-id, from 0, and "
            "--partitions, which is larger."
        )
    return {"partition-id": partition_id, "num-partitions": partitions}


def _look_around(data: str, wanted_bytes: int | None, environment: dict[str, str]) -> tuple[str, int]:
    """The name or whole path of the data, and the budget in bytes; says what was found."""
    from clients.budget import find_budget, read_memory
    from clients.own_data import look_at_data

    found = look_at_data(data, environment, Path.cwd())
    progress_console.print(f"Data: {found.describe()}.", soft_wrap=True)
    if wanted_bytes is not None:
        progress_console.print(f"Memory budget: {format_bytes(wanted_bytes)}, as given.", soft_wrap=True)
        return found.data, wanted_bytes
    budget = find_budget(read_memory(cuda=found.cuda))
    progress_console.print(f"Memory budget: {format_bytes(budget.budget_bytes)}: {budget.reason}.", soft_wrap=True)
    return found.data, budget.budget_bytes


@contextmanager
def _socket_folder(state: ClientState, *, needed: bool) -> Iterator[Path]:
    """A folder for the agent's socket: in the state folder, or a temporary one where that path is too long."""
    if not needed or len(os.fsencode(state.run / "agent.sock")) <= _LONGEST_SOCKET_PATH:
        yield state.run
        return
    with tempfile.TemporaryDirectory(prefix="neuroflux-") as folder:
        yield Path(folder)


def _take_part(options: ClientOptions) -> None:
    from clients.supervisor import DeviceSupervisor
    from neuroflux_fl.stop_request import StopRequest

    # What gRPC writes on the terminal by itself, where telemetry or the agent is away, is said better by the view.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    state = options.state
    prepare_private_folder(state.root)
    with locked(state.lock_file, "A client"):
        for folder in (state.flwr_home, state.device, state.logs, state.run):
            prepare_private_folder(folder)
        try:
            state.run.chmod(0o700)
        except OSError as error:
            raise StorageError(f"Folder {state.run} cannot be made private: {error.strerror}.") from error
        keep_secret(state.secret)
        with StopRequest() as stop, LiveView(progress_console) as view:
            who = f" as {options.bundle.name!r}" if options.bundle is not None and options.bundle.name else ""
            view.note(f"Joining {options.server}{who}. State: {state.root}.")
            if options.bundle is None:
                view.note("No TLS: what is trained travels in the clear.")
            DeviceSupervisor(options, view).run(stop)
        progress_console.print("Stopped. Start it again with the same options to go on.", soft_wrap=True)


def _show_commands(options: ClientOptions, as_json: bool) -> None:
    from clients.client_commands import agent_command, superexec_command, supernode_command

    commands = {} if options.agent_socket is None else {"agent": agent_command(options.agent_socket)}
    commands |= {
        "supernode": supernode_command(options, options.port),
        "superexec": superexec_command(options, options.port),
    }
    if as_json:
        telemetry = list(options.telemetry.gateways)
        print_json({"state": str(options.state.root), "commands": commands, "telemetry": telemetry})
        return
    for name, command in commands.items():
        result_console.print(f"{name}: {shlex.join(command)}", soft_wrap=True, markup=False)
