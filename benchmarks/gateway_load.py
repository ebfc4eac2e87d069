"""The telemetry gateway under load: a thousand devices on loopback, with TLS and keys of their own.

Run from the repository's root: ``python -m benchmarks.gateway_load``. The phases: all devices connect and report; the
gateway is killed and comes back; half of the devices lose their power (their processes are frozen: no farewell); the
rest stop. At the end every report of a device that kept its power must have been acknowledged, and none may be counted
as lost.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.gateway_devices import make_report
from benchmarks.report import Worker, describe_setting, print_setting, print_table, write_json
from server.certificates import create_certificates
from server.device_registry import Device, write_registry
from server.gateway_settings import GatewaySettings, gateway_command
from server.node_keys import fingerprint, make_private_key, private_key_file, public_key_line
from server.run_status import RunStatus, write_status
from server.state_folder import ServerState
from server.superlink import Endpoint

_TICKS = os.sysconf("SC_CLK_TCK")


class Gateway:
    """The gateway's process, measured from outside."""

    def __init__(self, folder: Path, settings: GatewaySettings) -> None:
        self._folder = folder
        self.settings = settings
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        with (self._folder / "gateway.log").open("ab") as log:
            command = gateway_command(ServerState(self._folder / "state"), self.settings)
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        end = time.monotonic() + 60
        while self.values() is None:
            if time.monotonic() > end or self._process.poll() is not None:
                raise SystemExit(f"The gateway does not start: {(self._folder / 'gateway.log').read_text()[-500:]}")
            time.sleep(0.2)

    def kill(self) -> None:
        """End it without a chance to say anything."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def cpu_seconds(self) -> float:
        """Of processor time, used since its start."""
        fields = self._stat("stat").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def memory_mib(self) -> float:
        """Resident."""
        line = next(line for line in self._stat("status").splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) / 1024

    def scrape(self) -> tuple[float, int, int]:
        """Seconds, bytes, and series of one scrape."""
        started = time.monotonic()
        page = self._page()
        return time.monotonic() - started, len(page), sum(not line.startswith(b"#") for line in page.splitlines())

    def values(self) -> dict[str, float] | None:
        """Value by series, the class's summed; None while there is no answer."""
        try:
            page = self._page().decode()
        except OSError:
            return None
        found: dict[str, float] = {}
        for line in page.splitlines():
            if not line.startswith("#"):
                series, _, value = line.rpartition(" ")
                name, _, labels = series.partition("{")
                key = name if 'device_class="' in labels else series
                found[key] = found.get(key, 0.0) + float(value)
        return found

    def _page(self) -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.settings.metrics_port}/metrics", timeout=30) as answer:
            content: bytes = answer.read()
            return content

    def _stat(self, name: str) -> str:
        if self._process is None:
            raise SystemExit("The gateway has not been started.")
        return Path(f"/proc/{self._process.pid}/{name}").read_text()


def main() -> None:
    options = _parse()
    setting = describe_setting(
        devices=f"{options.devices} in {options.processes} processes, one TLS connection each, P-384 keys",
        reports=f"every {options.interval:g} s, {make_report(0, 1000).ByteSize()} bytes each",
        labels=f"{options.max_devices} devices have some of their own",
        phase_length=f"{options.seconds:g} s; stale after {options.stale_after:g} s",
    )
    print_setting(setting)
    with tempfile.TemporaryDirectory(prefix="neuroflux-benchmark-") as folder, ExitStack() as stack:
        root = Path(folder)
        gateway = Gateway(root, _prepare(root, options))
        gateway.start()
        stack.callback(gateway.kill)
        workers = [stack.enter_context(Worker("benchmarks.gateway_devices")) for _ in range(options.processes)]
        bench = Benchmark(options, root, gateway, workers)
        with bench.thawed():
            figures = bench.run()
    _print(figures)
    write_json(options.json, {"setting": setting, **figures})
    if figures["lost"] or figures["unacknowledged"]:
        raise SystemExit("Reports were lost.")


class Benchmark:
    """The phases, one after the other."""

    def __init__(self, options: argparse.Namespace, root: Path, gateway: Gateway, workers: list[Worker]) -> None:
        self._options = options
        self._root = root
        self._gateway = gateway
        self._workers = workers
        self._phases: list[dict[str, Any]] = []

    def run(self) -> dict[str, Any]:
        """All of them; returns the figures."""
        options, gateway = self._options, self._gateway
        self._measure("idle", min(10.0, options.seconds))
        started = time.monotonic()
        self._start_devices()
        self._await_streams(options.devices)
        connecting = time.monotonic() - started
        self._ask_all("forget")
        self._measure("all report", options.seconds)
        before = gateway.values() or {}

        gateway.kill()
        time.sleep(options.outage)
        gateway.start()
        started = time.monotonic()
        self._await_streams(options.devices)
        returning = time.monotonic() - started
        self._measure("gateway came back", options.seconds)

        half = self._workers[: len(self._workers) // 2]
        for worker in half:
            worker.ask(do="freeze")
        time.sleep(options.stale_after + options.interval + 2)
        self._measure("half have vanished", options.seconds)
        left = self._workers[len(half) :]
        self._ask_all("quiet", left)
        time.sleep(2.0)
        counts = self._ask_all("count", left)
        last = gateway.values() or {}
        return {
            "phases": self._phases,
            "seconds until all were connected": connecting,
            "seconds until all were back": returning,
            "reporting at the end": last["neuroflux_devices_reporting"],
            "streams at the end": last["neuroflux_telemetry_streams"],
            "lost": before["neuroflux_telemetry_reports_lost_total"] + last["neuroflux_telemetry_reports_lost_total"],
            "made": sum(count["made"] for count in counts),
            "unacknowledged": sum(count["made"] - count["acknowledged"] for count in counts),
            "repeated": last['neuroflux_telemetry_reports_total{outcome="repeated"}'],
        }

    @contextmanager
    def thawed(self) -> Iterator[None]:
        """Wakes frozen workers at the end, so that they can end."""
        try:
            yield
        finally:
            for worker in self._workers:
                worker.signal(signal.SIGCONT)

    def _start_devices(self) -> None:
        options, count = self._options, len(self._workers)
        for index, worker in enumerate(self._workers):
            worker.ask(
                do="start", folder=str(self._root), address=f"localhost:{self._gateway.settings.endpoint.port}",
                first=options.devices * index // count, last=options.devices * (index + 1) // count,
                interval=options.interval, ramp=options.ramp,
            )  # fmt: skip

    def _await_streams(self, wanted: int) -> None:
        end = time.monotonic() + 300
        while ((self._gateway.values() or {}).get("neuroflux_telemetry_streams", 0)) < wanted:
            if time.monotonic() > end:
                raise SystemExit(f"Not all {wanted} devices have connected in 5 minutes.")
            time.sleep(0.5)

    def _ask_all(self, what: str, workers: list[Worker] | None = None) -> list[dict[str, Any]]:
        return [worker.ask(do=what) for worker in (self._workers if workers is None else workers)]

    def _measure(self, name: str, seconds: float) -> None:
        gateway = self._gateway
        values = gateway.values() or {}
        accepted = values['neuroflux_telemetry_reports_total{outcome="accepted"}']
        cpu, started, scrapes, scraping = gateway.cpu_seconds(), time.monotonic(), [], 0.0
        while time.monotonic() - started < seconds:
            time.sleep(min(self._options.scrape_every, seconds))
            before = gateway.cpu_seconds()
            scrapes.append(gateway.scrape())
            scraping += gateway.cpu_seconds() - before
        wall = time.monotonic() - started
        values = gateway.values() or {}
        self._phases.append(
            {
                "phase": name,
                "cpu_percent": 100 * (gateway.cpu_seconds() - cpu) / wall,
                "cpu_percent_of_scrapes": 100 * scraping / wall,
                "memory_mib": gateway.memory_mib(),
                "reports_per_second": (values['neuroflux_telemetry_reports_total{outcome="accepted"}'] - accepted)
                / wall,
                "reporting": values.get("neuroflux_devices_reporting", 0.0),
                "scrape_seconds": sorted(scrape[0] for scrape in scrapes)[len(scrapes) // 2],
                "slowest_scrape_seconds": max(scrape[0] for scrape in scrapes),
                "scrape_bytes": scrapes[-1][1],
                "series": scrapes[-1][2],
                "latency_seconds": self._latency() if name == "all report" else None,
            }
        )

    def _latency(self) -> dict[str, float]:
        """From making a report to hearing that it came."""
        found = sorted(latency for count in self._ask_all("count") for latency in count["latencies"])
        return {f"{share:g} %": found[min(len(found) - 1, int(share / 100 * len(found)))] for share in (50, 99, 100)}


def _prepare(root: Path, options: argparse.Namespace) -> GatewaySettings:
    """Certificates, keys, a registry, and the folder of a run that has begun."""
    create_certificates(root / "certs", ["localhost"])
    state = ServerState(root / "state")
    for folder in (state.root, state.out, root / "keys"):
        folder.mkdir()
    write_status(state.out, RunStatus(phase="training"))
    devices = {}
    for number in range(options.devices):
        key = make_private_key()
        public = key.public_key()
        (root / "keys" / str(number)).write_bytes(private_key_file(key))
        name = f"device-{number:04}"
        devices[name] = Device(
            name=name, node_id=number + 1, fingerprint=fingerprint(public), public_key=public_key_line(public),
            enrolled_at="",
        )  # fmt: skip
    write_registry(state.devices_file, devices)
    return GatewaySettings(
        endpoint=Endpoint(host="127.0.0.1", port=_free_port(), certificates=root / "certs"),
        metrics_port=_free_port(), run="load", most_devices=options.max_devices, stale_seconds=options.stale_after,
        interval_seconds=options.interval, most_streams=max(2000, options.devices),
    )  # fmt: skip


def _print(figures: dict[str, Any]) -> None:
    header = ["phase", "CPU", "of it scrapes", "memory", "reports", "reporting", "scrape", "slowest", "page", "series"]
    print_table(
        header,
        [
            [
                phase["phase"], f"{phase['cpu_percent']:.1f} %", f"{phase['cpu_percent_of_scrapes']:.1f} %",
                f"{phase['memory_mib']:.0f} MiB", f"{phase['reports_per_second']:.1f}/s", f"{phase['reporting']:.0f}",
                f"{1000 * phase['scrape_seconds']:.0f} ms", f"{1000 * phase['slowest_scrape_seconds']:.0f} ms",
                f"{phase['scrape_bytes'] / 1024:.0f} KiB", f"{phase['series']:,}",
            ]
            for phase in figures["phases"]
        ],
    )  # fmt: skip
    latency = next(phase["latency_seconds"] for phase in figures["phases"] if phase["latency_seconds"])
    print("From making a report to its acknowledgement:", end=" ")
    print(", ".join(f"{share} within {1000 * seconds:.0f} ms" for share, seconds in latency.items()))
    for name in (key for key in figures if key != "phases"):
        print(f"{name}: {figures[name]:.1f}" if "seconds" in name else f"{name}: {figures[name]:.0f}")
    print("CPU is of one core. Reports made and unacknowledged are those of the devices that kept their power.")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=1000)
    parser.add_argument("--processes", type=int, default=4, help="that the devices are spread over")
    parser.add_argument("--interval", type=float, default=5.0, help="seconds between a device's reports")
    parser.add_argument("--max-devices", type=int, default=300, help="devices with labels of their own")
    parser.add_argument("--stale-after", type=float, default=60.0)
    parser.add_argument("--seconds", type=float, default=120.0, help="length of each phase")
    parser.add_argument("--outage", type=float, default=30.0, help="seconds without a gateway")
    parser.add_argument("--ramp", type=float, default=10.0, help="seconds over which devices connect at first")
    parser.add_argument("--scrape-every", type=float, default=5.0)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    return parser.parse_args()


if __name__ == "__main__":
    main()
