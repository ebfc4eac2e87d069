"""The telemetry gateway, a process beside the SuperLink: takes devices' reports, shows metrics of the whole fleet.

``python -m server.telemetry_gateway --help``. Whatever it cannot read or write it notes and does without.
"""

from __future__ import annotations

import asyncio
import json
import resource
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import grpc  # type: ignore[import-untyped]
from grpc import aio

from neuroflux_fl.errors import NeurofluxError, StorageError, UsageError
from neuroflux_fl.exposition import Collected, exposition, make_registry
from neuroflux_fl.metrics import Sample
from neuroflux_fl.metrics_http import JSON_TYPE, METRICS_TYPE, serve_pages
from neuroflux_fl.output_folder import write_text
from server.device_registry import names_by_node
from server.fleet_samples import fleet_samples
from server.gateway_settings import GatewaySettings, parse_gateway_command
from server.run_folder import read_run_folder
from server.scrape_targets import scrape_targets
from server.state_folder import ServerState
from server.telemetry_proof import Door, EnrolledOnly, Everyone
from server.telemetry_store import StoreLimits, TelemetryStore
from server.telemetry_streams import SERVER_OPTIONS, StreamLimits, TelemetryStreams

_GRACE_SECONDS = 0.5
_MOST_FILES = 65_536


class Notes:
    """Prints what happens, once each: a log is to last for weeks."""

    def __init__(self, show: Callable[[str], None]) -> None:
        """Nothing is noted yet; ``show`` prints a line."""
        self._show = show
        self._last: dict[str, str] = {}

    def about(self, what: str, text: str) -> None:
        """Note ``text``, unless it is what was last noted about ``what``; empty text says that all is well again."""
        if self._last.get(what, "") == text:
            return
        self._last[what] = text
        self._show(text or f"{what}: well again.")


class GatewayPages:
    """What Prometheus asks for. Each page is made anew, from what is known then, in the thread that asks."""

    def __init__(
        self,
        state: ServerState,
        settings: GatewaySettings,
        store: TelemetryStore,
        streams: TelemetryStreams,
        notes: Notes,
    ) -> None:
        """Nothing is read yet."""
        self._state = state
        self._settings = settings
        self._store = store
        self._streams = streams
        self._notes = notes
        self._registry = make_registry(self._run_samples, self._gateway_samples)

    def metrics(self) -> bytes:
        """``/metrics``: of the run as the server's files tell it, of the devices that push, and of the gateway."""
        return exposition(self._registry)

    def targets(self) -> bytes:
        """``/targets``: the devices that can be scraped, for Prometheus' HTTP service discovery."""
        try:
            run = read_run_folder(self._state.out, answers=False)
            names = names_by_node(self._state.devices_file)
        except StorageError as error:
            self._notes.about("Targets", self._unless_unborn(error))
            return b"[]"
        self._notes.about("Targets", "")
        devices = () if run.state is None else run.state.devices
        return json.dumps(scrape_targets(devices, names, most_devices=self._settings.most_devices)).encode()

    def _gateway_samples(self) -> Iterator[Sample]:
        yield from self._store.samples(self._settings.run)
        yield from self._streams.samples()

    def _run_samples(self) -> list[Collected]:
        try:
            found = list(fleet_samples(read_run_folder(self._state.out, answers=False)))
        except Exception as error:  # The devices' metrics must not go because the run's files are damaged.
            self._notes.about("Run", self._unless_unborn(error))
            return []
        self._notes.about("Run", "")
        return found

    def _unless_unborn(self, error: Exception) -> str:
        """Empty while there is no run yet, which is no news."""
        if not any((self._state.out / name).exists() for name in ("setting.json", "status.json")):
            return ""
        return str(error) if isinstance(error, NeurofluxError) else f"{type(error).__name__}: {error}"


def make_door(state: ServerState, settings: GatewaySettings, notes: Notes) -> Door:
    """Who may report: with TLS the enrolled devices, without it everyone who can connect."""
    if settings.endpoint.certificates is None:
        return Everyone()
    return EnrolledOnly(state.devices_file, lambda text: notes.about("Registry", text))


async def serve(state: ServerState, settings: GatewaySettings, notes: Notes, stop: asyncio.Event) -> None:
    """Run the gateway until ``stop``.

    Raises:
        UsageError: a port cannot be opened.
        StorageError: a certificate is missing or of no use.
    """
    store = TelemetryStore(StoreLimits(most_devices=settings.most_devices, stale_seconds=settings.stale_seconds))
    door = make_door(state, settings, notes)
    limits = StreamLimits(
        interval_seconds=settings.interval_seconds,
        most_streams=settings.most_streams,
        silence_seconds=settings.stale_seconds,
    )
    streams = TelemetryStreams(store, door, limits)
    pages = GatewayPages(state, settings, store, streams, notes)
    server = aio.server(options=SERVER_OPTIONS)
    server.add_generic_rpc_handlers((streams.rpc_handler(),))
    _listen(server, settings)
    served = {"/metrics": (METRICS_TYPE, pages.metrics), "/targets": (JSON_TYPE, pages.targets)}
    with serve_pages(served, host=settings.metrics_host, port=settings.metrics_port):
        await server.start()
        notes.about(
            "Gateway",
            f"Reports come to {settings.endpoint.local_address}; see /metrics and /targets on "
            f"{settings.metrics_host} port {settings.metrics_port}.",
        )
        try:
            while not stop.is_set():
                with suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), settings.interval_seconds)
                for name in store.names():
                    if not door.knows(name):
                        store.forget(name)
                # In a thread: a full disk may be slow to say so, and devices are waiting.
                await asyncio.to_thread(_write_snapshot, store, state.telemetry_file, notes)
        finally:
            await server.stop(_GRACE_SECONDS)


def _listen(server: aio.Server, settings: GatewaySettings) -> None:
    endpoint = settings.endpoint
    address = f"[{endpoint.host}]:{endpoint.port}" if ":" in endpoint.host else f"{endpoint.host}:{endpoint.port}"
    try:
        if endpoint.certificates is None:
            server.add_insecure_port(address)
            return
        key, certificate = (Path(endpoint.certificate(name)).read_bytes() for name in ("server.key", "server.crt"))
        server.add_secure_port(address, grpc.ssl_server_credentials([(key, certificate)]))
    except OSError as error:
        raise StorageError(f"Certificates in {endpoint.certificates} cannot be read: {error.strerror}.") from error
    except RuntimeError as error:
        raise UsageError(
            f"Telemetry port {endpoint.port} of {endpoint.host} cannot be opened: give another --telemetry-port."
        ) from error


def _write_snapshot(store: TelemetryStore, path: Path, notes: Notes) -> None:
    if not path.parent.is_dir():
        return  # no run yet
    try:
        write_text(path, json.dumps(store.snapshot(), separators=(",", ":")))
    except StorageError as error:
        notes.about("Snapshot", str(error))
    else:
        notes.about("Snapshot", "")


def _allow_many_connections() -> None:
    """Each device is an open file, and many systems allow 1,024 where nobody asks for more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def _serve_until_told(state: ServerState, settings: GatewaySettings) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await serve(state, settings, Notes(lambda text: print(text, flush=True)), stop)


def main(arguments: Sequence[str]) -> int:
    """Run the gateway until a signal comes; returns the exit code."""
    try:
        state, settings = parse_gateway_command(arguments)
        _allow_many_connections()
        asyncio.run(_serve_until_told(state, settings))
    except NeurofluxError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
