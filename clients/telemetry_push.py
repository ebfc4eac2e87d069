"""Pushes a device's reports to the telemetry gateway of its server, from threads that nothing waits for."""

from __future__ import annotations

import random
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable

from clients.report_buffer import ReportBuffer
from clients.telemetry_stream import Gateway, StreamFailedError, TelemetryStream
from neuroflux_fl.backoff import Backoff
from neuroflux_fl.device_report import DeviceReport
from neuroflux_fl.wire.telemetry import report_to_proto

KEPT_REPORTS = 720
"""An hour of them, at 5 s."""
_PAUSES = Backoff(first_seconds=2.0, largest_seconds=60.0, jitter=0.8)
"""Wide, since a gateway that restarts is found by all of its devices at once."""
_PATIENCE_SECONDS = 30.0
"""Silence after which a connection is given up, when an answer is due."""
_LOOK_SECONDS = 0.5
_STOP_SECONDS = 2.0


class TelemetryPush:
    """Makes a report every few seconds and gets it to the gateway, now or once the gateway is back.

    Whatever goes wrong becomes one line of ``news``, once for each reason; nothing is raised and nobody waits.
    """

    def __init__(
        self,
        gateway: Gateway,
        make_report: Callable[[], DeviceReport],
        *,
        kept_reports: int = KEPT_REPORTS,
        interval_seconds: float,
        patience_seconds: float = _PATIENCE_SECONDS,
        pauses: Backoff = _PAUSES,
    ) -> None:
        """Nothing is started yet.

        Args:
            gateway: where to, and as whom.
            make_report: gives the report of this moment; called from a thread of the push's own.
            kept_reports: how many are kept while they cannot be delivered.
            interval_seconds: until a gateway says otherwise.
            patience_seconds: silence after which a connection is given up, when an answer is due.
            pauses: between tries.
        """
        self.interval_seconds = interval_seconds
        self.buffer = ReportBuffer(kept_reports)
        self._gateway = gateway
        self._make_report = make_report
        self._patience_seconds = patience_seconds
        self._pauses = pauses
        self._session = secrets.token_bytes(16)
        self._news: deque[str] = deque(maxlen=100)
        self._told: set[str] = set()
        self._stopping = threading.Event()
        self._stream: TelemetryStream | None = None
        self._threads = [
            threading.Thread(target=target, name=f"telemetry-{name}", daemon=True)
            for name, target in (("reports", self._make_reports), ("stream", self._keep_streaming))
        ]

    def start(self) -> None:
        """Begin; returns at once."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End within two seconds, whatever the network does."""
        self._stopping.set()
        if (stream := self._stream) is not None:
            stream.end()
        deadline = time.monotonic() + _STOP_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def news(self) -> list[str]:
        """Lines for people since the last call."""
        return [self._news.popleft() for _ in range(len(self._news))]

    def _make_reports(self) -> None:
        due = time.monotonic() + self.interval_seconds
        while not self._stopping.wait(max(0.0, min(_LOOK_SECONDS, due - time.monotonic()))):
            if (stream := self._stream) is not None and stream.silent_seconds() > self._patience_seconds:
                stream.end(f"did not answer for {self._patience_seconds:g} s")
            if time.monotonic() < due:
                continue
            due = time.monotonic() + self.interval_seconds
            try:
                report = report_to_proto(self._make_report())
            except Exception as error:  # a sensor's fault, whatever it is, is no reason to end
                self._tell("report", f"A telemetry report could not be made: {type(error).__name__}: {error}")
            else:
                self.buffer.add(report)

    def _keep_streaming(self) -> None:
        addresses, failures = list(self._gateway.addresses), 0
        while not self._stopping.is_set():
            troubles: list[tuple[str, str]] = []
            for address in addresses:
                began = time.monotonic()
                trouble, welcome = self._stream_to(address)
                if self._stopping.is_set():
                    return
                troubles.append((address, trouble))
                if welcome:
                    # This is where the gateway is: it is looked for here first from now on.
                    addresses = [address, *(other for other in addresses if other != address)]
                    troubles = [(address, trouble)]
                    if time.monotonic() - began >= self._pauses.settled_seconds:
                        self._told.clear()
                        failures = 0
                    break
            for address, trouble in troubles:
                key = f"{address} {trouble.partition(':')[0]}"
                self._tell(key, f"Telemetry waits and training goes on: {address}: {trouble}")
            failures += 1
            self._stopping.wait(self._pauses.pause(failures, random.random()))

    def _stream_to(self, address: str) -> tuple[str, bool]:
        """Stream until that ends; returns why it ended, and whether the gateway had let this device in."""
        stream = self._stream = TelemetryStream(address, self._gateway, self.buffer, self._session)
        if self._stopping.is_set():
            return "", False
        try:
            stream.run(self._welcomed)
        except StreamFailedError as error:
            return str(error), stream.welcome
        except Exception as error:  # telemetry may fail in any way, and must not end its thread
            return f"{type(error).__name__}: {error}", stream.welcome
        finally:
            self._stream = None
        return "the gateway has ended the stream", stream.welcome

    def _welcomed(self, address: str, interval_seconds: float) -> None:
        self.interval_seconds = interval_seconds
        self._tell("welcome" if not self._told else f"{address} back", f"Telemetry goes to {address}.")

    def _tell(self, key: str, text: str) -> None:
        if key not in self._told:
            self._told.add(key)
            self._news.append(" ".join(text.split()))
