"""The alert rules: what is wrong, since when it counts, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from neuroflux_fl import metrics as m

_DEVICE = "run, device, device_class"
_ACTIVE = "starting|waiting|training|evaluating"
"""Phases of a run that is not over. Conditions are joined by ``and``, never by ``unless``: with ``bool`` after every
comparison an expression then gives a value where nothing is wrong, and a check can tell that it found its metrics."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """One rule. Texts may use Prometheus' templates: ``{{ $labels.device }}``, ``{{ $value }}``."""

    name: str
    expression: str
    severity: str
    """critical: training is at stake; warning: look at it today; info: good to know."""
    lasts: str = ""
    """How long it must hold; empty fires at once."""
    summary: str
    description: str
    action: str
    """What to do."""


def alerts() -> Iterator[Alert]:
    """All of them."""
    yield from _memory_alerts()
    yield from _silence_alerts()
    yield from _progress_alerts()
    yield from _disk_alerts()
    yield from _trust_alerts()


def _memory_alerts() -> Iterator[Alert]:
    budget = f"max by ({_DEVICE}) ({m.DEVICE_BUDGET_BYTES.name})"
    held = f'{m.DEVICE_TRAINING_BYTES.name} or {m.DEVICE_BLOCK_PEAK_BYTES.name}{{source="measured"}}'
    average = f"avg_over_time({m.DEVICE_TRAINING_BYTES.name}[10m])"
    yield Alert(
        name="NeurofluxDeviceOverBudget",
        expression=f"max by ({_DEVICE}) ({held}) > on ({_DEVICE}) {budget}",
        severity="critical",
        summary="Training on {{ $labels.device }} takes more memory than its budget",
        description="Training held {{ $value | humanize1024 }}B, now or at a block's measured peak. The plan was "
        "made to stay within the budget, so this is a defect of the plan or a wrong measurement of the machine.",
        action="Compare predicted and measured peaks on the dashboard Device. Lower --budget on that device until it "
        "is within, and report the figures of neuroflux-fl plan.",
    )
    yield Alert(
        name="NeurofluxDeviceNearBudget",
        expression=f"max by ({_DEVICE}) ({average}) > on ({_DEVICE}) 0.95 * {budget}",
        severity="info",
        lasts="10m",
        summary="Training on {{ $labels.device }} holds more than 95 % of its budget all the time",
        description="On average {{ $value | humanize1024 }}B in ten minutes. Good plans come close to the budget at "
        "their peaks; to stay there means that weights and optimizer alone fill it.",
        action="Nothing must be done. A larger budget would let the device train with larger batches, or more units.",
    )
    yield Alert(
        name="NeurofluxDeviceOutOfMemory",
        expression=f"sum by ({_DEVICE}) (increase({m.DEVICE_OOM_RETRIES.name}[15m])) > 0",
        severity="warning",
        summary="{{ $labels.device }} ran out of memory and halved its batches",
        description="It happened {{ $value | humanize }} times in 15 minutes. Training goes on, slower.",
        action="Something else on the device takes memory, or its budget is more than it can give: lower --budget.",
    )


def _silence_alerts() -> Iterator[Alert]:
    known_active = f'last_over_time({m.PHASE.name}{{phase=~"{_ACTIVE}"}}[1d]) == 1'
    yield Alert(
        name="NeurofluxGatewayDown",
        expression=f'up{{job="neuroflux"}} == 0 and on () (count({known_active}) > 0)',
        severity="critical",
        lasts="1m",
        summary="The fleet's metrics cannot be read",
        description="Prometheus gets no answer from {{ $labels.instance }}, and the last it heard was of a run in "
        "progress. Training itself does not need the gateway.",
        action="Is neuroflux-fl server still running? It starts a gateway that ended again; logs/telemetry.log in "
        "its state folder says why it ended. After a run's end nothing is wrong.",
    )
    yield Alert(
        name="NeurofluxDeviceSilent",
        expression=f"{m.DEVICE_REPORTING.name} == 0",
        severity="warning",
        lasts="2m",
        summary="{{ $labels.device }} has stopped reporting",
        description="No report has come for minutes from {{ $labels.device }} of class {{ $labels.device_class }}. "
        "It may be off, offline, or train without being heard.",
        action="Is it connected for work (dashboard Fleet, Devices)? Look at power and network first, then "
        "at the log of neuroflux-fl client on it. Reports of up to an hour are sent when it is back.",
    )
    yield Alert(
        name="NeurofluxDeviceNotScraped",
        expression='up{job="neuroflux-devices"} == 0',
        severity="warning",
        lasts="2m",
        summary="{{ $labels.device }} cannot be scraped",
        description="Prometheus gets no metrics from {{ $labels.instance }}: the device is off, its port is closed, "
        "or it shows more series than are allowed.",
        action="Prometheus' page /targets tells the error. Where the device is behind a firewall, leave --metrics-port "
        "away and let it push.",
    )


def _progress_alerts() -> Iterator[Alert]:
    active = f'{m.PHASE.name}{{phase=~"{_ACTIVE}"}} == 1'
    since = f"time() - max by (run) ({m.LAST_ROUND_TIMESTAMP.name})"
    mean = f"max by (run) ({m.ROUND_SECONDS.name}_sum / {m.ROUND_SECONDS.name}_count)"
    yield Alert(
        name="NeurofluxNoImprovement",
        expression=f"max by (run) ({m.ROUNDS_WITHOUT_IMPROVEMENT.name}) >= 10",
        severity="warning",
        summary="Run {{ $labels.run }} has not become better for {{ $value }} rounds",
        description="The best exit of the stage in training stands still.",
        action="Look at the dashboard Training. If the loss of the units still falls, wait; if not, end the run (its "
        "best exit is kept), or lower patience in the run's settings.",
    )
    yield Alert(
        name="NeurofluxRoundOverdue",
        expression=f"{since} > 60 + 5 * {mean} and on (run) ({active})",
        severity="warning",
        lasts="1m",
        summary="Run {{ $labels.run }}: no round has ended for {{ $value | humanizeDuration }}",
        description="That is more than five times what a round takes on average.",
        action="Dashboard Fleet: are answers awaited, and whose? One lost device ends its wait after "
        "reconnect-seconds; deadline-seconds bounds what a slow one may take; with too few devices the run waits for "
        "min-nodes.",
    )
    yield Alert(
        name="NeurofluxQuorumMissed",
        expression=f"sum by (run) (increase({m.ROUNDS_BELOW_QUORUM.name}[15m])) > 0",
        severity="warning",
        summary="Run {{ $labels.run }} had rounds with fewer answers than its quorum",
        description="{{ $value | humanize }} rounds in 15 minutes: fewer devices than the quorum answered, or a unit "
        "had fewer updates than the unit quorum.",
        action="Find the devices that are missing or failing (dashboard Fleet, tasks of finished rounds); lower "
        "quorum or unit-quorum if fewer are enough.",
    )
    yield Alert(
        name="NeurofluxRunFailed",
        expression=f'max by (run) ({m.PHASE.name}{{phase="failed"}}) == 1',
        severity="critical",
        summary="Run {{ $labels.run }} has failed",
        description="The server has given the run up.",
        action="The last lines of neuroflux-fl server say why. Start it again with the same --state to go on.",
    )


def _disk_alerts() -> Iterator[Alert]:
    device = f"max by ({_DEVICE}) ({m.DEVICE_DISK_FREE.name} / {m.DEVICE_DISK_SIZE.name})"
    yield Alert(
        name="NeurofluxServerDiskNearlyFull",
        expression=f"{m.SERVER_DISK_FREE.name} / {m.SERVER_DISK_SIZE.name} < 0.05",
        severity="critical",
        lasts="5m",
        summary="The server's disk is nearly full",
        description="{{ $value | humanizePercentage }} is free where the run's results are. A round that cannot be "
        "written is lost.",
        action="Make room, or move the state folder: results of older runs are in out-1, out-2 and so on.",
    )
    yield Alert(
        name="NeurofluxDeviceDiskNearlyFull",
        expression=f"{device} < 0.05",
        severity="warning",
        lasts="5m",
        summary="The disk of {{ $labels.device }} is nearly full",
        description="{{ $value | humanizePercentage }} is free. The cache then stops writing and training is slower.",
        action="Make room on the device, or give the cache less (cache-quota in the run's settings).",
    )
    yield Alert(
        name="NeurofluxDeviceHot",
        expression=f"max by ({_DEVICE}, sensor) ({m.DEVICE_TEMPERATURE.name}) > 90",
        severity="warning",
        lasts="5m",
        summary="{{ $labels.device }} is hot: {{ $value | humanize }} degrees",
        description="Its sensor {{ $labels.sensor }} has been above 90 degrees for minutes; most boards slow down "
        "there.",
        action="Give it air. A lower Nice or CPU quota on the device makes it cooler and slower.",
    )


def _trust_alerts() -> Iterator[Alert]:
    yield Alert(
        name="NeurofluxUpdatesRejected",
        expression=f"sum by (run, reason) (increase({m.UPDATES_REJECTED.name}[15m])) > 0",
        severity="warning",
        summary="Run {{ $labels.run }} refuses updates: {{ $labels.reason }}",
        description="{{ $value | humanize }} updates in 15 minutes were not aggregated. One device with bad data or "
        "bad memory is the usual reason; malice is another.",
        action="rounds.jsonl in the run's folder names round and reason, answers.jsonl the devices. neuroflux-fl "
        "revoke NAME keeps one out.",
    )
    yield Alert(
        name="NeurofluxReportsLost",
        expression=f"increase({m.REPORTS_LOST.name}[15m]) > 0",
        severity="info",
        summary="Telemetry has gaps",
        description="{{ $value | humanize }} reports of devices never came: a device was offline for longer than its "
        "buffer lasts. Training is not affected.",
        action="Nothing, once; often: look for the device that comes and goes.",
    )
    yield Alert(
        name="NeurofluxLabelsRefused",
        expression=f"sum by (label) (increase({m.LABELS_REFUSED.name}[15m])) > 0",
        severity="info",
        summary="More devices or classes than metrics may name",
        description="{{ $value | humanize }} new values of the label {{ $labels.label }} in 15 minutes went without "
        "labels of their own; sums still count them.",
        action="Raise --max-devices of neuroflux-fl server if the fleet is that large; if it is not, ask who reports.",
    )
