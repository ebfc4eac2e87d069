"""The telemetry gateway as a child of the server: kept running, and never in the way of training."""

from __future__ import annotations

from neuroflux_fl.errors import StorageError
from neuroflux_fl.supervision import Child, Watcher
from server.gateway_settings import GatewaySettings, gateway_command
from server.listening import require_free_port
from server.state_folder import ServerState


class GatewayChild:
    """Started at the first tick, and again whenever it ends."""

    def __init__(self, state: ServerState, settings: GatewaySettings, watcher: Watcher) -> None:
        """Nothing is started yet."""
        self._settings = settings
        self._watcher = watcher
        self._given_up = False
        self._child = Child(
            "Telemetry gateway",
            lambda: gateway_command(state, settings),
            log=state.logs / "telemetry.log",
            environment=state.flower_environment(),
        )

    def require_free_ports(self) -> None:
        """Raise UsageError where it could not listen: a person is there to choose another port now, and not later."""
        endpoint = self._settings.endpoint
        require_free_port(endpoint.host, endpoint.port, "--telemetry-port")
        require_free_port(self._settings.metrics_host, self._settings.metrics_port, "--metrics-port")

    def tick(self) -> None:
        """Start it if it is time, and tell of its end; where it cannot even be started, tell that and leave it."""
        if self._given_up:
            return
        self._child.start()
        try:
            ended = self._child.tick()
        except StorageError as error:
            self._given_up = True
            self._watcher.note(f"{error} The run goes on without telemetry.")
            return
        if ended is not None and ended.noteworthy:
            last = next(reversed(self._child.recent_output().strip().splitlines()), "it printed nothing")
            self._watcher.note(f"{ended.describe()} Last line of {self._child.log.name}: {last.strip()}")

    def stop(self) -> None:
        """End it."""
        self._child.stop()
