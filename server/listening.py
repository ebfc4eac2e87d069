"""Ports of this server: found to be free before anything is started, and answering after."""

from __future__ import annotations

import socket

from neuroflux_fl.errors import UsageError


def require_free_port(host: str, port: int, option: str) -> None:
    """Raise UsageError, naming the ``option`` that changes it, when nothing could listen on the port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else "ports are 1 to 65535"
        raise UsageError(f"Port {port} of {host} cannot be opened: {reason}. Choose another {option}.") from error


def accepts_connections(host: str, port: int) -> bool:
    """Whether someone listens there."""
    try:
        with socket.create_connection((host, port), timeout=1.0):
            return True
    except OSError:
        return False
