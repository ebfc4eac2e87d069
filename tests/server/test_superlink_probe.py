"""Whether anyone is there is asked of a real TLS server, and whose certificate it is does not matter."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import TCPServer

import pytest

from server.certificates import create_certificates
from server.superlink import Endpoint
from server.superlink_probe import answers_requests


class Quiet(BaseHTTPRequestHandler):
    """Answers 501 to everything."""

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@contextmanager
def serving(certificates: Path) -> Iterator[int]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "server.crt", certificates / "server.key")
    with TCPServer(("127.0.0.1", 0), Quiet) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("renewed", [False, True], ids=["same authority", "files gone meanwhile"])
def test_a_superlink_behind_tls_answers_whatever_the_certificate_folder_holds(tmp_path: Path, renewed: bool) -> None:
    create_certificates(tmp_path, ["localhost"])
    with serving(tmp_path) as port:
        if renewed:
            (tmp_path / "ca.crt").unlink()
        endpoint = Endpoint(host="127.0.0.1", port=port, certificates=tmp_path)

        assert answers_requests(endpoint)
    assert not answers_requests(endpoint, seconds=1.0)
