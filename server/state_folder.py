"""Where a fleet server keeps what it must not lose: the one place that knows the names in its state folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from neuroflux_fl.flower_environment import flower_environment

CONNECTION = "fleet"
"""Name of the SuperLink connection in the state folder's Flower configuration."""


@dataclass(frozen=True, slots=True)
class ServerState:
    """Names inside a state folder; nothing is read or made here."""

    root: Path

    @property
    def flwr_home(self) -> Path:
        """``FLWR_HOME`` of every Flower process that belongs to this server."""
        return self.root / "flwr-home"

    @property
    def flwr_config(self) -> Path:
        """Flower's connections, the one named ``fleet`` among them."""
        return self.flwr_home / "config.toml"

    @property
    def database(self) -> Path:
        """Runs, devices and messages of the SuperLink."""
        return self.root / "superlink.db"

    @property
    def secret(self) -> Path:
        """What proves to the SuperLink that a task runner is ours; mode 0600."""
        return self.root / "superexec.secret"

    @property
    def devices_file(self) -> Path:
        """Enrolled devices by name."""
        return self.root / "devices.json"

    @property
    def out(self) -> Path:
        """Results of the run: run.json, rounds.jsonl, status.json, fleet.safetensors and the exit."""
        return self.root / "out"

    @property
    def run_file(self) -> Path:
        """Summary of the run; there once it is complete."""
        return self.out / "run.json"

    @property
    def rounds_file(self) -> Path:
        """A line for each finished round."""
        return self.out / "rounds.jsonl"

    @property
    def status_file(self) -> Path:
        """Where the run stands."""
        return self.out / "status.json"

    @property
    def telemetry_file(self) -> Path:
        """What devices reported last."""
        return self.out / "telemetry.json"

    @property
    def logs(self) -> Path:
        """One file for each process."""
        return self.root / "logs"

    @property
    def app(self) -> Path:
        """The Flower app that is handed to the SuperLink; made anew for every run."""
        return self.root / "app"

    @property
    def server_file(self) -> Path:
        """What ``neuroflux-fl server`` remembers of its run between two starts."""
        return self.root / "server.json"

    @property
    def run_config_file(self) -> Path:
        """The run's configuration as it was handed to Flower."""
        return self.root / "run.toml"

    @property
    def lock_file(self) -> Path:
        """Held by the server that uses the folder."""
        return self.root / "lock"

    def flower_environment(self) -> dict[str, str]:
        """Environment for the Flower commands of this server, ``flwr`` included."""
        return flower_environment(self.flwr_home)
