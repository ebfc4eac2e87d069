"""Every metric, declared once: name, kind, labels, help, and who sets it. docs/metrics.md is made from this."""

from __future__ import annotations

from dataclasses import dataclass, field

RUN = ("run",)
DEVICE = ("run", "device", "device_class")

SECONDS_BUCKETS = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One declared metric. Its unit is the end of its name; a ratio lies between 0 and 1."""

    name: str
    kind: str
    """gauge, counter or histogram."""
    help: str
    set_by: str
    """server, device or gateway. A simulated fleet's server sets the devices' metrics too, from their reports."""
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Sample:
    """One value of a gauge or a counter."""

    metric: Metric
    labels: tuple[str, ...]
    """Values, in the order of ``metric.labels``."""
    value: float


@dataclass(frozen=True, slots=True)
class Observations:
    """All that a histogram has observed so far."""

    metric: Metric
    labels: tuple[str, ...]
    values: tuple[float, ...] = field(repr=False)


def _gauge(name: str, set_by: str, labels: tuple[str, ...], help: str) -> Metric:
    return Metric(name=f"neuroflux_{name}", kind="gauge", help=help, set_by=set_by, labels=labels)


def _counter(name: str, set_by: str, labels: tuple[str, ...], help: str) -> Metric:
    return Metric(name=f"neuroflux_{name}", kind="counter", help=help, set_by=set_by, labels=labels)


def _histogram(name: str, set_by: str, labels: tuple[str, ...], help: str) -> Metric:
    return Metric(
        name=f"neuroflux_{name}", kind="histogram", help=help, set_by=set_by, labels=labels, buckets=SECONDS_BUCKETS
    )


# The run, as its server sees it.
BUILD = _gauge(
    "build_info", "server", ("version", "python", "torch", "flwr"), "Always 1; the labels tell what the server runs on."
)
PHASE = _gauge(
    "run_phase", "server", (*RUN, "phase"),
    "1 for the phase that the run is in, 0 for the others: starting, waiting, training, evaluating, finished, failed.",
)  # fmt: skip
ROUND = _gauge("round", "server", RUN, "Rounds completed.")
ROUNDS_PLANNED = _gauge("rounds_planned", "server", RUN, "Rounds that the run makes at most.")
STAGE = _gauge("stage", "server", RUN, "Stage in training, from 0.")
NODES_CONNECTED = _gauge("nodes_connected", "server", RUN, "Devices connected to the server.")
ANSWERS_WANTED = _gauge("answers_wanted", "server", RUN, "Answers that the phase in progress waits for.")
ANSWERS_RECEIVED = _gauge("answers_received", "server", RUN, "Answers that have come in the phase in progress.")
EXIT_ACCURACY = _gauge(
    "exit_accuracy_ratio", "server", (*RUN, "unit", "split"),
    "Accuracy of the exit at a unit; split is validation (before the round) or test (after it).",
)  # fmt: skip
EXIT_PARAMETERS = _gauge(
    "exit_parameters", "server", (*RUN, "unit"), "Parameters of the model that ends at a unit, its head included."
)
UNIT_CONTRIBUTORS = _gauge(
    "unit_contributors", "server", (*RUN, "unit"), "Devices whose update of the unit was aggregated in the last round."
)
ROUNDS_WITHOUT_IMPROVEMENT = _gauge(
    "rounds_without_improvement", "server", RUN, "Rounds of this stage since its best exit last became better."
)
ROUNDS_BELOW_QUORUM = _counter(
    "rounds_below_quorum_total", "server", RUN,
    "Rounds in which fewer devices than the quorum answered, or a unit had fewer updates than the unit quorum.",
)  # fmt: skip
UPDATES_REJECTED = _counter("updates_rejected_total", "server", (*RUN, "reason"), "Updates not aggregated, by reason.")
TASKS = _counter(
    "tasks_total", "server", (*RUN, "outcome"),
    "Training tasks of finished rounds; outcome is answered, failed, or missing at the round's end.",
)  # fmt: skip
TASKS_RESENT = _counter(
    "tasks_resent_total", "server", RUN, "Tasks sent again to devices that had been lost in the middle."
)
LATE_ANSWERS = _counter(
    "late_answers_total", "server", (*RUN, "fate"),
    "Answers that came after their round; fate is used (at a discount) or dropped.",
)  # fmt: skip
TRAFFIC_BYTES = _counter(
    "traffic_bytes_total", "server", (*RUN, "direction"),
    "Bytes between server and devices in training rounds; direction is up (to the server) or down.",
)  # fmt: skip
SAMPLES = _counter("samples_total", "server", RUN, "Training samples that devices have processed, passes counted.")
DEVICE_SECONDS = _counter(
    "device_work_seconds_total", "server", RUN, "Time that all devices together have spent on training tasks."
)
ROUND_SECONDS = _histogram("round_seconds", "server", RUN, "Duration of a round.")
AGGREGATION_SECONDS = _histogram(
    "aggregation_seconds", "server", RUN, "Time of a round in which the server checked, added and averaged updates."
)
RUN_SECONDS = _gauge("run_seconds", "server", RUN, "Time of the run so far, without interruptions.")
REMAINING_SECONDS = _gauge(
    "remaining_seconds", "server", RUN,
    "Estimate of the time to the end: rounds left, times the mean of the last five. An upper bound where the run stops "
    "early.",
)  # fmt: skip
LAST_ROUND_TIMESTAMP = _gauge(
    "last_round_timestamp_seconds", "server", RUN, "Unix time at which the last round ended, or the run started."
)
UPDATE_ERROR = _gauge(
    "update_error_ratio", "server", RUN,
    "Largest error that coding an update in float16 or int8 has made, as a share of what training moved.",
)  # fmt: skip
SERVER_DISK_FREE = _gauge("server_disk_free_bytes", "server", (), "Free space on the disk of the run's results.")
SERVER_DISK_SIZE = _gauge("server_disk_size_bytes", "server", (), "Size of the disk of the run's results.")

# A device, as it sees itself.
DEVICE_BUDGET_BYTES = _gauge("device_budget_bytes", "device", DEVICE, "Memory budget of training on a device.")
DEVICE_TRAINING_BYTES = _gauge(
    "device_training_bytes", "device", DEVICE, "Memory that training holds now: what the budget limits."
)
DEVICE_RESIDENT_BYTES = _gauge(
    "device_resident_bytes", "device", DEVICE, "Resident memory of the process that trains, libraries included."
)
DEVICE_AVAILABLE_BYTES = _gauge(
    "device_available_bytes", "device", DEVICE, "Memory that machine and control groups leave."
)
DEVICE_BLOCK_PEAK_BYTES = _gauge(
    "device_block_peak_bytes", "device", (*DEVICE, "block", "source"),
    "Peak of a block's training memory; block is its first and last unit, source is predicted or measured.",
)  # fmt: skip
DEVICE_BLOCK_BATCH_SIZE = _gauge(
    "device_block_batch_size", "device", (*DEVICE, "block"), "Samples in a batch of a block's training."
)
DEVICE_BLOCK_SPEED = _gauge(
    "device_block_samples_per_second", "device", (*DEVICE, "block"),
    "Training speed of a block, in the pass in progress or else in the last one.",
)  # fmt: skip
DEVICE_UNIT_LOSS = _gauge(
    "device_unit_loss", "device", (*DEVICE, "unit"), "Mean local loss at a unit's head in the last pass."
)
DEVICE_SAMPLES = _counter(
    "device_samples_total",
    "device",
    DEVICE,
    "Training samples processed; one that goes through two blocks counts twice.",
)
DEVICE_TASKS = _counter("device_tasks_total", "device", DEVICE, "Tasks answered, of any kind.")
DEVICE_ROUND = _gauge("device_round", "device", DEVICE, "Round of the last training task.")
DEVICE_BUSY = _gauge("device_busy", "device", DEVICE, "1 while the device works on a task, else 0.")
DEVICE_CONNECTED = _gauge("device_connected", "device", DEVICE, "1 while the SuperNode has its server, else 0.")
DEVICE_AGENT_RESTARTS = _counter(
    "device_agent_restarts_total", "device", DEVICE, "Starts of the device agent after the first."
)
DEVICE_CACHE_BYTES = _gauge("device_cache_bytes", "device", DEVICE, "Activations on the device's disk now.")
DEVICE_CACHE_HITS = _counter(
    "device_cache_hits_total", "device", DEVICE, "Times that cached activations were there and needed no computing."
)
DEVICE_CACHE_WRITES = _counter(
    "device_cache_writes_total", "device", DEVICE, "Sets of activations written to the cache."
)
DEVICE_CACHE_WRITTEN_BYTES = _counter(
    "device_cache_written_bytes_total", "device", DEVICE, "Bytes of activations written to the cache."
)
DEVICE_CACHE_REFUSALS = _counter(
    "device_cache_refusals_total", "device", DEVICE,
    "Sets of activations that quota or disk had no room for; they were computed anew for every batch.",
)  # fmt: skip
DEVICE_OOM_RETRIES = _counter(
    "device_out_of_memory_retries_total", "device", DEVICE, "Batches halved after an out-of-memory error."
)
DEVICE_DEADLINES = _counter(
    "device_deadlines_reached_total", "device", DEVICE, "Training tasks that the deadline cut short."
)
DEVICE_ACTIVITY_SECONDS = _counter(
    "device_activity_seconds_total", "device", (*DEVICE, "activity"),
    "Where the device's time went; activity is profile, train, cache, evaluate or wait (for the next task).",
)  # fmt: skip
DEVICE_GPU_BYTES = _gauge("device_gpu_bytes", "device", DEVICE, "Memory of the GPU in use, by everyone.")
DEVICE_GPU_SIZE_BYTES = _gauge("device_gpu_size_bytes", "device", DEVICE, "Memory of the GPU.")
DEVICE_GPU_UTILISATION = _gauge(
    "device_gpu_utilisation_ratio", "device", DEVICE, "Share of the time in which the GPU was at work."
)
DEVICE_TEMPERATURE = _gauge(
    "device_temperature_celsius",
    "device",
    (*DEVICE, "sensor"),
    "Temperature; sensor is gpu or board (its hottest zone).",
)
DEVICE_POWER = _gauge("device_power_watts", "device", (*DEVICE, "sensor"), "Power drawn; sensor is gpu or board.")
DEVICE_DISK_FREE = _gauge("device_disk_free_bytes", "device", DEVICE, "Free space on the disk of the state folder.")
DEVICE_DISK_SIZE = _gauge("device_disk_size_bytes", "device", DEVICE, "Size of the disk of the state folder.")

# What the telemetry gateway knows of the reports themselves.
DEVICE_REPORTING = _gauge(
    "device_reporting", "gateway", ("device", "device_class"),
    "1 while a device's reports come; 0 once they have stopped, for a day. Its other metrics are then gone.",
)  # fmt: skip
DEVICES_REPORTING = _gauge(
    "devices_reporting",
    "gateway",
    ("device_class",),
    "Devices whose reports come, those without labels of their own too.",
)
CLASS_SAMPLES = _counter(
    "class_samples_total", "gateway", ("device_class",),
    "Training samples of all devices of a class, those without labels of their own too.",
)  # fmt: skip
STREAMS = _gauge("telemetry_streams", "gateway", (), "Devices that are connected to the gateway.")
REPORTS = _counter(
    "telemetry_reports_total", "gateway", ("outcome",),
    "Reports that came; outcome is accepted, repeated (had come before), malformed or oversized.",
)  # fmt: skip
REPORTS_LOST = _counter(
    "telemetry_reports_lost_total",
    "gateway",
    (),
    "Reports that devices made and that never came: gaps in their numbers.",
)
STREAMS_REFUSED = _counter(
    "telemetry_streams_refused_total", "gateway", ("reason",),
    "Streams that were not let in; reason is unknown_key, revoked, bad_proof, no_proof or too_many.",
)  # fmt: skip
LABELS_REFUSED = _counter(
    "telemetry_labels_refused_total", "gateway", ("label",),
    "Label values beyond what is allowed, by label; the value is then 'other', or the series is left out.",
)  # fmt: skip

CATALOGUE = tuple(value for value in globals().values() if isinstance(value, Metric))
"""All of them, in the order of their declaration."""
