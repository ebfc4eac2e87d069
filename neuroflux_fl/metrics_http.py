"""A small HTTP server for what Prometheus asks: metrics, and where else there are some."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from neuroflux_fl.errors import UsageError

Page = tuple[str, Callable[[], bytes]]
"""Content type, and what makes the content; called for each request, in a thread of its own."""
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
JSON_TYPE = "application/json"
_REQUEST_SECONDS = 10.0


@contextmanager
def serve_pages(pages: Mapping[str, Page], *, host: str, port: int) -> Iterator[int]:
    """Answer GET requests for these paths while the block lasts; the value is the port, chosen where 0 was given.

    A page that fails is a 500 for whoever asked, and nothing else.

    Raises:
        UsageError: the port cannot be opened.
    """

    class Handler(BaseHTTPRequestHandler):
        timeout = _REQUEST_SECONDS  # an idle connection must not hold a thread for ever

        def do_GET(self) -> None:
            page = pages.get(self.path.partition("?")[0])
            if page is None:
                self.send_error(404)
                return
            content_type, make = page
            try:
                content = make()
            except Exception as error:
                self.send_error(500, explain=f"{type(error).__name__}: {error}")
                return
            self.send_response(200)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            """A scrape every few seconds is no news."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            """Whoever hung up in the middle has lost the answer, and nobody else anything."""

    try:
        server = Server((host, port), Handler)
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else "ports are 0 to 65535"
        raise UsageError(f"Metrics port {port} of {host} cannot be opened: {reason}. Choose a free port.") from error
    thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
