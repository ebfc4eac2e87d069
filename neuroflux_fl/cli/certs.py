"""``neuroflux-fl certs``: the certificates that let devices know their server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from neuroflux_fl.cli.output import print_json

# Cryptography is imported inside: --help and a wrong option should answer at once.


def certs(
    folder: Annotated[Path, typer.Argument(help="New or empty folder; with --renew, the folder made before.")],
    host: Annotated[
        list[str] | None,
        typer.Option(help="Name or address that devices call the server by; may be given several times."),
    ] = None,
    days: Annotated[int, typer.Option(help="How long the server certificate is good for.")] = 397,
    renew: Annotated[
        bool, typer.Option("--renew", help="New server certificate, same authority: devices need nothing new.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")] = False,
) -> None:
    """Make the fleet's own certificate authority (10 years) and the server's certificate.

    Writes ca.crt, ca.key, server.crt and server.key. Devices get ca.crt, with neuroflux-fl enroll. Whoever has ca.key
    can pose as the server: once all is made, keep it away from machines that face the network.

    Example: neuroflux-fl certs certs --host fleet.example.org --host 192.0.2.10
    """
    from server.certificates import create_certificates, renew_server_certificate

    make = renew_server_certificate if renew else create_certificates
    made = make(folder, host or [], days)
    if json:
        print_json(
            {
                "folder": str(folder),
                "hosts": list(made.hosts),
                "authority_expires_at": made.authority_expires_at.isoformat(),
                "server_expires_at": made.server_expires_at.isoformat(),
                "renewed": renew,
            }
        )
        return
    authority = "kept" if renew else "new"
    typer.echo(f"Authority ({authority}): {folder / 'ca.crt'}, until {made.authority_expires_at:%Y-%m-%d}.")
    typer.echo(
        f"Server certificate (new): {folder / 'server.crt'}, until {made.server_expires_at:%Y-%m-%d}, "
        f"for {', '.join(made.hosts)}."
    )
    if renew:
        typer.echo("Restart the server and the gate: both read it when they start.")
