"""*Fleet*: is it learning, who takes part, what goes wrong, what does it cost, when does it end."""

from __future__ import annotations

from board import Line, Section, device_link, make_dashboard
from grafana_foundation_sdk.models import dashboard as types
from panels import LIVE_STEPS, NAME, Text, bars, bucket_map, one_value, time_series
from queries import DEVICE_STEP, ROUND_STEP, SCRAPED, Query, budget_share, growth, newest, quantile, rate, reporting
from queries import series as chosen
from tables import Column, value_table

from neuroflux_fl import metrics as m

REPORTING_WORDS = {"0": ("gone", "red"), "1": ("reporting", "green")}


def fleet_dashboard() -> types.Dashboard:
    """The dashboard to look at first."""
    sections = (_learning(), _devices(), _trouble(), _cost(), _telemetry())
    return make_dashboard("neuroflux-fleet", "Is the fleet learning, who takes part, and when does it end?", sections)


def _learning() -> Section:
    best = f"max by (split) ({chosen(m.EXIT_ACCURACY)})"
    return Section(
        "Is it learning?",
        (
            Line(4, (
                (3, one_value(
                    Text(title="Phase", unit="none", description="What the run is doing now."),
                    Query(f"{chosen(m.PHASE)} == 1", "{{phase}}"), shows=NAME,
                )),
                (5, one_value(
                    Text(title="Rounds", unit="none", description="Rounds completed, and the most that the run makes: "
                         "it stops earlier when a further stage no longer helps."),
                    Query(newest(m.ROUND, "run"), "completed"), Query(newest(m.ROUNDS_PLANNED, "run"), "at most"),
                )),
                (3, one_value(
                    Text(title="Time left", unit="s", description="Rounds left, times the mean of the last five. An "
                         "upper bound where the run stops early."),
                    Query(newest(m.REMAINING_SECONDS, "run"), "time left"),
                )),
                (4, one_value(
                    Text(title="Best exit", unit="percentunit", decimals=1, description="Accuracy of the best exit. An "
                         "exit is a model that ends early in the network; validation comes from the devices before a "
                         "round, test from the server after it."),
                    Query(best, "{{split}}"),
                )),
                (3, one_value(
                    Text(title="Alerts firing", unit="none", description="Alert rules of Prometheus that fire now; its "
                         "page /alerts says which."),
                    Query('count(ALERTS{alertstate="firing"}) or vector(0)', "firing"), steps=((1, "red"),),
                )),
                (3, one_value(
                    Text(title="Server disk", unit="percentunit", decimals=0, description="Free share of the disk that "
                         "the run's results are on."),
                    Query(f"min({m.SERVER_DISK_FREE.name} / {m.SERVER_DISK_SIZE.name})", "free"),
                )),
                (3, one_value(
                    Text(title="Run time", unit="s", description="Time of the run so far, without interruptions."),
                    Query(newest(m.RUN_SECONDS, "run"), "so far"),
                )),
            )),
            Line(8, (
                (12, time_series(
                    Text(title="Accuracy of the best exit", unit="percentunit", decimals=1, description="The best of "
                         "all exits after every round. It should rise; small dips are normal when the fleet starts on "
                         "a deeper stage."),
                    Query(best, "{{split}}"), high=1.0, calculations=("lastNotNull", "max"),
                )),
                (6, time_series(
                    Text(title="Rounds and stage", unit="none", decimals=0, description="Rounds completed, and the "
                         "stage in training. A flat line of rounds means that the run stands still."),
                    Query(newest(m.ROUND, "run"), "rounds"), Query(newest(m.STAGE, "run"), "stage"),
                )),
                (6, time_series(
                    Text(title="Time left", unit="s", description="The estimate over time: it falls at the pace of the "
                         "clock while rounds take what they took."),
                    Query(newest(m.REMAINING_SECONDS, "run"), "time left"),
                )),
            )),
        ),
    )  # fmt: skip


def _devices() -> Section:
    by = ("device", "device_class")
    scraped = f"(count(up{{{SCRAPED}}} == 1) or vector(0))"
    # Without a gateway, in a simulation: what the devices themselves tell.
    all_reporting = f"sum({m.DEVICES_REPORTING.name}) + {scraped} or count({reporting()} == 1)"
    held = f"max_over_time({chosen(m.DEVICE_TRAINING_BYTES)}[5m])"
    most_memory = f"{held} or {chosen(m.DEVICE_BLOCK_PEAK_BYTES, source='measured')}"
    samples = chosen(m.DEVICE_SAMPLES)
    of_scraped = f"{samples.removesuffix('}')}, {SCRAPED}}}"
    class_speed = (
        f"sum by (device_class) (rate({chosen(m.CLASS_SAMPLES)}[$__rate_interval]) "
        f"or rate({of_scraped}[$__rate_interval])) or {rate(m.DEVICE_SAMPLES, 'device_class')}"
    )
    return Section(
        "Who takes part?",
        (
            Line(9, ((24, value_table(
                Text(title="Devices", unit="none", description="One row a device; a name leads to its own page. Memory "
                     "is the most that training held in the last five minutes or at a block's measured peak, as a "
                     "share of the budget: over 100 % is a defect. Where a device is gone, so are its readings."),
                Column(name="Device", label="device", link=device_link()),
                Column(name="Class", label="device_class"),
                Column(name="State", query=Query(reporting()), words=REPORTING_WORDS, width=110),
                Column(name="Works", query=Query(newest(m.DEVICE_BUSY, *by)),
                       words={"0": ("waits", "text"), "1": ("works", "blue")}, width=90),
                Column(name="Round", query=Query(newest(m.DEVICE_ROUND, *by)), width=80),
                Column(name="Memory of its budget", bar=True, steps=LIVE_STEPS, unit="percentunit", decimals=0,
                       query=Query(budget_share(most_memory, *by))),
                Column(name="Samples a second", unit="none", decimals=1,
                       query=Query(rate(m.DEVICE_SAMPLES, *by), minimum_step=ROUND_STEP)),
                Column(name="Hottest", unit="celsius", decimals=0, steps=((75, "orange"), (85, "red")),
                       query=Query(newest(m.DEVICE_TEMPERATURE, *by)), width=90),
                Column(name="Disk free", unit="percentunit", decimals=0,
                       width=100,
                       query=Query(f"{newest(m.DEVICE_DISK_FREE, *by)} / {newest(m.DEVICE_DISK_SIZE, *by)}")),
                Column(name="Out of memory", query=Query(newest(m.DEVICE_OOM_RETRIES, *by)), steps=((1, "orange"),),
                       width=130),
                sort_by="Device",
            )),)),
            Line(8, (
                (12, time_series(
                    Text(title="Devices", unit="none", decimals=0, description="Connected to the server for work; "
                         "reporting to the telemetry gateway or scraped by Prometheus; and of the phase in progress, "
                         "how many answers are awaited and how many have come."),
                    Query(newest(m.NODES_CONNECTED, "run"), "connected"),
                    Query(all_reporting, "reporting"),
                    Query(newest(m.ANSWERS_WANTED, "run"), "answers wanted"),
                    Query(newest(m.ANSWERS_RECEIVED, "run"), "answers come"),
                )),
                (6, bars(
                    Text(title="Contributors of each unit", unit="none", decimals=0, description="Devices whose update "
                         "of a unit went into the model in the last round. Units that no device has memory for keep "
                         "their weights."),
                    Query(newest(m.UNIT_CONTRIBUTORS, "unit"), "unit {{unit}}"),
                )),
                (6, time_series(
                    Text(title="Samples a second by class", unit="none", decimals=1, description="Training speed of "
                         "all devices of a class together, those without labels of their own included."),
                    Query(class_speed, "{{device_class}}", ROUND_STEP),
                    stacked=True, calculations=("mean", "lastNotNull"),
                )),
            )),
        ),
    )  # fmt: skip


def _trouble() -> Section:
    return Section(
        "What goes wrong?",
        (
            Line(8, (
                (8, time_series(
                    Text(title="Tasks of finished rounds", unit="none", decimals=1, description="Training tasks by "
                         "outcome: answered, failed on the device, or missing when the round ended."),
                    Query(growth(m.TASKS, "outcome"), "{{outcome}}", ROUND_STEP), stacked=True, bars=True,
                    calculations=("max",),
                )),
                (8, time_series(
                    Text(title="Updates not aggregated", unit="none", decimals=1, description="Updates that the server "
                         "checked and refused, by reason. Any at all deserve a look at the device that sent them."),
                    Query(growth(m.UPDATES_REJECTED, "reason"), "{{reason}}", ROUND_STEP), stacked=True, bars=True,
                    calculations=("max",),
                )),
                (8, time_series(
                    Text(title="Late, sent again, below quorum", unit="none", decimals=1, description="Answers that "
                         "came after their round (used at a discount, or dropped), tasks that were sent again, and "
                         "rounds in which too few devices answered."),
                    Query(growth(m.LATE_ANSWERS, "fate"), "late, {{fate}}", ROUND_STEP),
                    Query(growth(m.TASKS_RESENT), "sent again", ROUND_STEP),
                    Query(growth(m.ROUNDS_BELOW_QUORUM), "rounds below quorum", ROUND_STEP),
                    bars=True, calculations=("max",),
                )),
            )),
        ),
    )  # fmt: skip


def _cost() -> Section:
    return Section(
        "What does it cost?",
        (
            Line(8, (
                (8, time_series(
                    Text(title="Bytes a second", unit="Bps", description="Traffic between server and devices in "
                         "training rounds; up is towards the server. It is counted at a round's end."),
                    Query(rate(m.TRAFFIC_BYTES, "direction"), "{{direction}}", ROUND_STEP),
                    calculations=("mean", "max"),
                )),
                (4, one_value(
                    Text(title="Bytes so far", unit="bytes", description="Traffic of the run between server and "
                         "devices; up is towards the server."),
                    Query(newest(m.TRAFFIC_BYTES, "direction"), "{{direction}}"),
                )),
                (6, time_series(
                    Text(title="Round duration", unit="s", description="Half of the run's rounds took less than the "
                         "median, nine in ten less than the 90 % line. Estimated from a histogram."),
                    Query(quantile(0.5, m.ROUND_SECONDS), "median"), Query(quantile(0.9, m.ROUND_SECONDS), "90 %"),
                )),
                (6, bucket_map(
                    Text(title="Rounds by duration", unit="s", description="Every round is a dark cell at its end, as "
                         "high as it took. Cells that climb tell of stragglers."),
                    Query(growth(m.ROUND_SECONDS, "le", suffix="_bucket"), "{{le}}", ROUND_STEP),
                )),
            )),
            Line(8, (
                (8, time_series(
                    Text(title="Aggregation", unit="s", description="Time of a round in which the server checked, "
                         "added and averaged updates: what the server itself costs."),
                    Query(quantile(0.5, m.AGGREGATION_SECONDS), "median"),
                    Query(quantile(0.9, m.AGGREGATION_SECONDS), "90 %"),
                )),
                (8, time_series(
                    Text(title="Devices at work", unit="none", decimals=1, description="Time that all devices spent on "
                         "training in a second: 3 means that three were at work the whole time. It is counted at a "
                         "round's end."),
                    Query(rate(m.DEVICE_SECONDS), "device seconds a second", ROUND_STEP), calculations=("mean", "max"),
                )),
                (8, time_series(
                    Text(title="Free disk of the server", unit="bytes", description="Room for the run's results: "
                         "weights, state and answers."),
                    Query(f"min({m.SERVER_DISK_FREE.name})", "free"), Query(f"max({m.SERVER_DISK_SIZE.name})", "size"),
                )),
            )),
        ),
    )  # fmt: skip


def _telemetry() -> Section:
    return Section(
        "Can these figures be trusted?",
        (
            Line(7, (
                (8, time_series(
                    Text(title="Reports a second", unit="none", decimals=2, description="Reports of devices that came "
                         "to the telemetry gateway. Repeated ones had come before; malformed and oversized ones are "
                         "dropped."),
                    Query(rate(m.REPORTS, "outcome"), "{{outcome}}"), stacked=True, calculations=("mean",),
                )),
                (8, time_series(
                    Text(title="Reports lost, labels refused", unit="none", decimals=1, description="Reports that a "
                         "device made and that never came (it was offline for longer than its buffer lasts), and label "
                         "values beyond what the gateway allows."),
                    Query(growth(m.REPORTS_LOST), "reports lost", DEVICE_STEP),
                    Query(growth(m.LABELS_REFUSED, "label"), "refused: {{label}}", DEVICE_STEP), calculations=("max",),
                )),
                (8, time_series(
                    Text(title="Streams", unit="none", decimals=1, description="Devices connected to the telemetry "
                         "gateway now, and attempts that it did not let in, by reason: an unknown or revoked key, a "
                         "proof that does not fit."),
                    Query(f"sum({m.STREAMS.name})", "connected"),
                    Query(growth(m.STREAMS_REFUSED, "reason"), "refused: {{reason}}", DEVICE_STEP),
                    calculations=("max",),
                )),
            )),
        ),
    )  # fmt: skip
