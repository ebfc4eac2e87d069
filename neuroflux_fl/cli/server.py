"""``neuroflux-fl server``: everything that a fleet of real devices needs on its server, started and kept running."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from neuroflux_fl.cli.fleet_summary import print_summary
from neuroflux_fl.cli.live_view import LiveView
from neuroflux_fl.cli.output import print_json, progress_console, result_console
from neuroflux_fl.errors import StorageError, UsageError
from neuroflux_fl.state_home import default_state_folder, locked, prepare_private_folder

if TYPE_CHECKING:
    from server.gateway_settings import GatewaySettings
    from server.run_record import RunRecord
    from server.state_folder import ServerState
    from server.superlink import Endpoint


def server(
    state: Annotated[
        Path | None, typer.Option(help="Folder for all that must not be lost. Default: in the user's state folder.")
    ] = None,
    host: Annotated[str, typer.Option(help="Name or address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8443,
    certs: Annotated[
        Path | None, typer.Option(help="Folder with ca.crt, server.crt and server.key: neuroflux-fl certs makes it.")
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="No TLS, every device is let in: for trials on one machine.")
    ] = False,
    insecure_network: Annotated[
        bool, typer.Option("--insecure-network", help="With --insecure: listen for other machines as well.")
    ] = False,
    telemetry: Annotated[
        str, typer.Option(help="on or off: whether to take devices' reports and show metrics.")
    ] = "on",
    telemetry_port: Annotated[
        int | None, typer.Option(help="Port that devices report to, on the same --host. Default: --port + 1.")
    ] = None,
    metrics_host: Annotated[
        str, typer.Option(help="Name or address of /metrics and /targets, which ask nobody for a password.")
    ] = "127.0.0.1",
    metrics_port: Annotated[int, typer.Option(help="Port of /metrics and /targets.")] = 9464,
    max_devices: Annotated[
        int, typer.Option(help="Devices that metrics name; all others count in the sums over their class.")
    ] = 200,
    stale_after: Annotated[
        float, typer.Option(help="Seconds without a report, after which a device's metrics are gone.")
    ] = 60.0,
    min_nodes: Annotated[int | None, typer.Option(help="Devices to wait for before the run starts.")] = None,
    model: Annotated[str | None, typer.Option(help="vgg11, vgg13, vgg16, vgg19, resnet18 or resnet34.")] = None,
    width: Annotated[float | None, typer.Option(help="Factor on the channels of a VGG.")] = None,
    data: Annotated[
        str | None,
        typer.Option(help="What the run is about, and what the server tests on: a data set's name or a folder."),
    ] = None,
    rounds: Annotated[int | None, typer.Option(help="Rounds in all.")] = None,
    local_epochs: Annotated[int | None, typer.Option(help="Passes over its data a device makes in a round.")] = None,
    cohort: Annotated[int | None, typer.Option(help="Devices drawn for a round; 0 takes all.")] = None,
    deadline: Annotated[float | None, typer.Option(help="Seconds that a round may take; 0 is no deadline.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights, cohorts, order and augmentation.")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file of run settings; flags win over it.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Any run setting as key=value; may be given several times.")
    ] = None,
    new_run: Annotated[
        bool, typer.Option("--new-run", help="Start another run with the same devices; old results move to out-1, ...")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the commands and start nothing.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")] = False,
) -> None:
    """Serve a fleet of real devices: wait for them, train, and show what happens until the run is done.

    Starts and watches over Flower's SuperLink and SuperExec and a telemetry gateway, and starts each again that ends. A
    run goes on after anything that was killed, this command included: start it again with the same --state.

    Metrics of server and devices: http://127.0.0.1:9464/metrics; devices that can be scraped: /targets.

    Devices need a bundle: while the server waits, neuroflux-fl enroll NAME --state DIR --out BUNDLE makes one.
    With --host other than this machine, put the gate before it (deploy/nginx).

    Example: neuroflux-fl certs certs --host fleet.example.org, then neuroflux-fl server --certs certs --min-nodes 4
    --model vgg11 --data cifar10 --rounds 20
    """
    from server.certificate_check import check_certificates
    from server.gateway_settings import GatewaySettings
    from server.state_folder import ServerState
    from server.superlink import Endpoint, check_exposure, prepare_files

    if (certs is None) != insecure:
        raise UsageError(
            "Give either --certs DIR (neuroflux-fl certs makes one) or, for a trial on one machine, --insecure."
        )
    if not 1 <= port <= 65535:
        raise UsageError(f"Port {port} is not allowed: ports are 1 to 65535.")
    if telemetry not in ("on", "off"):
        raise UsageError(f"--telemetry {telemetry} is not allowed: it is on or off.")
    flags = {
        "min-nodes": min_nodes, "model": model, "width": width, "data": data, "num-server-rounds": rounds,
        "local-epochs": local_epochs, "cohort": cohort, "deadline-seconds": deadline, "seed": seed,
    }  # fmt: skip
    root = (state or default_state_folder("server")).expanduser().resolve()
    folder = ServerState(root)
    endpoint = Endpoint(host=host, port=port, certificates=None if certs is None else certs.expanduser().resolve())
    check_exposure(endpoint, insecure_network=insecure_network)
    gateway = None
    if telemetry == "on":
        gateway = GatewaySettings(
            endpoint=replace(endpoint, port=port + 1 if telemetry_port is None else telemetry_port),
            metrics_host=metrics_host,
            metrics_port=metrics_port,
            most_devices=max_devices,
            stale_seconds=stale_after,
        )
    warning = check_certificates(endpoint)
    if warning is not None:
        progress_console.print(f"Note: {warning}", soft_wrap=True)
    given = any(value is not None for value in flags.values()) or config is not None or bool(set_)
    if dry_run:
        _show_commands(folder, endpoint, gateway, json)
        return
    prepare_private_folder(root)
    with locked(folder.lock_file, "A server"):
        record = _settle(folder, given, flags=flags, path=config, settings=set_ or [], new_run=new_run)
        if record.finished:
            summary = _finished_summary(folder)
        else:
            prepare_files(folder, endpoint, record.config)
            if gateway is not None:
                gateway = replace(gateway, run=str(record.config.get("run-name", "")))
            summary = _serve(folder, endpoint, record, gateway)
    _name_devices(summary, folder)
    if json:
        print_json(summary)
    else:
        print_summary(summary)
        result_console.print(f"Results: {folder.out}", soft_wrap=True)


def _settle(
    state: ServerState, given: bool, *, flags: dict[str, Any], path: Path | None, settings: list[str], new_run: bool
) -> RunRecord:
    """The record of the run to go on with, or of a new one; data are looked at in another process."""
    from neuroflux_fl.side_process import ask_side_process
    from server.run_record import RunRecord

    record = None if new_run else RunRecord.load(state.server_file)
    if record is not None and not given:
        return record
    request = {
        "state": str(state.root),
        "flags": flags,
        "path": None if path is None else str(path),
        "settings": settings,
        "new_run": new_run,
    }
    moved = ask_side_process(
        "neuroflux_fl.cli.settle_run", request, environment=state.flower_environment(), folder=Path.cwd()
    )
    if moved is not None:
        progress_console.print(f"Results of the run before are now in {moved}.", soft_wrap=True)
    record = RunRecord.load(state.server_file)
    if record is None:
        raise StorageError(f"File {state.server_file} has just been written and is not there: start again.")
    return record


def _name_devices(summary: dict[str, Any], state: ServerState) -> None:
    """Give each device of a summary the name that it was enrolled with."""
    from server.device_registry import names_by_node

    names = names_by_node(state.devices_file)
    for row in summary["devices"]:
        if row["node_id"] in names:
            row["name"] = names[row["node_id"]]


def _finished_summary(state: ServerState) -> dict[str, Any]:
    import json

    progress_console.print(
        f"The run in {state.root} is finished. Another with the same devices: --new-run.", soft_wrap=True
    )
    path = state.run_file
    try:
        summary: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise StorageError(f"Results {path} cannot be read ({error}): start another run with --new-run.") from error
    return summary


def _serve(
    state: ServerState, endpoint: Endpoint, record: RunRecord, gateway: GatewaySettings | None
) -> dict[str, Any]:
    from neuroflux_fl.stop_request import StopRequest
    from server.launcher import Launcher

    with StopRequest() as stop, LiveView(progress_console) as view:
        view.note(f"State: {state.root}. Listening on {endpoint.host} port {endpoint.port}.")
        if endpoint.certificates is None:
            view.note("No TLS: every device that can connect is let in.")
        elif not endpoint.loopback:
            view.note("Let only the path /v1/fleet/ through to this port: the rest of it asks for no key.")
        if gateway is not None:
            view.note(
                f"Reports come to port {gateway.endpoint.port}; metrics are on {gateway.metrics_host} port "
                f"{gateway.metrics_port}."
            )
        summary = Launcher(state, endpoint, record, view, telemetry=gateway).run(stop)
    if summary is None:
        name = stop.received.name if stop.received is not None else "a signal"
        progress_console.print(
            f"Stopped by {name}. Go on with: neuroflux-fl server --state {shlex.quote(str(state.root))} and the same "
            "options for host, port and certificates.",
            soft_wrap=True,
        )
        raise typer.Exit(130 if name == "SIGINT" else 0)
    return summary


def _show_commands(state: ServerState, endpoint: Endpoint, gateway: GatewaySettings | None, as_json: bool) -> None:
    from neuroflux_fl.flower_environment import flower_command
    from server.flower_runs import submit_command
    from server.gateway_settings import gateway_command
    from server.state_folder import CONNECTION
    from server.superlink import superexec_command, superlink_command

    commands = {
        "superlink": superlink_command(state, endpoint),
        "superexec": superexec_command(state, endpoint),
        "run": [flower_command("flwr"), *submit_command(state), CONNECTION, "--format", "json"],
    }
    if gateway is not None:
        commands["telemetry"] = gateway_command(state, gateway)
    if as_json:
        print_json({"state": str(state.root), "commands": commands})
        return
    for name, command in commands.items():
        result_console.print(f"{name}: {shlex.join(command)}", soft_wrap=True, markup=False)
