"""What dashboards and alert rules ask of Prometheus, filled in as Grafana would, and what is wrong with an answer."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

Json = dict[str, Any]
SCRAPE_SECONDS = 5.0
"""Of prometheus.yml, and of the data source's ``timeInterval``."""
_UNITS = {"s": 1, "m": 60, "h": 3600}
_VARIABLE = re.compile(r"\$(?:\{(\w+)(?::\w+)?\}|(\w+))")
_LABEL_VALUES = re.compile(r"label_values\((?P<selector>.+), (?P<label>\w+)\)\Z")
_MATCHERS_OR_TEXT = re.compile(r'\{[^}]*\}|"[^"]*"')
_COMPARISON = re.compile(r"(==|!=|<=|>=|<|>)(?! *bool\b)")
_LEGEND_LABEL = re.compile(r"\{\{ *(\w+) *\}\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One query of a panel, or one rule's expression."""

    where: str
    expression: str
    instant: bool
    minimum_step_seconds: float = SCRAPE_SECONDS
    legend: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """A dashboard's variable whose values are those of a label."""

    name: str
    selector: str
    label: str
    all_value: str = ""
    """What stands for all of its values; empty where only one can be chosen."""
    newest_first: bool = False


def panel_questions(dashboard: Json) -> Iterator[Question]:
    """Every query of every panel."""
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            yield Question(
                where=f"{dashboard['title']}: {panel['title']}: {target['refId']}",
                expression=target["expr"],
                instant=target.get("instant", False),
                minimum_step_seconds=_seconds(target.get("interval", "")) or SCRAPE_SECONDS,
                legend="" if target["format"] == "table" else target["legendFormat"],
            )


def query_variables(dashboard: Json) -> Iterator[Variable]:
    """Its variables that ask Prometheus, in the order in which one may use those before it.

    Raises:
        ValueError: a variable's query is none of ``label_values(selector, label)``.
    """
    for variable in dashboard["templating"]["list"]:
        if variable["type"] != "query":
            continue
        found = _LABEL_VALUES.match(variable["query"]["query"])
        if found is None:
            raise ValueError(f"Variable {variable['name']} asks for something else: {variable['query']}")
        yield Variable(
            name=variable["name"],
            selector=found["selector"],
            label=found["label"],
            all_value=variable.get("allValue", "") if variable.get("includeAll") else "",
            newest_first=variable["sort"] in (2, 4, 6, 8),
        )


def alert_questions(rules: Path) -> Iterator[Question]:
    """Every alert's expression, with ``bool`` after each comparison: it must give a value where nothing is wrong."""
    for group in yaml.safe_load(rules.read_text(encoding="utf-8"))["groups"]:
        for rule in group["rules"]:
            yield Question(where=f"alert {rule['alert']}", expression=with_bool(rule["expr"]), instant=True)


def with_bool(expression: str) -> str:
    """The expression with comparisons that answer 0 or 1 in place of leaving series out."""
    parts, end = [], 0
    for untouched in _MATCHERS_OR_TEXT.finditer(expression):
        parts += [_COMPARISON.sub(r"\1 bool", expression[end : untouched.start()]), untouched.group()]
        end = untouched.end()
    return "".join([*parts, _COMPARISON.sub(r"\1 bool", expression[end:])])


def step_seconds(question: Question, range_seconds: float) -> float:
    """Time between two points of a panel some 500 pixels wide."""
    return max(question.minimum_step_seconds, math.ceil(range_seconds / 500))


def fill(expression: str, chosen: Mapping[str, str], question: Question, range_seconds: float) -> str:
    """The expression with every variable's value: those that are chosen, and Grafana's own.

    Raises:
        ValueError: it has a variable that nothing is known of.
    """
    step = step_seconds(question, range_seconds)
    # Grafana's rule: four scrapes at least, so that a rate has points to go by.
    rate = max(step + question.minimum_step_seconds, 4 * question.minimum_step_seconds)
    own = {"__rate_interval": rate, "__interval": step, "__range": range_seconds}
    values = dict(chosen) | {name: f"{math.ceil(value)}s" for name, value in own.items()}

    def value(found: re.Match[str]) -> str:
        name = found[1] or found[2]
        if name not in values:
            raise ValueError(f"variable ${name} has no value")
        return values[name]

    return _VARIABLE.sub(value, expression)


def wrong_with(answer: Json, legend: str = "") -> str | None:
    """Why an answer of Prometheus' ``query`` or ``query_range`` is of no use; None where it is."""
    if answer.get("status") != "success":
        return f"error: {answer.get('error', answer)}"
    series = answer["data"]["result"]
    if not series:
        return "empty"
    values = [float(value) for one in series for _, value in one.get("values") or [one["value"]]]
    if not any(math.isfinite(value) for value in values):
        return f"no number among {len(values)} values"
    missing = {name for one in series for name in _LEGEND_LABEL.findall(legend) if name not in one["metric"]}
    return f"the legend names labels that series do not have: {sorted(missing)}" if missing else None


def read_dashboards(folder: Path) -> list[Json]:
    """The committed dashboards."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]


def _seconds(text: str) -> float:
    return float(text[:-1]) * _UNITS[text[-1]] if text else 0.0
