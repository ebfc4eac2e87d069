"""A device's own report, put together from what its supervisor knows, and the roads that it takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from clients.agent_client import AgentStatus
from clients.client_commands import ClientOptions
from clients.sensors import MachineSensors
from clients.telemetry_push import TelemetryPush
from clients.telemetry_stream import Gateway
from neuroflux_fl.device_report import DeviceReport, MachineReading
from neuroflux_fl.device_samples import device_samples
from neuroflux_fl.exposition import exposition, make_registry
from neuroflux_fl.metrics import Sample
from neuroflux_fl.metrics_http import METRICS_TYPE, serve_pages
from neuroflux_fl.sizes import parse_bytes

REPORT_SECONDS = 5.0
"""Between two reports, until a gateway says otherwise, and between two looks at the agent."""


class DeviceTelemetry:
    """The supervisor tells it how things stand; whoever asks is answered from other threads."""

    def __init__(self, options: ClientOptions) -> None:
        """Nothing is opened yet."""
        self._options = options
        self._class = str(options.node_config.get("device-class", ""))
        budget = options.node_config.get("memory-budget")
        self._budget_bytes = None if budget is None else parse_bytes(str(budget))
        self._sensors: MachineSensors | None = None
        self._push: TelemetryPush | None = None
        self._connected = False
        self._agent_restarts = 0
        self._status: AgentStatus | None = None
        self._run = ""

    @property
    def look_seconds(self) -> float | None:
        """How often the agent is to be asked for its readings; None where nobody wants them."""
        if not self._options.telemetry.wanted:
            return None
        return REPORT_SECONDS if self._push is None else self._push.interval_seconds

    @contextmanager
    def running(self) -> Iterator[None]:
        """Serve and push while the ``with`` lasts.

        Raises:
            UsageError: the metrics port cannot be opened.
            DependencyError: prometheus-client is not installed, and ``/metrics`` is to be served.
        """
        telemetry = self._options.telemetry
        with ExitStack() as stack:
            if telemetry.wanted:
                self._sensors = MachineSensors(self._options.state.root)
            if telemetry.metrics_port:
                registry = make_registry(self.samples)
                pages = {"/metrics": (METRICS_TYPE, lambda: exposition(registry))}
                stack.enter_context(serve_pages(pages, host=telemetry.metrics_host, port=telemetry.metrics_port))
            if telemetry.gateways:
                self._push = TelemetryPush(self._gateway(), self.report, interval_seconds=REPORT_SECONDS)
                stack.callback(self._push.stop)
                self._push.start()
            yield

    def tell(self, *, connected: bool, agent_restarts: int, status: AgentStatus | None) -> None:
        """How things stand; ``status`` is None while no agent is known to live."""
        self._connected = connected
        self._agent_restarts = agent_restarts
        self._status = status
        if status is not None and status.training is not None and status.training.run:
            self._run = status.training.run

    def news(self) -> list[str]:
        """Lines for people since the last call."""
        return [] if self._push is None else self._push.news()

    def report(self) -> DeviceReport:
        """Of this moment; for any thread."""
        status = self._status
        resident = status.resident_bytes or None if status is not None else None
        return DeviceReport(
            device_class=self._class,
            budget_bytes=self._budget_bytes,
            connected=self._connected,
            agent_restarts=self._agent_restarts,
            machine=MachineReading() if self._sensors is None else self._sensors.read(resident_bytes=resident),
            training=None if status is None else status.training,
        )

    def samples(self) -> Iterator[Sample]:
        """The report as samples, labelled as this device's; the run is the last one that was worked for."""
        return device_samples(
            self.report(), run=self._run, device=self._options.telemetry.name, device_class=self._class
        )

    def _gateway(self) -> Gateway:
        bundle, telemetry = self._options.bundle, self._options.telemetry
        return Gateway(
            addresses=telemetry.gateways,
            root_certificate=None if bundle is None else bundle.root_certificate,
            key=None if bundle is None else bundle.key,
            name=telemetry.name,
        )
