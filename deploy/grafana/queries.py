"""PromQL out of declared metrics: a query names a metric of the catalogue and labels that it has, or fails."""

from __future__ import annotations

from dataclasses import dataclass

from neuroflux_fl import metrics as m
from neuroflux_fl.metrics import Metric

_CHOSEN = {"run": 'run="$run"', "device_class": 'device_class=~"$device_class"', "device": 'device=~"$device"'}
"""What the variables at the head of a dashboard choose; one run, any number of classes and devices."""
SCRAPED = 'job="neuroflux-devices"'
"""Devices that Prometheus asks itself; the others report to the gateway."""
ROUND_STEP = "1m"
"""Smallest step for what changes once a round: ``$__rate_interval`` is then 4 minutes at least."""
DEVICE_STEP = "15s"
"""Smallest step for what changes with a device's reports: ``$__rate_interval`` is then a minute at least."""


@dataclass(frozen=True, slots=True)
class Query:
    """One query of a panel."""

    expression: str
    legend: str = ""
    minimum_step: str = ""
    """The data source's own, the interval of its scrapes, where it is empty."""


def series(metric: Metric, suffix: str = "", **labels: str) -> str:
    """The metric's series that the dashboard's variables choose, narrowed by labels.

    Args:
        metric: of the catalogue.
        suffix: of a histogram: ``_bucket``, ``_sum`` or ``_count``.
        labels: value by name; a value that begins with ``~`` is a regular expression.

    Raises:
        ValueError: the metric has no such label, or is no histogram and was given a suffix.
    """
    if unknown := labels.keys() - set(metric.labels):
        raise ValueError(f"{metric.name} has labels {metric.labels}, not {sorted(unknown)}.")
    if bool(suffix) != (metric.kind == "histogram"):
        raise ValueError(f"{metric.name} is a {metric.kind}, and the suffix is '{suffix}'.")
    chosen = [_CHOSEN[label] for label in metric.labels if label in _CHOSEN]
    narrowed = [
        f'{name}=~"{value.removeprefix("~")}"' if value.startswith("~") else f'{name}="{value}"'
        for name, value in labels.items()
    ]
    matchers = ", ".join([*chosen, *narrowed])
    return f"{metric.name}{suffix}{{{matchers}}}" if matchers else f"{metric.name}{suffix}"


def newest(metric: Metric, *by: str, **labels: str) -> str:
    """The metric by some of its labels; two targets that tell the same thing count once."""
    return f"max by ({', '.join(by)}) ({series(metric, **labels)})"


def rate(metric: Metric, *by: str, suffix: str = "", **labels: str) -> str:
    """A counter's growth in a second, summed by some of its labels."""
    return f"sum by ({', '.join(by)}) (rate({series(metric, suffix, **labels)}[$__rate_interval]))"


def growth(metric: Metric, *by: str, suffix: str = "", **labels: str) -> str:
    """A counter's growth from one point to the next, summed by some of its labels: every event counts once.

    It takes a few scrapes to tell: give the query a smallest step.
    """
    return f"sum by ({', '.join(by)}) (increase({series(metric, suffix, **labels)}[$__interval]))"


def quantile(share: float, metric: Metric) -> str:
    """A quantile of all that a histogram has observed in the run: also right where rounds are rare."""
    return f"histogram_quantile({share}, sum by (le) ({series(metric, '_bucket')}))"


def reporting() -> str:
    """1 for each device that reports or can be scraped, 0 for one that has stopped; simulated ones are connected."""
    up = f"up{{{SCRAPED}, {_CHOSEN['device_class']}, {_CHOSEN['device']}}}"
    return f"max by (device, device_class) ({series(m.DEVICE_REPORTING)} or {up} or {series(m.DEVICE_CONNECTED)})"


def budget_share(memory: str, *by: str) -> str:
    """Memory as a share of the device's budget; nothing where a device has no budget."""
    budget = newest(m.DEVICE_BUDGET_BYTES, "device", "device_class")
    return f"max by ({', '.join(by)}) ({memory}) / on (device, device_class) group_left () {budget}"
