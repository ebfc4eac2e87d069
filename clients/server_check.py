"""Why a device cannot reach its server, in one line: tried the way Flower tries it, which says little."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

from neuroflux_fl.errors import UsageError

_SECONDS = 5.0


def parse_address(text: str) -> tuple[str, int]:
    """``host:port`` or ``[IPv6]:port``.

    Raises:
        UsageError: anything else.
    """
    host, separator, port = text.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not separator or not bare or "/" in text or (":" in bare and bare == host) or not port.isdigit():
        raise UsageError(f"Server {text!r} is not HOST:PORT: write for example fleet.example.org:8443.")
    if not 1 <= int(port) <= 65535:
        raise UsageError(f"Server {text!r} has port {port}: ports are 1 to 65535.")
    return bare, int(port)


def server_trouble(address: str, root_certificate: Path | None, *, seconds: float = _SECONDS) -> str | None:
    """What stands between this device and its server; None when a connection comes about.

    Args:
        address: ``host:port``.
        root_certificate: of the authority that the server must be certified by; None connects without TLS.
        seconds: how long to wait for each answer.
    """
    host, port = parse_address(address)
    context = None
    if root_certificate is not None:
        try:
            context = ssl.create_default_context(cafile=str(root_certificate))
        except OSError as error:  # ssl.SSLError is one
            return f"certificate {root_certificate} cannot be read ({error.strerror or error})"
    try:
        connection = socket.create_connection((host, port), timeout=seconds)
    except socket.gaierror:
        return f"no address is known for the name {host}: check --server and the network"
    except TimeoutError:
        return f"{address} does not answer: is it the right address, and does a firewall let port {port} through?"
    except OSError as error:
        return f"{address} cannot be reached ({error.strerror}): is the server running?"
    with connection:
        if context is None:
            return None
        try:
            with context.wrap_socket(connection, server_hostname=host):
                return None
        except ssl.SSLCertVerificationError as error:
            return _certificate_trouble(error, host)
        except OSError:
            return f"{address} does not speak TLS: is it the right port, and was the server started with --certs?"


def _certificate_trouble(error: ssl.SSLCertVerificationError, host: str) -> str:
    reason = error.verify_message
    if "ostname mismatch" in reason or "IP address mismatch" in reason:
        return (
            f"the server's certificate is not for {host}: connect by a name that it has, or have it renewed with "
            f"neuroflux-fl certs DIR --renew --host {host}"
        )
    if "expired" in reason or "not yet valid" in reason:
        return f"the server's certificate is not valid now ({reason}): check this device's clock, or have it renewed"
    return f"the server's certificate is not from the authority in the bundle ({reason}): is it the right server?"
