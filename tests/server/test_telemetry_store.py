"""What the gateway remembers: computed by hand, on a clock that only moves when told to."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest

from neuroflux_fl.device_report import BlockReading, DeviceReport, TrainingReading
from neuroflux_fl.errors import WireError
from neuroflux_fl.exposition import exposition, make_registry
from server.telemetry_store import LARGEST_GAP, StoreLimits, TelemetryStore


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def make_store(clock: Clock, **limits: Any) -> TelemetryStore:
    return TelemetryStore(StoreLimits(**limits), clock=clock, wall_clock=lambda: 1_700_000_000.0)


def report(samples: int = 0, device_class: str = "pi", **fields: Any) -> DeviceReport:
    return DeviceReport(device_class=device_class, training=TrainingReading(samples=samples, **fields))


def values(store: TelemetryStore, metric: str) -> dict[tuple[str, ...], float]:
    """Values of one metric by the values of its labels."""
    return {
        sample.labels: sample.value for sample in store.samples("run-1") if sample.metric.name == f"neuroflux_{metric}"
    }


def outcomes(store: TelemetryStore) -> dict[str, float]:
    return {labels[0]: value for labels, value in values(store, "telemetry_reports_total").items() if value}


def test_counters_are_there_before_anything_happened(clock: Clock) -> None:
    found = {(sample.metric.name, *sample.labels): sample.value for sample in make_store(clock).samples("r")}

    reports = [("neuroflux_telemetry_reports_total", o) for o in ("accepted", "repeated", "malformed", "oversized")]
    labels = [("neuroflux_telemetry_labels_refused_total", o) for o in ("device", "device_class", "block", "unit")]
    assert found == dict.fromkeys([*reports, ("neuroflux_telemetry_reports_lost_total",), *labels], 0)


def test_the_newest_report_sets_what_is_shown(clock: Clock) -> None:
    store = make_store(clock)
    store.receive("a", b"s", 1, 0.0, report(samples=5, round=1))
    store.receive("a", b"s", 2, 0.0, report(samples=9, round=2))

    assert values(store, "device_round") == {("run-1", "a", "pi"): 2}
    assert values(store, "device_samples_total") == {("run-1", "a", "pi"): 9}
    assert values(store, "device_reporting") == {("a", "pi"): 1}


def test_what_came_before_is_known_again_and_gaps_are_lost(clock: Clock) -> None:
    store = make_store(clock)

    acknowledged = [store.receive("a", b"s", number, 0.0, report(samples=number)) for number in (1, 2, 2, 1, 6, 7, 3)]

    assert acknowledged == [1, 2, 2, 2, 6, 7, 7]
    assert outcomes(store) == {"accepted": 4, "repeated": 3}
    assert values(store, "telemetry_reports_lost_total") == {(): 3}
    assert values(store, "device_samples_total") == {("run-1", "a", "pi"): 7}


def test_a_session_that_is_new_here_may_start_anywhere(clock: Clock) -> None:
    store = make_store(clock)
    store.receive("a", b"old", 50, 0.0, report())
    store.receive("a", b"new", 4, 0.0, report())
    store.receive("a", b"new", 5, 0.0, report())

    assert outcomes(store) == {"accepted": 3}
    assert values(store, "telemetry_reports_lost_total") == {(): 0}


def test_an_impossible_number_is_refused_and_changes_nothing(clock: Clock) -> None:
    store = make_store(clock)
    store.receive("a", b"s", 1, 0.0, report())

    with pytest.raises(WireError, match="at most 1000000 can be lost"):
        store.receive("a", b"s", LARGEST_GAP + 3, 0.0, report())

    assert store.receive("a", b"s", 2, 0.0, report()) == 2
    assert values(store, "telemetry_reports_lost_total") == {(): 0}


def test_a_malformed_report_has_come_and_is_not_lost(clock: Clock) -> None:
    store = make_store(clock)
    store.receive("a", b"s", 1, 0.0, report(samples=3))

    assert store.skip("a", b"s", 2) == 2
    assert store.receive("a", b"s", 3, 0.0, report(samples=4)) == 3
    assert outcomes(store) == {"accepted": 2, "malformed": 1}
    assert values(store, "telemetry_reports_lost_total") == {(): 0}


def test_a_device_of_which_nothing_good_has_come_shows_nothing(clock: Clock) -> None:
    store = make_store(clock)
    store.skip("a", b"s", 1)

    assert values(store, "device_reporting") == {}
    assert store.snapshot()["devices"] == []


def test_a_silent_device_disappears_after_the_stated_time_and_is_told_of_for_a_day(clock: Clock) -> None:
    store = make_store(clock, stale_seconds=60.0, forget_seconds=86_400.0)
    store.receive("a", b"s", 1, 0.0, report())

    clock.now += 60
    assert values(store, "device_connected") == {("run-1", "a", "pi"): 1}
    clock.now += 1
    assert values(store, "device_connected") == {}
    assert values(store, "device_reporting") == {("a", "pi"): 0}
    assert values(store, "devices_reporting") == {("pi",): 0}
    clock.now += 86_400
    assert values(store, "device_reporting") == {}
    assert store.names() == ()


def test_a_report_is_as_old_as_the_device_says(clock: Clock) -> None:
    store = make_store(clock, stale_seconds=60.0)
    store.receive("a", b"s", 1, 300.0, report(samples=7))

    assert values(store, "device_reporting") == {("a", "pi"): 0}
    assert values(store, "device_samples_total") == {}

    store.receive("a", b"s", 2, 1.0, report(samples=8))
    assert values(store, "device_reporting") == {("a", "pi"): 1}


def test_an_absurd_age_only_makes_a_report_old(clock: Clock) -> None:
    store = make_store(clock)
    store.receive("a", b"s", 1, 1e300, report())

    assert values(store, "device_reporting") == {("a", "pi"): 0}
    json.dumps(store.snapshot(), allow_nan=False)


def test_sums_over_a_class_grow_by_what_came_and_survive_resets(clock: Clock) -> None:
    store = make_store(clock)
    # The first sum of a device may have been counted by the gateway before this one.
    for number, samples in enumerate((100, 130, 130, 20, 25), start=1):
        store.receive("a", b"s", number, 0.0, report(samples=samples))
    store.receive("b", b"s", 1, 0.0, report(samples=0))
    store.receive("b", b"s", 2, 0.0, report(samples=1000))
    store.receive("c", b"s", 1, 0.0, report(samples=0, device_class="nano"))

    assert values(store, "class_samples_total") == {("pi",): 30 + 20 + 5 + 1000, ("nano",): 0}


def test_a_report_between_two_trainings_does_not_reset_the_sum(clock: Clock) -> None:
    store = make_store(clock)
    store.receive("a", b"s", 1, 0.0, report(samples=10))
    store.receive("a", b"s", 2, 0.0, DeviceReport(device_class="pi"))
    store.receive("a", b"s", 3, 0.0, report(samples=15))

    assert values(store, "class_samples_total") == {("pi",): 5}


def test_devices_beyond_the_limit_count_in_their_class_only(clock: Clock) -> None:
    store = make_store(clock, most_devices=2)
    for name in ("a", "b", "c", "d"):
        store.receive(name, b"s", 1, 0.0, report(samples=0))
        store.receive(name, b"s", 2, 0.0, report(samples=10))

    assert values(store, "device_reporting") == {("a", "pi"): 1, ("b", "pi"): 1}
    assert set(values(store, "device_samples_total")) == {("run-1", "a", "pi"), ("run-1", "b", "pi")}
    assert values(store, "devices_reporting") == {("pi",): 4}
    assert values(store, "class_samples_total") == {("pi",): 40}
    assert values(store, "telemetry_labels_refused_total")["device",] == 2
    assert [row["device"] for row in store.snapshot()["devices"]] == ["a", "b"]


def test_a_device_that_has_gone_for_good_leaves_its_labels_to_another(clock: Clock) -> None:
    store = make_store(clock, most_devices=1)
    store.receive("a", b"s", 1, 0.0, report())
    store.receive("b", b"s", 1, 0.0, report())
    store.forget("a")
    store.receive("b", b"s", 2, 0.0, report())

    assert values(store, "device_reporting") == {("b", "pi"): 1}


def test_a_flood_of_names_stays_within_bounds(clock: Clock) -> None:
    store = make_store(clock, most_devices=5, most_remembered=20)
    for number in range(500):
        clock.now += 0.01
        store.receive(f"device-{number}", b"s", 1, 0.0, report())

    assert len(store.names()) == 20
    assert len(values(store, "device_reporting")) <= 5
    clock.now += 61
    assert len(values(store, "device_reporting")) == len(store.names()) <= 5


def test_a_flood_of_classes_becomes_other(clock: Clock) -> None:
    store = make_store(clock, most_classes=3)
    for number in range(50):
        store.receive("a", b"s", number + 1, 0.0, report(samples=number, device_class=f"class-{number}"))

    assert set(values(store, "class_samples_total")) == {("class-0",), ("class-1",), ("class-2",), ("other",)}
    assert values(store, "class_samples_total")["other",] == 47
    assert values(store, "device_reporting") == {("a", "other"): 1}
    assert values(store, "telemetry_labels_refused_total")["device_class",] == 47


def test_a_device_without_a_class_is_unknown(clock: Clock) -> None:
    store = make_store(clock)
    store.receive("a", b"s", 1, 0.0, report(device_class=""))

    assert values(store, "device_reporting") == {("a", "unknown"): 1}


def test_a_flood_of_blocks_and_units_stays_within_bounds(clock: Clock) -> None:
    store = make_store(clock, most_blocks=4)
    for number in range(1, 11):
        block = BlockReading(first_unit=number, last_unit=number, batch_size=8, predicted_peak_bytes=1)
        store.receive("a", b"s", number, 0.0, report(blocks=(block,), losses=((number, 0.5),)))
    refused = values(store, "telemetry_labels_refused_total")

    assert (refused["block",], refused["unit",]) == (6, 6)
    assert values(store, "device_block_batch_size") == {}
    known = BlockReading(first_unit=2, last_unit=2, batch_size=16, predicted_peak_bytes=1)
    store.receive("a", b"s", 11, 0.0, report(blocks=(known, known), losses=((2, 0.5), (2, 0.25))))
    assert values(store, "device_block_batch_size") == {("run-1", "a", "pi", "2-2"): 16}
    assert values(store, "device_unit_loss") == {("run-1", "a", "pi", "2"): 0.25}


def test_names_that_look_like_code_stay_text(clock: Clock) -> None:
    store = make_store(clock)
    store.receive('"} evil{a="', b"s", 1, 0.0, report(device_class='x\\"'))

    text = exposition(make_registry(lambda: store.samples("r"))).decode()
    assert 'neuroflux_device_reporting{device="\\"} evil{a=\\"",device_class="x\\\\\\""} 1.0' in text


def test_the_snapshot_has_what_a_reader_needs(clock: Clock) -> None:
    store = make_store(clock, stale_seconds=60.0)
    store.receive("a", b"s", 1, 2.0, report(samples=5, losses=((0, 0.5),)))
    clock.now += 70
    store.receive("b", b"s", 1, 0.0, report())

    snapshot = json.loads(json.dumps(store.snapshot()))
    assert snapshot["updated_at"] == 1_700_000_000.0
    first, second = snapshot["devices"]
    assert (first["device"], first["device_class"], first["reporting"]) == ("a", "pi", False)
    assert first["last_seen"] == 1_700_000_000.0 - 72
    assert first["report"]["training"]["samples"] == 5
    assert second["reporting"] is True


def test_reading_while_devices_report(clock: Clock) -> None:
    store, stop, failures = make_store(clock), threading.Event(), []

    def read() -> None:
        try:
            while not stop.is_set():
                list(store.samples("r"))
                store.snapshot()
        except RuntimeError as error:  # a dictionary that changed in the middle
            failures.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(3000):
        store.receive(f"device-{number}", b"s", 1, 0.0, report(device_class=f"class-{number}"))
    stop.set()
    reader.join()

    assert failures == []
