"""What the check of the monitoring asks, and what it calls wrong: hand-made dashboards and answers."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FILE = Path(__file__).parents[2] / "deploy" / "panel_queries.py"


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("panel_queries", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["panel_queries"] = module  # its dataclasses look their module up
    spec.loader.exec_module(module)
    return module


queries = _load()


def _answer(*values: str, labels: dict[str, str] | None = None, matrix: bool = True) -> dict[str, Any]:
    points = [[0, value] for value in values]
    one = {"metric": labels or {}, "values": points} if matrix else {"metric": labels or {}, "value": points[0]}
    return {"status": "success", "data": {"result": [one]}}


def _question(expression: str, minimum_step: float = 5.0) -> Any:
    return queries.Question(where="", expression=expression, instant=False, minimum_step_seconds=minimum_step)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"status": "error", "error": "parse error"}, "error: parse error"),
        ({"status": "success", "data": {"result": []}}, "empty"),
        (_answer("NaN", "NaN"), "no number among 2 values"),
        (_answer("+Inf", matrix=False), "no number among 1 values"),
        (_answer("NaN", "0"), None),
        (_answer("1", matrix=False), None),
    ],
)
def test_what_is_wrong_with_an_answer(answer: dict[str, Any], reason: str | None) -> None:
    assert queries.wrong_with(answer) == reason


def test_a_legend_must_name_labels_that_are_there() -> None:
    answer = _answer("1", labels={"unit": "3"})
    assert queries.wrong_with(answer, "unit {{unit}}") is None
    assert "device" in queries.wrong_with(answer, "{{device}}: unit {{unit}}")


def test_variables_are_filled_as_grafana_does() -> None:
    chosen = {"run": "a", "device": ".*"}
    text = 'rate(x{run="$run", device=~"${device:regex}"}[$__rate_interval])'
    # Four scrapes of 5 s; with a smallest step of a minute, four minutes; over a day, the step and a scrape.
    assert queries.fill(text, chosen, _question(text), 600.0) == 'rate(x{run="a", device=~".*"}[20s])'
    assert "[240s]" in queries.fill(text, chosen, _question(text, 60.0), 600.0)
    assert "[178s]" in queries.fill(text, chosen, _question(text), 86_400.0)
    with pytest.raises(ValueError, match=r"\$run"):
        queries.fill(text, {"device": "a"}, _question(text), 600.0)


def test_comparisons_answer_in_place_of_leaving_out() -> None:
    assert queries.with_bool('a{x!="1"} > 60 + 5 * b and on (run) (c{y=~"=="} == 1)') == (
        'a{x!="1"} > bool 60 + 5 * b and on (run) (c{y=~"=="} == bool 1)'
    )
    assert queries.with_bool("a >= 10") == "a >= bool 10"
    assert queries.with_bool("a > bool 10") == "a > bool 10"


def test_every_query_of_a_dashboard_is_asked() -> None:
    dashboard = {
        "title": "T",
        "panels": [
            {"type": "row", "title": "R"},
            {
                "title": "P",
                "targets": [
                    {"refId": "A", "expr": "a", "legendFormat": "{{x}}", "interval": "1m", "format": "time_series"},
                    {"refId": "B", "expr": "b", "legendFormat": "__auto", "instant": True, "format": "table"},
                ],
            },
        ],
    }
    first, second = queries.panel_questions(dashboard)
    assert (first.where, first.minimum_step_seconds, first.legend) == ("T: P: A", 60.0, "{{x}}")
    assert (second.instant, second.minimum_step_seconds, second.legend) == (True, 5.0, "")


def test_variables_say_where_their_values_are_from() -> None:
    def variable(query: str, **more: Any) -> dict[str, Any]:
        return {"type": "query", "name": "n", "query": {"query": query}, "sort": 7} | more

    def read(entry: dict[str, Any]) -> list[Any]:
        return list(queries.query_variables({"templating": {"list": [{"type": "datasource"}, entry]}}))

    (found,) = read(variable('label_values(a{run="$run"}, device)', includeAll=True, allValue=".*"))
    assert (found.selector, found.label) == ('a{run="$run"}', "device")
    assert (found.all_value, found.newest_first) == (".*", False)
    assert read(variable("label_values(a, run)", sort=8))[0].newest_first is True
    with pytest.raises(ValueError, match="asks for something else"):
        read(variable("query_result(a)"))
