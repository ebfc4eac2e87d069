"""Pages are served as long as their block lasts; what goes wrong in one request is that request's alone."""

from __future__ import annotations

import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable

import pytest

from neuroflux_fl.errors import UsageError
from neuroflux_fl.metrics_http import JSON_TYPE, METRICS_TYPE, serve_pages

HOST = "127.0.0.1"


def get(port: int, path: str, method: str = "GET") -> tuple[int, str, bytes]:
    request = urllib.request.Request(f"http://{HOST}:{port}{path}", method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, "", error.read()


def failing() -> bytes:
    raise OSError("the disk is gone")


PAGES: dict[str, tuple[str, Callable[[], bytes]]] = {
    "/metrics": (METRICS_TYPE, lambda: b"a 1\n"),
    "/targets": (JSON_TYPE, lambda: b"[]"),
    "/failing": (JSON_TYPE, failing),
}


def test_pages_have_their_content_and_type() -> None:
    with serve_pages(PAGES, host=HOST, port=0) as port:
        assert get(port, "/metrics") == (200, METRICS_TYPE, b"a 1\n")
        assert get(port, "/metrics?collect=all") == (200, METRICS_TYPE, b"a 1\n")
        assert get(port, "/targets") == (200, JSON_TYPE, b"[]")


def test_nothing_else_is_served() -> None:
    with serve_pages(PAGES, host=HOST, port=0) as port:
        for path in ("/", "/metrics/", "/../etc/passwd"):
            assert get(port, path)[0] == 404
        assert get(port, "/metrics", method="POST")[0] == 501


def test_page_that_fails_is_an_error_for_whoever_asked_and_the_others_are_served() -> None:
    with serve_pages(PAGES, host=HOST, port=0) as port:
        status, _, content = get(port, "/failing")

        assert status == 500
        assert b"the disk is gone" in content
        assert get(port, "/metrics")[0] == 200


def test_slow_page_holds_nobody_up_and_neither_do_those_who_hang_up() -> None:
    entered, go_on = threading.Event(), threading.Event()

    def slow() -> bytes:
        entered.set()
        go_on.wait(20)
        return b"x" * 10**7

    with serve_pages({**PAGES, "/slow": (METRICS_TYPE, slow)}, host=HOST, port=0) as port:
        with socket.create_connection((HOST, port), timeout=10) as leaving:
            leaving.sendall(b"GET /slow HTTP/1.0\r\n\r\n")
            assert entered.wait(10)
            assert get(port, "/metrics")[0] == 200
        with socket.create_connection((HOST, port), timeout=10):  # connects and says nothing
            go_on.set()
            assert get(port, "/metrics")[0] == 200


def test_port_is_closed_when_the_block_ends() -> None:
    with serve_pages(PAGES, host=HOST, port=0) as port:
        pass

    with pytest.raises(OSError, match="refused"):
        socket.create_connection((HOST, port), timeout=10)


def test_port_that_is_taken_or_impossible_is_a_usage_error() -> None:
    with serve_pages(PAGES, host=HOST, port=0) as port:
        for wrong in (port, 70000):
            with (
                pytest.raises(UsageError, match=f"Metrics port {wrong} of {HOST} cannot be opened"),
                serve_pages(PAGES, host=HOST, port=wrong),
            ):
                pass
