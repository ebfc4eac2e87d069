"""Runs a fleet server for as long as its run takes: its processes, the run, and what ends each of them."""

from __future__ import annotations

import json
import random
import signal
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from neuroflux_fl.backoff import Backoff
from neuroflux_fl.errors import FleetError, StorageError
from neuroflux_fl.output_folder import prepare_folder, write_text
from neuroflux_fl.stop_request import StopRequest
from neuroflux_fl.supervision import Child, Watcher, stop_all
from neuroflux_fl.toml_text import toml_lines
from server.flower_cli import FlowerRefusal
from server.flower_runs import (
    COMPLETED,
    FlowerRun,
    count_online_nodes,
    list_runs,
    save_run_log,
    stop_unfinished_runs,
    submit_run,
)
from server.gateway_child import GatewayChild
from server.gateway_settings import GatewaySettings
from server.listening import accepts_connections, require_free_port
from server.run_record import RunRecord
from server.state_folder import ServerState
from server.status_view import describe_status, status_key
from server.superlink import Endpoint, superexec_command, superlink_command
from server.superlink_probe import SuperlinkProbe, answers_requests

_UNSTARTABLE = 4
"""Ends of a SuperLink that never answered, after which its server gives up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How often things are looked at, in seconds, and how often they are tried."""

    tick: float = 0.25
    nodes: Backoff = field(default_factory=lambda: Backoff(first_seconds=5.0, largest_seconds=30.0))
    """Between two looks at the devices while too few are connected: each costs a second of a processor, and devices may
    be days in coming."""
    listing: float = 30.0
    """Between two looks at the run's state in Flower, unless its own status says that it has ended."""
    ending: float = 2.0
    """The same once it says so, or its process has gone."""
    probe: float = 15.0
    """Between two questions to the SuperLink whether it is still there."""
    patience: float = 60.0
    """With a SuperLink that lives and does not answer."""
    last_scrape: float = 12.0
    """The gateway outlives its run by this: who scrapes every 5 s must see that it ended, or takes it for lost."""
    most_resumes: int = 5
    """Resumptions of a run without a finished round between them."""
    resumes: Backoff = field(default_factory=lambda: Backoff(first_seconds=2.0, largest_seconds=120.0))


class Launcher:
    """One server on one state folder, which the caller has prepared and locked."""

    def __init__(
        self,
        state: ServerState,
        endpoint: Endpoint,
        record: RunRecord,
        watcher: Watcher,
        pace: Pace | None = None,
        *,
        telemetry: GatewaySettings | None = None,
    ) -> None:
        """Nothing is started yet; without ``telemetry`` no gateway ever is."""
        self._state = state
        self._endpoint = endpoint
        self._record = record
        self._watcher = watcher
        self._pace = pace or Pace()
        environment = state.flower_environment()
        self._superlink = Child(
            "SuperLink",
            lambda: superlink_command(state, endpoint),
            log=state.logs / "superlink.log",
            environment=environment,
            # Its database stands that, and the port must be free for whoever takes this server's place.
            death_signal=signal.SIGKILL,
        )
        self._probe = SuperlinkProbe(
            self._superlink,
            lambda: answers_requests(endpoint),
            every_seconds=self._pace.probe,
            patience_seconds=self._pace.patience,
        )
        self._superexec = Child(
            "SuperExec",
            lambda: superexec_command(state, endpoint),
            log=state.logs / "superexec.log",
            environment=environment,
        )
        self._gateway = None if telemetry is None else GatewayChild(state, telemetry, watcher)

    def run(self, stop: StopRequest) -> dict[str, Any] | None:
        """Start everything, drive the run to its end, and end everything.

        Returns:
            The content of ``run.json``; None when ``stop`` came first.

        Raises:
            FleetError: the SuperLink cannot be started, or the run failed by its own error or again and again.
            UsageError: a port is taken.
            StorageError: the state folder cannot be written.
        """
        require_free_port(self._endpoint.host, self._endpoint.port, "--port or --host")
        if self._gateway is not None:
            self._gateway.require_free_ports()
        try:
            self._superlink.start()
            if not self._await_superlink(stop):
                return None
            self._superexec.start()
            summary = self._drive(stop)
            if summary is not None and self._gateway is not None:
                self._show("the run is complete")
                self._wait(self._pace.last_scrape, stop)
            return summary
        finally:
            # The ServerApp first, while there is still someone to tell that it ends.
            stop_all([self._superexec])
            stop_all([self._superlink])
            if self._gateway is not None:
                self._gateway.stop()

    def _drive(self, stop: StopRequest) -> dict[str, Any] | None:
        failures, rounds_before = 0, -1
        while self._await_nodes(stop):
            run_id = self._submit(stop)
            if run_id is None:
                return None
            run = self._watch(run_id, stop)
            if run is None:
                return None
            log = save_run_log(self._state, run_id)
            if run.status == COMPLETED:
                return self._summary(log)
            self._require_resumable(run, log)
            rounds = self._finished_rounds()
            failures = 1 if rounds > rounds_before else failures + 1
            rounds_before = rounds
            if failures > self._pace.most_resumes:
                raise FleetError(
                    f"The run failed {failures} times without finishing a round, at last with: {_reason(run)}. Log: "
                    f"{log}. Mend the cause and start the server again: it goes on from round {rounds}."
                )
            pause = self._pace.resumes.pause(failures, random.random())
            self._watcher.note(
                f"Run {run_id} was lost ({_reason(run)}); it goes on after round {rounds} in {pause:.0f} s."
            )
            if not self._wait(pause, stop):
                return None
        return None

    def _tick(self) -> None:
        for child in (self._superlink, self._superexec):
            ended = child.tick()
            if ended is not None and ended.noteworthy:
                self._watcher.note(ended.describe())
        killed = self._probe.tick()
        if killed is not None:
            self._watcher.note(killed)
        if self._gateway is not None:
            self._gateway.tick()

    def _wait(self, seconds: float, stop: StopRequest) -> bool:
        """Tick for so long; False when ``stop`` came first."""
        end = time.monotonic() + seconds
        while stop.received is None:
            self._tick()
            if time.monotonic() >= end:
                return True
            time.sleep(self._pace.tick)
        return False

    def _await_superlink(self, stop: StopRequest) -> bool:
        self._show("starting")
        while self._wait(self._pace.tick, stop):
            if accepts_connections(self._endpoint.local_host, self._endpoint.port):
                return True
            if self._superlink.failures >= _UNSTARTABLE:
                last = next(reversed(self._superlink.recent_output().strip().splitlines()), "it printed nothing")
                raise FleetError(f"SuperLink cannot be started: {last.strip()} Log: {self._superlink.log}.")
        return False

    def _await_nodes(self, stop: StopRequest) -> bool:
        """Wait, for days if need be, until enough devices are connected; False when ``stop`` came first."""
        wanted = int(self._record.config["min-nodes"])
        before, looks = -1, 0
        while stop.received is None:
            connected = 0
            with suppress(FleetError):  # The SuperLink is being started again.
                connected = count_online_nodes(self._state)
            if connected >= wanted:
                return True
            self._show("waiting for devices", {"nodes": connected, "wanted": wanted})
            looks = looks + 1 if connected == before else 1
            before = connected
            self._wait(self._pace.nodes.pause(looks, random.random()), stop)
        return False

    def _submit(self, stop: StopRequest) -> int | None:
        """Start the run in Flower, or start it again where it stood; None when ``stop`` came first."""
        prepare_folder(self._state.out)
        # A new run begins with an empty folder: what is there belongs to this one.
        write_text(self._state.run_config_file, toml_lines({**self._record.config, "resume": True}))
        while stop.received is None:
            try:
                stop_unfinished_runs(self._state)
                self._state.status_file.unlink(missing_ok=True)
                run_id = submit_run(self._state)
            except FlowerRefusal:
                raise  # It answers, and would answer the same again.
            except FleetError as error:
                self._watcher.note(f"{error} Trying again.")
                self._wait(self._pace.nodes.first_seconds, stop)
                continue
            rounds = self._finished_rounds()
            self._record = self._record.submitted(run_id)
            self._record.save(self._state.server_file)
            how = f"goes on after round {rounds}" if rounds else "starts"
            self._watcher.note(f"The run {how}, as Flower's run {run_id}.")
            return run_id
        return None

    def _watch(self, run_id: int, stop: StopRequest) -> FlowerRun | None:
        """Follow the run until Flower is done with it, or its ServerApp is gone; None when ``stop`` came first."""
        listed_at = time.monotonic()
        gone_since: float | None = None
        while self._wait(self._pace.tick, stop):
            now, status = time.monotonic(), self._status()
            self._show("the run is being started", status)
            ending = status.get("phase") in ("finished", "failed")
            # A ServerApp that was killed tells nobody, and Flower waits for its next sign of life for a minute.
            alive = not status or ending or self._superexec.runs_something() is not False
            gone_since = None if alive else gone_since or now
            gone = gone_since is not None and now - gone_since >= self._pace.ending
            if now - listed_at < (self._pace.ending if ending or gone else self._pace.listing):
                continue
            with suppress(FleetError):  # The SuperLink is being started again.
                run = next((run for run in list_runs(self._state) if run.run_id == run_id), None)
                if run is None:
                    return FlowerRun(run_id=run_id, status="finished:failed", details="the SuperLink has forgotten it")
                if run.finished:
                    return run
                if gone:
                    return FlowerRun(run_id=run_id, status="finished:failed", details="its ServerApp was killed")
            listed_at = time.monotonic()
        return None

    def _require_resumable(self, run: FlowerRun, log: Path) -> None:
        """Raise FleetError where another try would only fail the same way, or nobody wants one."""
        status = self._status()
        if status.get("phase") == "failed":
            raise FleetError(f"The run failed: {str(status.get('error', '')).rstrip('.')}. Log: {log}.")
        if run.status == "finished:stopped":
            raise FleetError("The run was stopped from outside (flwr stop): start the server again to go on with it.")

    def _summary(self, log: Path) -> dict[str, Any]:
        path = self._state.run_file
        try:
            summary: dict[str, Any] = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise StorageError(f"The run is complete, but {path} cannot be read ({error}). Log: {log}.") from error
        replace(self._record, finished=True).save(self._state.server_file)
        return summary

    def _status(self) -> dict[str, Any]:
        """What the ServerApp of the present submission wrote last; empty before it wrote anything."""
        try:
            status: dict[str, Any] = json.loads(self._state.status_file.read_text())
        except (OSError, ValueError):
            return {}
        return status

    def _finished_rounds(self) -> int:
        try:
            return len(self._state.rounds_file.read_text().splitlines())
        except OSError:
            return 0

    def _show(self, phase: str, status: dict[str, Any] | None = None) -> None:
        status = status or {}
        self._watcher.show(describe_status(phase, status), status_key(phase, status))


def _reason(run: FlowerRun) -> str:
    return (run.details or run.status).strip().rstrip(".").replace("\n", " ")
