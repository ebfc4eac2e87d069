"""Ends a SuperLink that has stopped answering without ending: alive for its supervisor, dead for every device."""

from __future__ import annotations

import http.client
import ssl
import time
from collections.abc import Callable

from neuroflux_fl.supervision import Child
from server.superlink import Endpoint


def answers_requests(endpoint: Endpoint, *, seconds: float = 5.0) -> bool:
    """Whether the SuperLink answers an HTTP request, with whatever status; a listening port alone proves nothing."""
    connection: http.client.HTTPConnection
    if endpoint.certificates is None:
        connection = http.client.HTTPConnection(endpoint.local_host, endpoint.port, timeout=seconds)
    else:
        # Whose certificate it is, and whether it is still good, is the devices' question; here it is only whether
        # anyone is there. A healthy SuperLink must not be killed while certificates are being renewed.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        connection = http.client.HTTPSConnection(endpoint.local_host, endpoint.port, timeout=seconds, context=context)
    try:
        connection.request("HEAD", "/")
        connection.getresponse()
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
    return True


class SuperlinkProbe:
    """Asks now and then, and kills a SuperLink that has been silent for longer than any work of its own takes.

    Args:
        child: the SuperLink; its supervisor starts it again.
        answers: asks once.
        every_seconds: between two questions.
        patience_seconds: of silence, from the first question without an answer, before it is killed.
    """

    def __init__(
        self, child: Child, answers: Callable[[], bool], *, every_seconds: float, patience_seconds: float
    ) -> None:
        self._child = child
        self._answers = answers
        self._every = every_seconds
        self._patience = patience_seconds
        self._heard_at = self._asked_at = time.monotonic()

    def tick(self) -> str | None:
        """Ask if it is time; a sentence for people where the SuperLink was killed."""
        now = time.monotonic()
        # A process that has just been started has its whole patience before it.
        self._heard_at = max(self._heard_at, now - self._child.seconds)
        if now - self._asked_at < self._every:
            return None
        self._asked_at = now
        if self._child.pid is None or self._answers():
            self._heard_at = time.monotonic()
            return None
        silent = time.monotonic() - self._heard_at
        if silent < self._patience:
            return None
        self._child.kill()
        self._heard_at = time.monotonic()
        return f"SuperLink has not answered for {silent:.0f} s: killed."
