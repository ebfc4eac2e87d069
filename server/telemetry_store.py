"""What devices have reported: the newest of each, sums over classes, and what was lost. There is no network in it."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from neuroflux_fl import metrics as m
from neuroflux_fl.device_report import DeviceReport, TrainingReading
from neuroflux_fl.device_samples import device_samples
from neuroflux_fl.errors import WireError
from neuroflux_fl.metrics import Sample

OTHER = "other"
UNKNOWN = "unknown"
LARGEST_GAP = 1_000_000
"""Reports that a device can have lost at once: two months of them, made every 5 s."""
_OUTCOMES = ("accepted", "repeated", "malformed", "oversized")
_LABELS = ("device", "device_class", "block", "unit")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreLimits:
    """What bounds memory and series, whatever devices say of themselves."""

    most_devices: int = 200
    """With labels of their own; all others count in the sums over their class."""
    most_remembered: int = 10_000
    """Devices of either kind."""
    most_classes: int = 20
    """Further ones are ``other``."""
    most_blocks: int = 128
    """Different blocks, and different units, that one device may ever name."""
    stale_seconds: float = 60.0
    """Without a report, after which a device's metrics are gone."""
    forget_seconds: float = 86_400.0
    """Without a report, after which nothing tells of the device any more."""


@dataclass(slots=True, kw_only=True)
class _Device:
    """What is known of one device; changed under the store's lock only."""

    labelled: bool
    session: bytes = b""
    number: int = 0
    """Of the newest report of the session."""
    report: DeviceReport | None = None
    """The newest; None before the first that is well formed."""
    given_class: str | None = None
    class_label: str = UNKNOWN
    made_at: float = 0.0
    """When the newest report was made, by the store's clock."""
    heard_at: float = 0.0
    """When it came: later by as long as the device was offline."""
    samples: int | None = None
    blocks: set[object] = field(default_factory=set)
    units: set[object] = field(default_factory=set)


class TelemetryStore:
    """Safe to use from any thread.

    Reports of one session of a device come in the order of their numbers; a number that is not above the last one has
    come before, and numbers left out are lost. A session that the store has not met may start anywhere: the gateway may
    have been restarted since its first report.
    """

    def __init__(
        self,
        limits: StoreLimits | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """Empty.

        Args:
            limits: of memory and series.
            clock: seconds, never going back.
            wall_clock: Unix time, for people only.
        """
        self._limits = limits or StoreLimits()
        self._clock = clock
        self._wall_clock = wall_clock
        self._lock = threading.Lock()
        self._devices: dict[str, _Device] = {}
        self._labelled = 0
        self._class_samples: dict[str, int] = {}
        self._reports: Counter[str] = Counter()
        self._refused: Counter[str] = Counter()
        self._lost = 0

    def receive(self, name: str, session: bytes, number: int, age_seconds: float, report: DeviceReport) -> int:
        """Take in a report that was made ``age_seconds`` ago.

        Returns:
            The number up to which every report of the session has come or is lost.

        Raises:
            WireError: the number is impossible.
        """
        with self._lock:
            device = self._meet(name)
            if not self._is_next(device, session, number):
                return device.number
            self._reports["accepted"] += 1
            device.made_at = self._clock() - age_seconds
            self._set_class(device, report.device_class)
            if report.training is not None:
                self._add_samples(device, report.training.samples)
                report = replace(report, training=self._bounded(device, report.training))
            device.report = report
            return device.number

    def skip(self, name: str, session: bytes, number: int) -> int:
        """Take note of a malformed report as of one that has come, so that it is not sent again; as ``receive``."""
        with self._lock:
            device = self._meet(name)
            if self._is_next(device, session, number):
                self._reports["malformed"] += 1
            return device.number

    def count(self, outcome: str) -> None:
        """Count a message without a number that could be used."""
        with self._lock:
            self._reports[outcome] += 1

    def forget(self, name: str) -> None:
        """Drop a device that does not belong to the fleet any more."""
        with self._lock:
            if name in self._devices:
                self._drop(name)

    def names(self) -> tuple[str, ...]:
        """Every device that is remembered."""
        with self._lock:
            return tuple(self._devices)

    def samples(self, run: str) -> Iterator[Sample]:
        """Everything as metrics, with ``run`` as the devices' label of that name."""
        with self._lock:
            self._prune()
            fresh_after = self._clock() - self._limits.stale_seconds
            rows = [
                (name, device.class_label, device.report, device.made_at >= fresh_after, device.labelled)
                for name, device in self._devices.items()
                if device.report is not None
            ]
            class_samples, reports, refused = dict(self._class_samples), self._reports.copy(), self._refused.copy()
            lost = self._lost
        reporting = dict.fromkeys(class_samples, 0)
        for name, class_label, report, fresh, labelled in rows:
            reporting[class_label] += fresh
            if not labelled:
                continue
            yield Sample(m.DEVICE_REPORTING, (name, class_label), float(fresh))
            if fresh:
                yield from device_samples(report, run=run, device=name, device_class=class_label)
        for class_label, samples in class_samples.items():
            yield Sample(m.DEVICES_REPORTING, (class_label,), reporting[class_label])
            yield Sample(m.CLASS_SAMPLES, (class_label,), samples)
        for outcome in _OUTCOMES:
            yield Sample(m.REPORTS, (outcome,), reports[outcome])
        yield Sample(m.REPORTS_LOST, (), lost)
        for label in _LABELS:
            yield Sample(m.LABELS_REFUSED, (label,), refused[label])

    def snapshot(self) -> dict[str, Any]:
        """The devices that have labels, for JSON: what the terminal view and the report page read."""
        with self._lock:
            self._prune()
            now, unix = self._clock(), self._wall_clock()
            rows = [
                (name, device.class_label, device.report, now - device.made_at)
                for name, device in self._devices.items()
                if device.labelled and device.report is not None
            ]
        return {
            "updated_at": unix,
            "devices": [
                {
                    "device": name,
                    "device_class": class_label,
                    "reporting": age <= self._limits.stale_seconds,
                    "last_seen": unix - age,
                    "report": asdict(report),
                }
                for name, class_label, report, age in rows
            ],
        }

    def _meet(self, name: str) -> _Device:
        """The device's record, made where there is none, with labels while there are some left."""
        device = self._devices.get(name)
        is_new = device is None
        if device is None:
            if len(self._devices) >= self._limits.most_remembered:
                self._drop(min(self._devices, key=lambda other: self._devices[other].heard_at))
            device = self._devices[name] = _Device(labelled=False)
        if not device.labelled:
            device.labelled = self._labelled < self._limits.most_devices
            self._labelled += device.labelled
            self._refused["device"] += is_new and not device.labelled
        device.heard_at = self._clock()
        return device

    def _drop(self, name: str) -> None:
        self._labelled -= self._devices.pop(name).labelled

    def _is_next(self, device: _Device, session: bytes, number: int) -> bool:
        if device.session != session:
            device.session, device.number = session, number
            return True
        lost = number - device.number - 1
        if lost > LARGEST_GAP:
            raise WireError(f"Report {number} follows report {device.number}: at most {LARGEST_GAP} can be lost.")
        if lost < 0:
            self._reports["repeated"] += 1
            return False
        self._lost += lost
        device.number = number
        return True

    def _set_class(self, device: _Device, given: str) -> None:
        if given == device.given_class:
            return
        label = given or UNKNOWN
        if label not in self._class_samples and len(self._class_samples) >= self._limits.most_classes:
            self._refused["device_class"] += 1
            label = OTHER
        self._class_samples.setdefault(label, 0)
        device.given_class, device.class_label = given, label

    def _add_samples(self, device: _Device, samples: int) -> None:
        """What came since the last report; a sum that went back began anew, one that is new may be counted already."""
        if device.samples is not None:
            since = samples - device.samples if samples >= device.samples else samples
            self._class_samples[device.class_label] += since
        device.samples = samples

    def _bounded(self, device: _Device, training: TrainingReading) -> TrainingReading:
        blocks = {(block.first_unit, block.last_unit): block for block in training.blocks}
        losses = dict(training.losses)
        self._admit("block", device.blocks, set(blocks))
        self._admit("unit", device.units, set(losses))
        return replace(
            training,
            blocks=tuple(block for key, block in blocks.items() if key in device.blocks),
            losses=tuple(loss for loss in losses.items() if loss[0] in device.units),
        )

    def _admit(self, label: str, known: set[object], values: set[Any]) -> None:
        for value in sorted(values - known):
            if len(known) < self._limits.most_blocks:
                known.add(value)
            else:
                self._refused[label] += 1

    def _prune(self) -> None:
        """Forget who has been silent for long: for very long, where the silence itself is shown."""
        now = self._clock()
        for name, device in list(self._devices.items()):
            limit = self._limits.forget_seconds if device.labelled else self._limits.stale_seconds
            if now - device.heard_at > limit:
                self._drop(name)
