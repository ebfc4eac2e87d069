"""What keeps a device from its server is said in one line that can be acted on: with real sockets and certificates."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from clients.server_check import parse_address, server_trouble
from neuroflux_fl.errors import UsageError
from server.certificates import create_certificates

Serve = Callable[[Path | None], int]


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certs") / "good"
    create_certificates(folder, ["fleet.example.org"])
    return folder


@pytest.fixture
def serve() -> Iterator[Serve]:
    listeners: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def start(folder: Path | None) -> int:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)
        thread = threading.Thread(target=_answer, args=(listener, folder))
        threads.append(thread)
        thread.start()
        port: int = listener.getsockname()[1]
        return port

    yield start
    for listener in listeners:
        # Closing alone would leave the thread in accept.
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
    for thread in threads:
        thread.join()


def _answer(listener: socket.socket, folder: Path | None) -> None:
    context = None
    if folder is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "server.crt", folder / "server.key")
    with suppress(OSError):
        while True:
            connection, _ = listener.accept()
            with connection, suppress(OSError):
                if context is None:
                    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                else:
                    context.wrap_socket(connection, server_side=True).close()


def test_all_is_well(serve: Serve, certs: Path) -> None:
    port = serve(certs)

    assert server_trouble(f"127.0.0.1:{port}", certs / "ca.crt") is None
    assert server_trouble(f"localhost:{port}", certs / "ca.crt") is None
    assert server_trouble(f"localhost:{port}", None) is None


def test_nobody_listens(certs: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

    assert "cannot be reached (Connection refused)" in str(server_trouble(f"127.0.0.1:{port}", certs / "ca.crt"))


def test_a_name_that_nobody_knows() -> None:
    assert "no address is known for the name nowhere.invalid" in str(server_trouble("nowhere.invalid:1", None))


def test_another_authority(serve: Serve, certs: Path, tmp_path: Path) -> None:
    create_certificates(tmp_path / "other", ["fleet.example.org"])
    port = serve(tmp_path / "other")

    assert "not from the authority in the bundle" in str(server_trouble(f"127.0.0.1:{port}", certs / "ca.crt"))


def test_another_name(serve: Serve, certs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    port = serve(certs)
    connect = socket.create_connection
    monkeypatch.setattr(socket, "create_connection", lambda address, **more: connect(("127.0.0.1", address[1]), **more))

    trouble = str(server_trouble(f"other.example.org:{port}", certs / "ca.crt"))

    assert "not for other.example.org" in trouble
    assert "--renew --host other.example.org" in trouble


def test_a_certificate_that_has_expired(serve: Serve, tmp_path: Path) -> None:
    folder = tmp_path / "old"
    create_certificates(folder, ["fleet.example.org"], days=10, now=datetime.now(UTC) - timedelta(days=20))

    assert "is not valid now" in str(server_trouble(f"127.0.0.1:{serve(folder)}", folder / "ca.crt"))


def test_a_server_without_tls(serve: Serve, certs: Path) -> None:
    assert "does not speak TLS" in str(server_trouble(f"127.0.0.1:{serve(None)}", certs / "ca.crt"))


@pytest.mark.parametrize("content", [None, "nonsense"])
def test_an_unusable_root_certificate(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "ca.crt"
    if content is not None:
        path.write_text(content)

    assert f"certificate {path} cannot be read" in str(server_trouble("127.0.0.1:1", path))


@pytest.mark.parametrize(
    ("text", "parsed"),
    [("a.example:8443", ("a.example", 8443)), ("[::1]:80", ("::1", 80)), ("10.0.0.1:1", ("10.0.0.1", 1))],
)
def test_addresses(text: str, parsed: tuple[str, int]) -> None:
    assert parse_address(text) == parsed


@pytest.mark.parametrize(
    "text", ["", "host", "host:", ":80", "::1:80", "host:http", "https://host:1", "h:0", "h:65536"]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(UsageError, match=r"is not HOST:PORT|ports are"):
        parse_address(text)
