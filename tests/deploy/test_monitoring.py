"""Dashboards and alert rules: made from their code, about declared metrics, laid out well, tested."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from neuroflux_fl.metrics import CATALOGUE, Metric

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
PROMETHEUS = DEPLOY / "prometheus"
Json = dict[str, Any]
DASHBOARDS: dict[str, Json] = {
    path.stem: json.loads(path.read_text(encoding="utf-8"))
    for path in sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
}
RULES: list[Json] = yaml.safe_load((PROMETHEUS / "rules.yml").read_text())["groups"][0]["rules"]
SELECTOR = re.compile(r"(?P<name>[A-Za-z_]+)(?:\{(?P<matchers>[^}]*)\})?")
OF_PROMETHEUS = {"up": {"job", "instance", "device", "device_class"}, "ALERTS": {"alertstate"}}
BY = re.compile(r"\b(?:by|on|group_left|label_replace) ?\(([^)]*)\)")
WORDS = {
    "alertname", "and", "avg", "avg_over_time", "bool", "by", "count", "group_left", "histogram_quantile", "increase",
    "last_over_time", "max", "max_over_time", "min", "on", "or", "rate", "sum", "time", "topk", "unless", "vector",
}  # fmt: skip
LABELS = {label for metric in CATALOGUE for label in metric.labels} | {"le"}


def _declared() -> dict[str, Metric]:
    """Metric by the name of each of its series."""
    suffixes = {"histogram": ("_bucket", "_sum", "_count")}
    return {metric.name + end: metric for metric in CATALOGUE for end in suffixes.get(metric.kind, ("",))}


def _tool(name: str, package: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed: Debian's package {package} has it")
    return found


def _run(*command: str | Path) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def _panels(dashboard: Json) -> list[Json]:
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def _expressions() -> Iterator[tuple[str, str]]:
    for name, dashboard in DASHBOARDS.items():
        for panel in _panels(dashboard):
            for target in panel["targets"]:
                yield f"{name}: {panel['title']}: {target['refId']}", target["expr"]
        for variable in dashboard["templating"]["list"]:
            if variable["type"] == "query":
                yield f"{name}: variable {variable['name']}", variable["query"]["query"]
    for rule in RULES:
        yield rule["alert"], rule["expr"]


def _unknown_in(expression: str) -> Iterator[str]:
    """Metrics that nobody declares, and labels that a metric does not have."""
    declared = {name: set(metric.labels) for name, metric in _declared().items()} | OF_PROMETHEUS
    plain = re.sub(r"label_values\((.*), \w+\)\Z", r"\1", expression)
    for words in BY.findall(plain):
        yield from (f"label {word}" for word in re.findall(r"\w+", words) if word not in LABELS)
    plain = re.sub(r"\[[^\]]*\]", "", BY.sub("", plain))
    for found in SELECTOR.finditer(re.sub(r'"[^"]*"', '""', plain)):
        name, matchers = found["name"], found["matchers"]
        if name not in declared:
            if name not in WORDS:
                yield f"metric {name}"
            continue
        allowed = declared[name] | {"le", "job"}
        used = re.findall(r"(\w+) *(?:=~|!~|!=|=)", matchers or "")
        yield from (f"label {label} of {name}" for label in used if label not in allowed)


@pytest.mark.parametrize("script", ["grafana/generate.py", "prometheus/generate_rules.py"])
def test_the_committed_files_are_what_their_code_gives(script: str) -> None:
    if script.startswith("grafana"):
        pytest.importorskip("grafana_foundation_sdk.cog", reason="grafana-foundation-sdk is not installed")
    _run(sys.executable, DEPLOY / script, "--check")


@pytest.mark.parametrize(("where", "expression"), list(_expressions()), ids=[where for where, _ in _expressions()])
def test_every_query_is_about_declared_metrics_and_their_labels(where: str, expression: str) -> None:
    assert list(_unknown_in(expression)) == []


def test_a_query_about_something_else_is_found() -> None:
    assert list(_unknown_in('rate(neuroflux_rounds{run="$run"}[5m])')) == ["metric neuroflux_rounds"]
    assert list(_unknown_in('neuroflux_round{device="a"}')) == ["label device of neuroflux_round"]
    assert list(_unknown_in("sum by (divice) (neuroflux_round)")) == ["label divice"]
    assert list(_unknown_in("neuroflux_round_seconds")) == ["metric neuroflux_round_seconds"]


def test_every_metric_is_shown_or_warned_of() -> None:
    text = " ".join(expression for _, expression in _expressions())
    seen = {metric.name for name, metric in _declared().items() if re.search(rf"\b{name}\b", text)}
    assert {metric.name for metric in CATALOGUE} - seen == {"neuroflux_build_info"}


@pytest.mark.parametrize("dashboard", DASHBOARDS.values(), ids=DASHBOARDS.keys())
def test_every_panel_explains_itself(dashboard: Json) -> None:
    for panel in _panels(dashboard):
        defaults = panel["fieldConfig"]["defaults"]
        assert panel["title"]
        assert len(panel["description"]) > 20, panel["title"]
        assert defaults["unit"], panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}"
        for target in panel["targets"]:
            assert target["refId"]
            assert target["legendFormat"]
            assert target["datasource"]["uid"] == "${datasource}"
            if panel["type"] in ("timeseries", "bargauge"):
                assert target["legendFormat"] != "__auto", panel["title"]


@pytest.mark.parametrize("dashboard", DASHBOARDS.values(), ids=DASHBOARDS.keys())
def test_panels_fill_the_grid_without_overlap(dashboard: Json) -> None:
    cells: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        mine = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not mine & cells, panel["title"]
        cells |= mine
    height = max(y for _, y in cells) + 1
    assert cells == {(x, y) for x in range(24) for y in range(height)}
    assert [panel["id"] for panel in dashboard["panels"]] == list(range(1, len(dashboard["panels"]) + 1))


@pytest.mark.parametrize(("name", "dashboard"), DASHBOARDS.items(), ids=DASHBOARDS.keys())
def test_dashboards_choose_the_same_and_lead_to_each_other(name: str, dashboard: Json) -> None:
    variables = [variable["name"] for variable in dashboard["templating"]["list"]]
    assert variables[:4] == ["datasource", "run", "device_class", "device"]
    uids = {other["uid"] for other in DASHBOARDS.values()}
    assert len(uids) == 3
    assert {link["url"].split("/")[2] for link in dashboard["links"]} == uids - {dashboard["uid"]}
    assert all(link["keepTime"] and link["includeVars"] for link in dashboard["links"])
    known = {*variables, "__rate_interval", "__range", "__interval"}
    for where, expression in _expressions():
        if where.startswith(f"{name}:"):
            assert set(re.findall(r"\$\{?(\w+)", expression)) <= known, where


def test_alerts_say_what_to_do_about_labels_that_they_have() -> None:
    assert len({rule["alert"] for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert set(rule["annotations"]) == {"summary", "description", "action"}
        grouped = {label for words in BY.findall(rule["expr"]) for label in re.findall(r"\w+", words)}
        whole = {label for name in OF_PROMETHEUS | _declared() if name in rule["expr"] for label in
                 (OF_PROMETHEUS[name] if name in OF_PROMETHEUS else _declared()[name].labels)}  # fmt: skip
        kept = grouped if re.match(r"(sum|max) by", rule["expr"]) or rule["expr"].startswith("time()") else whole
        for text in rule["annotations"].values():
            assert set(re.findall(r"\$labels\.(\w+)", text)) <= kept, rule["alert"]


def test_rules_fire_and_do_not_fire() -> None:
    tested = (PROMETHEUS / "rules_test.yml").read_text()
    assert [rule["alert"] for rule in RULES if f'alertname="{rule["alert"]}"' not in tested] == []
    _run(_tool("promtool", "prometheus"), "test", "rules", PROMETHEUS / "rules_test.yml")


@pytest.mark.parametrize("name", ["prometheus.yml", "prometheus.containers.yml"])
def test_prometheus_takes_its_configuration(name: str) -> None:
    _run(_tool("promtool", "prometheus"), "check", "config", PROMETHEUS / name)


def test_alertmanager_takes_its_configuration() -> None:
    _run(_tool("amtool", "prometheus-alertmanager"), "check-config", DEPLOY / "alertmanager" / "alertmanager.yml")


def test_containers_have_the_same_prometheus_with_other_addresses() -> None:
    text = (PROMETHEUS / "prometheus.yml").read_text()
    text = text.replace("127.0.0.1:9464", "server:9464").replace("127.0.0.1:9093", "alertmanager:9093")
    assert yaml.safe_load((PROMETHEUS / "prometheus.containers.yml").read_text()) == yaml.safe_load(text)


def test_scraped_devices_cannot_speak_for_others() -> None:
    gateway, devices = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["scrape_configs"]
    assert gateway["honor_labels"] is True
    assert "honor_labels" not in devices
    assert devices["sample_limit"] == 2000
    kept, dropped = devices["metric_relabel_configs"][:2]
    for metric in CATALOGUE:
        taken = re.fullmatch(kept["regex"], metric.name) and not re.fullmatch(dropped["regex"], metric.name)
        assert bool(taken) == (metric.set_by == "device"), metric.name


def test_grafana_finds_what_compose_mounts() -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yml").read_text())["services"]["grafana"]
    targets = {volume.split(":")[1]: volume.split(":")[0] for volume in compose["volumes"]}
    assert targets[compose["environment"]["NEUROFLUX_DASHBOARDS"]] == "./grafana/dashboards"
    home = Path(compose["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert home.stem in DASHBOARDS
    used = set()
    for file in (DEPLOY / "grafana" / "provisioning").rglob("*.yml"):
        values = yaml.safe_load(file.read_text())
        assert values["apiVersion"] == 1
        used |= set(re.findall(r": \$(\w+)", file.read_text()))
    assert used == {"PROMETHEUS_URL", "NEUROFLUX_DASHBOARDS"}
    assert used <= set(compose["environment"])
    interval = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["global"]["scrape_interval"]
    assert f"timeInterval: {interval}" in (DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text()
