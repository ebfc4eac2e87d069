"""A Prometheus of one's own on a free port of the loopback, with the configuration of ``prometheus/``."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CONFIGURATION = Path(__file__).resolve().parent / "prometheus"
_GATEWAY = "127.0.0.1:9464"
"""Where prometheus.yml expects the gateway."""
_START_SECONDS = 60.0


class PrometheusServer:
    """Runs while the block lasts.

    Args:
        folder: an empty one, for configuration and data.
        gateway: ``host:port`` of the gateway's pages.

    Raises:
        FileNotFoundError: Prometheus is not installed.
        TimeoutError: it did not become ready.
    """

    def __init__(self, folder: Path, gateway: str) -> None:
        self.configuration = folder / "prometheus.yml"
        self._folder = folder
        self._gateway = gateway
        self._port = free_port()

    def __enter__(self) -> PrometheusServer:
        text = (CONFIGURATION / "prometheus.yml").read_text(encoding="utf-8")
        self.configuration.write_text(text.replace(_GATEWAY, self._gateway), encoding="utf-8")
        shutil.copy(CONFIGURATION / "rules.yml", self._folder)
        command = ["prometheus", f"--config.file={self.configuration}", f"--storage.tsdb.path={self._folder / 'data'}"]
        with (self._folder / "prometheus.log").open("wb") as log:
            self._process = subprocess.Popen(
                [*command, f"--web.listen-address=127.0.0.1:{self._port}"], stdout=log, stderr=subprocess.STDOUT
            )
        try:
            self._await_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def ask(self, path: str, parameters: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Answer of its API, an error's as well: ``ask("query", {"query": "up"})``."""
        url = f"http://127.0.0.1:{self._port}/api/v1/{path}?{urllib.parse.urlencode(parameters or {})}"
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                found: dict[str, Any] = json.load(answer)
        except urllib.error.HTTPError as error:
            found = json.load(error)
        return found

    def value(self, expression: str) -> float | None:
        """The first value of an instant query; None where there is none."""
        result = self.ask("query", {"query": expression})["data"]["result"]
        return float(result[0]["value"][1]) if result else None

    def _await_ready(self) -> None:
        end = time.monotonic() + _START_SECONDS
        while time.monotonic() < end and self._process.poll() is None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/-/ready", timeout=5):
                    return
            except OSError:
                time.sleep(0.2)
        raise TimeoutError(f"Prometheus is not ready: see {self._folder / 'prometheus.log'}.")


def free_port() -> int:
    """A port of the loopback that nobody uses."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
