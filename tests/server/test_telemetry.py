"""A round's record becomes every server metric of the catalogue, as Prometheus reads it."""

from __future__ import annotations

from dataclasses import replace

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from neuroflux_fl.metrics import CATALOGUE, Metrics
from server.device_totals import DeviceTotals
from server.fleet_state import RoundRecord
from server.telemetry import MOST_DEVICES, report_round

RECORD = RoundRecord(
    round=4,
    stage=1,
    exits={2: 0.5, 3: 0.625},
    test={3: 0.75},
    contributors={2: 5, 3: 4},
    seconds=12.0,
    bytes_up=300,
    bytes_down=200,
    rejected={"not_finite": 2},
    failed=1,
    missing=3,
    resent=5,
    late_used=6,
    late_dropped=7,
)


def make_device(node_id: int) -> DeviceTotals:
    return DeviceTotals(
        node_id=node_id,
        budget_bytes=64,
        samples=50,
        train_seconds=4.0,
        predicted_peak_bytes=60,
        measured_peak_bytes=55,
        out_of_memory_retries=1,
        cache_bytes=33,
        cache_refusals=2,
        deadlines_reached=3,
    )


def scrape(registry: CollectorRegistry) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def test_every_declared_metric_is_set() -> None:
    registry = CollectorRegistry()

    report_round(Metrics(registry), RECORD, [make_device(7)])

    names = {name for name, _ in scrape(registry)}
    for metric in CATALOGUE:
        assert (f"{metric.name}_count" if metric.kind == "histogram" else metric.name) in names
    known = {metric.name for metric in CATALOGUE}
    suffixes = ("_bucket", "_sum", "_count", "_created")
    assert all(name in known or name.endswith(suffixes) for name in names)


def test_values_and_labels() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)

    report_round(metrics, RECORD, [make_device(7)])
    report_round(metrics, replace(RECORD, round=5, failed=0), [make_device(7)])

    samples = scrape(registry)
    assert samples["neuroflux_round", ()] == 5
    assert samples["neuroflux_stage", ()] == 1
    assert samples["neuroflux_exit_accuracy_ratio", (("split", "validation"), ("unit", "3"))] == 0.625
    assert samples["neuroflux_exit_accuracy_ratio", (("split", "test"), ("unit", "3"))] == 0.75
    assert samples["neuroflux_unit_contributors", (("unit", "2"),)] == 5
    # Counters add up over rounds.
    assert samples["neuroflux_updates_rejected_total", (("reason", "not_finite"),)] == 4
    assert samples["neuroflux_devices_failed_total", ()] == 1
    assert samples["neuroflux_devices_missing_total", ()] == 6
    assert samples["neuroflux_tasks_resent_total", ()] == 10
    assert samples["neuroflux_late_answers_total", (("fate", "used"),)] == 12
    assert samples["neuroflux_late_answers_total", (("fate", "dropped"),)] == 14
    assert samples["neuroflux_traffic_bytes_total", (("direction", "up"),)] == 600
    assert samples["neuroflux_traffic_bytes_total", (("direction", "down"),)] == 400
    assert (samples["neuroflux_round_seconds_count", ()], samples["neuroflux_round_seconds_sum", ()]) == (2, 24.0)
    device = ("device", "7")
    assert samples["neuroflux_device_budget_bytes", (device,)] == 64
    assert samples["neuroflux_device_peak_bytes", (device, ("source", "predicted"))] == 60
    assert samples["neuroflux_device_peak_bytes", (device, ("source", "measured"))] == 55
    assert samples["neuroflux_device_samples_per_second", (device,)] == 12.5
    assert samples["neuroflux_device_out_of_memory_retries", (device,)] == 1
    assert samples["neuroflux_device_cache_written_bytes", (device,)] == 33
    assert samples["neuroflux_device_cache_refusals", (device,)] == 2
    assert samples["neuroflux_device_deadlines_reached", (device,)] == 3


def test_large_fleet_does_not_make_a_series_for_every_device() -> None:
    registry = CollectorRegistry()

    report_round(Metrics(registry), RECORD, [make_device(node) for node in range(MOST_DEVICES + 20)])

    budgets = [labels for name, labels in scrape(registry) if name == "neuroflux_device_budget_bytes"]
    assert len(budgets) == MOST_DEVICES
