"""*Device*: memory against the budget block by block, batch sizes, speed, temperature, cache, what went wrong."""

from __future__ import annotations

from board import Line, Section, make_dashboard
from fleet_dashboard import REPORTING_WORDS
from grafana_foundation_sdk.models import dashboard as types
from panels import LIVE_STEPS, PEAK_STEPS, Text, bars, time_series
from queries import DEVICE_STEP, ROUND_STEP, Query, budget_share, growth, newest, rate, reporting
from queries import series as chosen
from tables import Column, value_table

from neuroflux_fl import metrics as m

_HEAT = ((75.0, "orange"), (85.0, "red"))


def device_dashboard() -> types.Dashboard:
    """The dashboard of one device, or of a few side by side."""
    sections = (_state(), _memory(), _speed(), _cache(), _machine(), _trouble())
    return make_dashboard(
        "neuroflux-device", "Memory, speed, temperature and cache of the devices chosen above.", sections
    )


def _state() -> Section:
    by = ("device", "device_class")
    return Section(
        "How is it?",
        (
            Line(8, ((24, value_table(
                Text(title="State", unit="none", description="The chosen devices. Connected tells of work, state of "
                     "telemetry: a device can do without the latter."),
                Column(name="Device", label="device"),
                Column(name="Class", label="device_class"),
                Column(name="State", query=Query(reporting()), words=REPORTING_WORDS),
                Column(name="Connected", query=Query(newest(m.DEVICE_CONNECTED, *by)),
                       words={"0": ("no", "red"), "1": ("yes", "green")}),
                Column(name="Works", query=Query(newest(m.DEVICE_BUSY, *by)),
                       words={"0": ("waits", "text"), "1": ("works", "blue")}),
                Column(name="Round", query=Query(newest(m.DEVICE_ROUND, *by))),
                Column(name="Budget", unit="bytes", query=Query(newest(m.DEVICE_BUDGET_BYTES, *by))),
                Column(name="Tasks answered", query=Query(newest(m.DEVICE_TASKS, *by))),
                Column(name="Deadlines", query=Query(newest(m.DEVICE_DEADLINES, *by)), steps=((1, "orange"),)),
                Column(name="Out of memory", query=Query(newest(m.DEVICE_OOM_RETRIES, *by)), steps=((1, "orange"),)),
                Column(name="Restarts", query=Query(newest(m.DEVICE_AGENT_RESTARTS, *by)), steps=((1, "orange"),)),
                sort_by="Device",
            )),)),
        ),
    )  # fmt: skip


def _memory() -> Section:
    return Section(
        "Does it stay within its budget?",
        (
            Line(9, (
                (12, time_series(
                    Text(title="Memory of training", unit="bytes", description="What training holds now, and the "
                         "budget that it must stay under. Libraries (Python, torch, Flower) are beside the budget."),
                    Query(newest(m.DEVICE_TRAINING_BYTES, "device"), "{{device}}"),
                    Query(newest(m.DEVICE_BUDGET_BYTES, "device"), "{{device}}: budget"),
                    calculations=("lastNotNull", "max"),
                )),
                (12, bars(
                    Text(title="Peak of each block as a share of the budget", unit="percentunit", decimals=0,
                         description="A block is a run of units trained together. Predicted is what the plan was made "
                         "with, measured what really occurred. The closer to 100 % the better the plan; over it is a "
                         "defect."),
                    Query(
                        budget_share(chosen(m.DEVICE_BLOCK_PEAK_BYTES), "device", "device_class", "block", "source"),
                        "{{device}}: units {{block}}, {{source}}",
                    ),
                    steps=PEAK_STEPS, high=1.0,
                )),
            )),
            Line(8, (
                (8, time_series(
                    Text(title="Training memory as a share of the budget", unit="percentunit", decimals=0,
                         description="The dashed lines are 95 % and 100 %."),
                    Query(budget_share(chosen(m.DEVICE_TRAINING_BYTES), "device", "device_class"), "{{device}}"),
                    steps=LIVE_STEPS, soft_high=1.0, calculations=("lastNotNull", "max"),
                )),
                (8, bars(
                    Text(title="Batch size of each block", unit="none", decimals=0, description="Samples in a batch. "
                         "Small batches early in the network are the price of a small budget."),
                    Query(newest(m.DEVICE_BLOCK_BATCH_SIZE, "device", "block"), "{{device}}: units {{block}}"),
                )),
                (8, time_series(
                    Text(title="Memory of the machine", unit="bytes", description="What the training process holds in "
                         "all, libraries included, and what machine and control groups still leave."),
                    Query(newest(m.DEVICE_RESIDENT_BYTES, "device"), "{{device}}: process"),
                    Query(newest(m.DEVICE_AVAILABLE_BYTES, "device"), "{{device}}: still free"),
                )),
            )),
        ),
    )  # fmt: skip


def _speed() -> Section:
    return Section(
        "How fast is it, and where does its time go?",
        (
            Line(8, (
                (8, bars(
                    Text(title="Speed of each block", unit="none", decimals=1, description="Samples a second that go "
                         "through a block in training, in the pass in progress or the last one."),
                    Query(newest(m.DEVICE_BLOCK_SPEED, "device", "block"), "{{device}}: units {{block}}"),
                )),
                (8, time_series(
                    Text(title="Samples a second", unit="none", decimals=1, description="Training samples that the "
                         "device gets through, waiting included; a sample counts once for every block."),
                    Query(rate(m.DEVICE_SAMPLES, "device"), "{{device}}", DEVICE_STEP), calculations=("mean", "max"),
                )),
                (8, time_series(
                    Text(title="Where time goes", unit="percentunit", decimals=0, description="Share of time, as the "
                         "mean of the chosen devices: profile (measuring to make a plan), train, cache (writing "
                         "activations), evaluate, and wait for the next task."),
                    Query(f"avg by (activity) (rate({chosen(m.DEVICE_ACTIVITY_SECONDS)}[$__rate_interval]))",
                          "{{activity}}", DEVICE_STEP),
                    stacked=True, soft_high=1.0, calculations=("mean",),
                )),
            )),
            Line(8, (
                (12, time_series(
                    Text(title="Loss at each unit", unit="none", decimals=3, description="Mean local loss at the head "
                         "of a unit in the device's last pass. Each falls while its unit learns."),
                    Query(newest(m.DEVICE_UNIT_LOSS, "device", "unit"), "{{device}}: unit {{unit}}"), low=None,
                )),
                (12, time_series(
                    Text(title="Tasks answered", unit="none", decimals=0, description="Tasks of any kind since the "
                         "device's program started; a flat line while others rise is a device that is left out."),
                    Query(newest(m.DEVICE_TASKS, "device"), "{{device}}"),
                )),
            )),
        ),
    )  # fmt: skip


def _cache() -> Section:
    return Section(
        "Does the cache work?",
        (
            Line(7, (
                (8, time_series(
                    Text(title="Cache on the disk", unit="bytes", description="Activations of finished blocks that the "
                         "device keeps, so that it need not compute them again."),
                    Query(newest(m.DEVICE_CACHE_BYTES, "device"), "{{device}}"), calculations=("lastNotNull", "max"),
                )),
                (8, time_series(
                    Text(title="Hits and writes", unit="none", decimals=1, description="How often cached activations "
                         "were there, and how often a set was written. Hits without writes: the cache is warm."),
                    Query(growth(m.DEVICE_CACHE_HITS, "device"), "{{device}}: hits", DEVICE_STEP),
                    Query(growth(m.DEVICE_CACHE_WRITES, "device"), "{{device}}: writes", DEVICE_STEP),
                    calculations=("max",),
                )),
                (8, time_series(
                    Text(title="Written", unit="Bps", description="Bytes of activations written to the disk in a "
                         "second: what the cache costs a memory card."),
                    Query(rate(m.DEVICE_CACHE_WRITTEN_BYTES, "device"), "{{device}}", DEVICE_STEP),
                    calculations=("mean", "max"),
                )),
            )),
        ),
    )  # fmt: skip


def _machine() -> Section:
    by = ("device", "device_class")
    return Section(
        "Is the machine well?",
        (
            Line(8, (
                (8, time_series(
                    Text(title="Temperature", unit="celsius", decimals=0, description="Of the GPU, and of the board's "
                         "hottest zone. Most boards slow down from 80 to 85 degrees on."),
                    Query(newest(m.DEVICE_TEMPERATURE, "device", "sensor"), "{{device}}: {{sensor}}"), steps=_HEAT,
                    low=None, calculations=("lastNotNull", "max"),
                )),
                (8, time_series(
                    Text(title="Power", unit="watt", decimals=1, description="Power drawn by the GPU, and by the board "
                         "where it has a sensor."),
                    Query(newest(m.DEVICE_POWER, "device", "sensor"), "{{device}}: {{sensor}}"),
                    calculations=("mean", "max"),
                )),
                (8, time_series(
                    Text(title="Free disk", unit="percentunit", decimals=0, description="Free share of the disk that "
                         "holds state and cache. The cache stops writing before the disk is full."),
                    Query(f"{newest(m.DEVICE_DISK_FREE, *by)} / {newest(m.DEVICE_DISK_SIZE, *by)}", "{{device}}"),
                    high=1.0,
                )),
            )),
            Line(8, (
                (12, time_series(
                    Text(title="GPU memory", unit="bytes", description="In use by everyone on the GPU, and its size. "
                         "Empty where no device has an NVIDIA GPU."),
                    Query(newest(m.DEVICE_GPU_BYTES, "device"), "{{device}}: in use"),
                    Query(newest(m.DEVICE_GPU_SIZE_BYTES, "device"), "{{device}}: size"),
                )),
                (12, time_series(
                    Text(title="GPU at work", unit="percentunit", decimals=0, description="Share of the time in which "
                         "the GPU was at work. Empty where no device has an NVIDIA GPU."),
                    Query(newest(m.DEVICE_GPU_UTILISATION, "device"), "{{device}}"), high=1.0, calculations=("mean",),
                )),
            )),
        ),
    )  # fmt: skip


def _trouble() -> Section:
    return Section(
        "What went wrong?",
        (
            Line(7, (
                (8, time_series(
                    Text(title="Out of memory", unit="none", decimals=1, description="Batches that were halved after "
                         "an out-of-memory error. Training went on, slower; a plan should not lead there."),
                    Query(growth(m.DEVICE_OOM_RETRIES, "device"), "{{device}}", ROUND_STEP), calculations=("max",),
                )),
                (8, time_series(
                    Text(title="Deadlines and cache refusals", unit="none", decimals=1, description="Tasks that the "
                         "deadline cut short, and sets of activations for which quota or disk had no room."),
                    Query(growth(m.DEVICE_DEADLINES, "device"), "{{device}}: deadlines", ROUND_STEP),
                    Query(growth(m.DEVICE_CACHE_REFUSALS, "device"), "{{device}}: refusals", ROUND_STEP),
                    calculations=("max",),
                )),
                (8, time_series(
                    Text(title="Connection and restarts", unit="none", decimals=0, description="1 while the device has "
                         "its server, and how often its training process was started again."),
                    Query(newest(m.DEVICE_CONNECTED, "device"), "{{device}}: connected"),
                    Query(newest(m.DEVICE_AGENT_RESTARTS, "device"), "{{device}}: restarts"),
                )),
            )),
        ),
    )  # fmt: skip
