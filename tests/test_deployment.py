"""The whole thing on one machine: TLS, enrolled devices, real Flower processes, from the first command to the last."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SETTINGS = [
    "--width", "0.05", "--rounds", "2", "--local-epochs", "1", "--min-nodes", "2",
    "--set", "train-limit=200", "--set", "views=1", "--set", "stage-units=8", "--set", "poll-seconds=1",
]  # fmt: skip


class Commands:
    """Starts ``neuroflux-fl`` in one folder, and ends all that is left of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = os.environ | {
            "XDG_STATE_HOME": str(folder / "xdg"), "OMP_NUM_THREADS": "1", "NEUROFLUX_TEST": str(folder),
        }  # fmt: skip
        self.started: list[subprocess.Popen[bytes]] = []

    def run(self, *arguments: str) -> str:
        command = [sys.executable, "-m", "neuroflux_fl", *arguments]
        return subprocess.run(
            command, cwd=self.folder, env=self.environment, check=True, timeout=120, capture_output=True, text=True
        ).stdout

    def start(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "neuroflux_fl", *arguments]
        with self.log(name, "out").open("wb") as out, self.log(name, "err").open("wb") as err:
            process = subprocess.Popen(command, cwd=self.folder, env=self.environment, stdout=out, stderr=err)
        self.started.append(process)
        return process

    def log(self, name: str, stream: str) -> Path:
        return self.folder / f"{name}.{stream}"

    def wait_for(self, name: str, text: str) -> None:
        wait_until(lambda: text in self.log(name, "err").read_text(), lambda: self.log(name, "err").read_text())

    def left(self) -> list[int]:
        """Processes that were started here, directly or not."""
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if f"NEUROFLUX_TEST={self.folder}".encode() in path.read_bytes().split(b"\0"):
                    found.append(int(path.parent.name))
            except OSError:
                continue
        return found


def free_port_with_next() -> int:
    """A port that is free and so is the one after it, where the gateway listens."""
    while True:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = int(listener.getsockname()[1])
            with suppress(OSError, OverflowError), socket.create_server(("127.0.0.1", port + 1)):
                return port


def metrics(port: int) -> str:
    """The gateway's page; nothing while there is none."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            return str(answer.read().decode())
    except OSError:
        return ""


def wait_until(condition: Callable[[], bool], describe: Callable[[], str], seconds: float = 240.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, describe()
        time.sleep(0.2)


@pytest.fixture
def commands(tmp_path: Path) -> Iterator[Commands]:
    made = Commands(tmp_path)
    yield made
    for process in made.started:
        process.kill()
        process.wait()
    for process_id in made.left():
        os.kill(process_id, signal.SIGKILL)


def test_a_fleet_with_tls_from_certificates_to_results(commands: Commands) -> None:
    port, metrics_port = free_port_with_next(), free_port_with_next()
    commands.run("certs", "certs", "--host", "localhost")
    address = f"localhost:{port}"

    server = commands.start(
        "server", "server", "--state", "state", "--port", str(port), "--metrics-port", str(metrics_port),
        "--certs", "certs", *SETTINGS, "--json",
    )  # fmt: skip
    commands.wait_for("server", "waiting for devices: 0 of 2 connected")
    clients = []
    for number in range(2):
        commands.run("enroll", f"device-{number}", "--state", "state", "--out", f"bundle-{number}")
        clients.append(
            commands.start(
                f"client-{number}", "client", "--server", address, "--bundle", f"bundle-{number}", "--data", "digits",
                "--partition-id", str(number), "--partitions", "2", "--budget", "16MiB", "--state", f"device-{number}",
                "--threads", "1",
            )
        )  # fmt: skip
    shown: set[str] = set()

    def ended() -> bool:
        shown.update(re.findall(r'device_samples_total{device="(.*?)",device_class', metrics(metrics_port)))
        return server.poll() is not None

    wait_until(ended, lambda: commands.log("server", "err").read_text())

    assert shown == {"device-0", "device-1"}
    assert server.returncode == 0, commands.log("server", "err").read_text()
    summary = json.loads(commands.log("server", "out").read_text())
    assert [record["contributors"] for record in summary["rounds"]] == [{str(unit): 2 for unit in range(8)}] * 2
    assert {device["name"] for device in summary["devices"]} == {"device-0", "device-1"}
    assert summary["chosen_exit"] is not None
    assert (commands.folder / "state" / "out" / "exit").is_dir()
    for number, client in enumerate(clients):
        assert f"Connected to {address} as node" in commands.log(f"client-{number}", "err").read_text()
        client.send_signal(signal.SIGTERM)
    assert [client.wait(60) for client in clients] == [0, 0]
    assert commands.left() == []
    again = json.loads(commands.run("server", "--state", "state", "--certs", "certs", "--json"))
    assert again == summary
