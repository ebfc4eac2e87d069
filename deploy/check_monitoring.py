"""Does every panel and every alert get data? ``python -m deploy.check_monitoring``, from the repository's root.

Starts a real fleet on this machine (server, gateway, five devices: three push, two are scraped, one has a stand-in for
a GPU) and a real Prometheus, and asks it every query of every dashboard and every alert's expression, the comparisons
with ``bool``. An error, no series, no number, or a variable that nothing fills is a failure, and so is any complaint of
promtool about configuration, rules, their tests, or the text that gateway and devices expose. Needs ``prometheus`` and
``promtool``, and some five minutes on two cores; ``amtool``, where it is there, checks the Alertmanager's file.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.real_fleet import FleetDevice, RealFleet, set_arguments
from deploy.panel_queries import (
    Question,
    alert_questions,
    fill,
    panel_questions,
    query_variables,
    read_dashboards,
    step_seconds,
    wrong_with,
)
from deploy.prometheus_server import PrometheusServer, free_port

DEPLOY = Path(__file__).resolve().parent
STAND_IN = DEPLOY / "stand_in_gpu"
BUDGETS = ("6MiB", "8MiB", "8MiB", "12MiB", "24MiB")
SCRAPED = 2
"""Of the devices, the last ones; the very last has the stand-in for a GPU."""
SETTINGS = ("num-server-rounds=60", "local-epochs=1", "patience=2", "update-precision=float16")
PLANTED = (
    Question(where="an unknown metric", expression="neuroflux_rounds", instant=True),
    Question(where="no number", expression="0 * (neuroflux_round / 0)", instant=False),
    Question(where="half an expression", expression="sum by (run) (neuroflux_round", instant=True),
    Question(where="an unknown variable", expression='neuroflux_round{run="$rum"}', instant=True),
    Question(where="an unknown label", expression='neuroflux_round{device="device-0"}', instant=False),
    Question(where="a legend without its label", expression="neuroflux_round", instant=False, legend="{{device}}"),
)
"""Queries that must be found wrong, or nothing that the check says means anything."""
_START_SECONDS = 600.0
_PATIENCE_SECONDS = 240.0
"""For queries that have no data at first: a rate needs a few scrapes of a series that is new."""


@dataclass(slots=True)
class Tally:
    """What was looked at, and what is wrong."""

    asked: int = 0
    wrong: list[str] = field(default_factory=list)


def fleet_devices(ports: tuple[int, ...]) -> list[FleetDevice]:
    """Five devices; the last ones serve their metrics at these ports."""
    devices = []
    for number, budget in enumerate(BUDGETS):
        behind = number - (len(BUDGETS) - len(ports))
        devices.append(
            FleetDevice(
                name=f"device-{number}",
                budget=budget,
                partition_id=number,
                partitions=len(BUDGETS),
                arguments=("--metrics-port", str(ports[behind])) if behind >= 0 else (),
                launcher=("env", f"PYTHONPATH={STAND_IN}") if number == len(BUDGETS) - 1 else (),
            )
        )
    return devices


def check_queries(prometheus: PrometheusServer, started: float) -> Tally:
    """Ask everything once, about the time since ``started``."""
    tally = Tally()
    range_seconds = time.time() - started
    for dashboard in read_dashboards(DEPLOY / "grafana" / "dashboards"):
        questions = list(panel_questions(dashboard))
        for chosen in choices(dashboard, prometheus):
            if any(not value for value in chosen.values()):
                tally.wrong.append(f"{dashboard['title']}: a variable has no values: {chosen}")
            for question in questions:
                _ask(question, chosen, prometheus, started, range_seconds, tally)
    for question in alert_questions(DEPLOY / "prometheus" / "rules.yml"):
        _ask(question, {}, prometheus, started, range_seconds, tally)
    for group in prometheus.ask("rules")["data"]["groups"]:
        tally.wrong += [
            f"rule {rule['name']}: {rule['health']} {rule.get('lastError', '')}"
            for rule in group["rules"]
            if rule["health"] != "ok"
        ]
    return tally


def choices(dashboard: dict[str, Any], prometheus: PrometheusServer) -> Iterator[dict[str, str]]:
    """Values of the dashboard's variables: all where several can be chosen, else each in turn, of runs the newest."""
    found: list[dict[str, str]] = [{"datasource": "prometheus"}]
    for variable in query_variables(dashboard):
        longer = []
        for chosen in found:
            selector = fill(variable.selector, chosen, Question(where="", expression="", instant=True), 0.0)
            answer = prometheus.ask(f"label/{variable.label}/values", {"match[]": selector})
            values = sorted(answer.get("data", ()), reverse=variable.newest_first)[
                : 1 if variable.newest_first else None
            ]
            if variable.all_value:
                values = [variable.all_value] if values else []
            longer += [chosen | {variable.name: value} for value in values or [""]]
        found = longer
    yield from found


def _ask(
    question: Question,
    chosen: Mapping[str, str],
    prometheus: PrometheusServer,
    started: float,
    range_seconds: float,
    tally: Tally,
) -> None:
    tally.asked += 1
    try:
        expression = fill(question.expression, chosen, question, range_seconds)
    except ValueError as error:
        tally.wrong.append(f"{question.where}: {error}")
        return
    if question.instant:
        answer = prometheus.ask("query", {"query": expression})
    else:
        times = {"start": f"{started:.3f}", "end": f"{time.time():.3f}"}
        step = {"step": f"{step_seconds(question, range_seconds):g}s"}
        answer = prometheus.ask("query_range", {"query": expression} | times | step)
    fault = wrong_with(answer, question.legend)
    if fault is not None:
        tally.wrong.append(f"{question.where}: {fault}: {expression}")


def check_files(configuration: Path, pages: Mapping[str, str]) -> Iterator[str]:
    """What promtool and amtool complain of: in the files, and in the text of the pages (URL by name)."""
    files = DEPLOY / "prometheus"
    commands = [
        ["promtool", "check", "config", str(configuration)],
        ["promtool", "check", "config", str(files / "prometheus.yml")],
        ["promtool", "check", "config", str(files / "prometheus.containers.yml")],
        ["promtool", "check", "rules", str(files / "rules.yml")],
        ["promtool", "test", "rules", str(files / "rules_test.yml")],
    ]
    if shutil.which("amtool"):
        commands.append(["amtool", "check-config", str(DEPLOY / "alertmanager" / "alertmanager.yml")])
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        print(f"{' '.join(command[:3])} {Path(command[-1]).name}: {'ok' if done.returncode == 0 else 'WRONG'}")
        if done.returncode:
            yield f"{' '.join(command)}: {done.stdout}{done.stderr}"
    for name, url in pages.items():
        with urllib.request.urlopen(url, timeout=30) as answer:
            text = answer.read()
        checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False)
        complaint = (checked.stdout + checked.stderr).decode().strip()
        series = sum(1 for line in text.splitlines() if line and not line.startswith(b"#"))
        print(f"promtool check metrics, {name}: {len(text)} bytes, {series} series, {complaint or 'ok'}")
        if complaint or checked.returncode:
            yield f"promtool check metrics, {name}: {complaint}"


def check(folder: Path, rounds: int) -> list[str]:
    """Run fleet and Prometheus in ``folder`` until ``rounds`` are done, then check; what is wrong."""
    ports = tuple(free_port() for _ in range(SCRAPED))
    devices = fleet_devices(ports)
    (folder / "fleet").mkdir()
    (folder / "prometheus").mkdir()
    fleet = RealFleet(folder / "fleet", devices, ["--min-nodes", str(len(devices)), *set_arguments(SETTINGS)])
    gateway = f"127.0.0.1:{fleet.metrics_port}"
    with fleet, PrometheusServer(folder / "prometheus", gateway) as prometheus:
        started = time.time()
        for device in devices:
            fleet.start_device(device.name)
        for what, expression, wanted in (
            ("devices scraped", 'count(up{job="neuroflux-devices"} == 1)', SCRAPED),
            ("devices pushing", "count(neuroflux_device_reporting == 1)", len(devices) - SCRAPED),
            ("rounds", "max(neuroflux_round)", rounds),
        ):
            fleet.wait(partial(_reached, prometheus, expression, wanted), _START_SECONDS, what)
            print(f"{time.time() - started:4.0f} s: {what}: {wanted}", flush=True)
        tally = _patient(prometheus, started)
        wrong = tally.wrong + list(_missing_devices(prometheus, {device.name for device in devices}))
        wrong += [f"overlooked: {where}" for where in _overlooked(prometheus, started)]
        pages = {"gateway": gateway} | {f"device at {port}": f"127.0.0.1:{port}" for port in ports}
        urls = {name: f"http://{address}/metrics" for name, address in pages.items()}
        wrong += check_files(prometheus.configuration, urls)
        for alert in prometheus.ask("alerts")["data"]["alerts"]:
            print(f"alert {alert['state']}: {alert['labels']}")
    if fleet.left_behind:
        wrong.append(f"processes left behind: {fleet.left_behind}")
    return wrong


def _missing_devices(prometheus: PrometheusServer, names: set[str]) -> Iterator[str]:
    """Pushed or scraped, every device must be one that the dashboards offer."""
    answer = prometheus.ask("label/device/values", {"match[]": "neuroflux_device_training_bytes"})
    yield from (f"no metrics of {name}" for name in sorted(names - set(answer.get("data", ()))))


def _overlooked(prometheus: PrometheusServer, started: float) -> list[str]:
    """Those of the planted queries that were not found wrong."""
    tallies = []
    for question in PLANTED:
        tallies.append(Tally())
        _ask(question, {"run": "any"}, prometheus, started, time.time() - started, tallies[-1])
    print(f"{sum(bool(tally.wrong) for tally in tallies)} of {len(PLANTED)} planted faults found")
    return [question.where for question, tally in zip(PLANTED, tallies, strict=True) if not tally.wrong]


def _reached(prometheus: PrometheusServer, expression: str, wanted: float) -> bool:
    time.sleep(1.0)
    return (prometheus.value(expression) or 0) >= wanted


def _patient(prometheus: PrometheusServer, started: float) -> Tally:
    """Everything in one go, again until nothing is wrong or patience ends."""
    end = time.monotonic() + _PATIENCE_SECONDS
    while True:
        tally = check_queries(prometheus, started)
        print(f"{time.time() - started:4.0f} s: {tally.asked} queries, {len(tally.wrong)} without data", flush=True)
        if not tally.wrong or time.monotonic() > end:
            return tally
        time.sleep(10.0)


def main() -> int:
    """Check; returns the exit status."""
    parser = argparse.ArgumentParser(description="Does every panel and every alert get data from a real fleet?")
    parser.add_argument("--rounds", type=int, default=5, help="rounds to wait for before the queries are asked")
    parser.add_argument("--keep", type=Path, help="an empty folder for logs and data, kept; a temporary one otherwise")
    given = parser.parse_args()
    for tool in ("prometheus", "promtool"):
        if shutil.which(tool) is None:
            print(f"{tool} is not installed: Debian's package prometheus has it.", file=sys.stderr)
            return 2
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) if given.keep is None else given.keep.resolve()
        folder.mkdir(parents=True, exist_ok=True)
        wrong = check(folder, given.rounds)
    for line in wrong:
        print(f"WRONG {line}", file=sys.stderr)
    print(f"{len(wrong)} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
