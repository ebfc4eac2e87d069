"""What a device tells of itself while it trains: the readings behind its metrics, whichever road they take."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockReading:
    """The latest of one block."""

    first_unit: int
    last_unit: int
    batch_size: int
    predicted_peak_bytes: int
    measured_peak_bytes: int | None = None
    """None where it was not, or not yet, measured."""
    samples_per_second: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivitySeconds:
    """Where time went since the process started."""

    profile: float = 0.0
    train: float = 0.0
    cache: float = 0.0
    evaluate: float = 0.0
    wait: float = 0.0
    """For the next task."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingReading:
    """What the process that trains knows. Its sums begin anew with the process, as Prometheus expects of counters."""

    run: str = ""
    """The run's name; empty before the first task."""
    round: int = 0
    """Of the last training task."""
    busy: bool = False
    training_bytes: int | None = None
    """Memory that training holds now; None where the platform does not tell."""
    blocks: tuple[BlockReading, ...] = ()
    """Of the plan in use, in order."""
    losses: tuple[tuple[int, float], ...] = ()
    """Unit, and the mean local loss at its head in the last pass."""
    samples: int = 0
    tasks: int = 0
    cache_bytes: int = 0
    """On the disk now."""
    cache_hits: int = 0
    cache_writes: int = 0
    cache_written_bytes: int = 0
    cache_refusals: int = 0
    out_of_memory_retries: int = 0
    deadlines_reached: int = 0
    seconds: ActivitySeconds = field(default_factory=ActivitySeconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineReading:
    """What the system tells; None where it does not."""

    resident_bytes: int | None = None
    """Of the process that trains."""
    available_bytes: int | None = None
    disk_free_bytes: int | None = None
    disk_size_bytes: int | None = None
    gpu_bytes: int | None = None
    gpu_size_bytes: int | None = None
    gpu_utilisation: float | None = None
    """0 to 1."""
    gpu_celsius: float | None = None
    gpu_watts: float | None = None
    board_celsius: float | None = None
    board_watts: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceReport:
    """One moment of a device."""

    device_class: str = ""
    budget_bytes: int | None = None
    """None: no limit."""
    connected: bool = True
    """To the fleet's server."""
    agent_restarts: int = 0
    machine: MachineReading = field(default_factory=MachineReading)
    training: TrainingReading | None = None
    """None while no process trains."""
