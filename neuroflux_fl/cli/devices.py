"""``neuroflux-fl enroll``, ``revoke`` and ``devices``: who takes part in a fleet."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from neuroflux_fl.cli.output import make_table, print_json, result_console

if TYPE_CHECKING:
    from server.state_folder import ServerState

# Flower and cryptography are imported inside: --help and a wrong option should answer at once.

State = Annotated[
    Path | None,
    typer.Option(help="State folder of the running neuroflux-fl server. Default: in the user's state folder."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]


def enroll(
    name: Annotated[str, typer.Argument(help="Of the device: letters, digits, dots, dashes, underscores.")],
    out: Annotated[Path, typer.Option(help="New folder for the device's bundle.")],
    state: State = None,
    public_key: Annotated[
        Path | None, typer.Option(help="Enroll a key that the device made itself: its .pub file.")
    ] = None,
    json: Json = False,
) -> None:
    """Let a device into the fleet: register its key with the running server and write the bundle that it joins with.

    The bundle holds ca.crt, name, node.key and node.key.pub: carry it to the device over a channel that you trust and
    keep no copy. With --public-key it holds no secret, and the device's own key never leaves it.

    Example: neuroflux-fl enroll kitchen-pi --out bundles/kitchen-pi
    """
    from server.enrolment import enrol

    device = enrol(_server_state(state), name, out, public_key)
    if json:
        print_json(
            {
                "name": device.name,
                "node_id": str(device.node_id),
                "fingerprint": device.fingerprint,
                "enrolled_at": device.enrolled_at,
                "bundle": str(out),
            }
        )
        return
    typer.echo(f"Device {device.name} is enrolled as node {device.node_id}, key {device.fingerprint}.")
    own = "" if public_key is None else ", to which the device adds its own node.key"
    typer.echo(f"Bundle: {out}{own}. On the device: neuroflux-fl client --bundle {out.name} --server HOST:PORT ...")


def revoke(
    name: Annotated[str, typer.Argument(help="Of the device.")], state: State = None, json: Json = False
) -> None:
    """Shut a device out: the running server answers none of its requests from now on, and its key stays useless.

    Example: neuroflux-fl revoke kitchen-pi
    """
    from server.enrolment import revoke

    device = revoke(_server_state(state), name)
    if json:
        print_json({"name": device.name, "node_id": str(device.node_id), "revoked_at": device.revoked_at})
    else:
        typer.echo(f"Device {device.name} (node {device.node_id}) is shut out.")


def devices(state: State = None, json: Json = False) -> None:
    """List the devices that were enrolled, and whether the running server sees them.

    Example: neuroflux-fl devices
    """
    from server.enrolment import list_devices

    rows, strangers = list_devices(_server_state(state))
    if json:
        print_json(
            {
                "devices": [
                    {
                        "name": row.device.name,
                        "node_id": str(row.device.node_id),
                        "status": row.status,
                        "fingerprint": row.device.fingerprint,
                        "enrolled_at": row.device.enrolled_at,
                        "revoked_at": row.device.revoked_at,
                    }
                    for row in rows
                ],
                "unlisted_node_ids": [str(node_id) for node_id in strangers],
            }
        )
        return
    table = make_table("Devices", ["name", "status", "node", "enrolled, UTC"])
    for row in rows:
        table.add_row(
            row.device.name, row.status, str(row.device.node_id), row.device.enrolled_at[:16].replace("T", " ")
        )
    result_console.print(table)
    if strangers:
        ids = ", ".join(map(str, strangers))
        typer.echo(f"The server also lets in nodes that are not in this list, enrolled by other means: {ids}.")


def _server_state(folder: Path | None) -> ServerState:
    from neuroflux_fl.state_home import default_state_folder
    from server.state_folder import ServerState

    # Flower's commands run in another folder.
    return ServerState((folder or default_state_folder("server")).expanduser().resolve())
