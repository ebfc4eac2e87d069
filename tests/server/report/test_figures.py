"""What figures show of a run, and that many of them can stand in one page."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

pytest.importorskip("matplotlib", reason="the extra 'report' is not installed")

from server.answer_log import Answer
from server.device_totals import BlockTotals
from server.report.canvas import drawing_style, to_svg
from server.report.device_figures import device_rows, idle_seconds, memory, plans, time_use
from server.report.facts import RunFacts, read_facts
from server.report.figures import CHARTS
from server.report.learning_figures import accuracy_by_round, curves
from server.report.round_figures import timeline
from server.report.stragglers import is_straggler, typical_seconds
from server.report.themes import DARK, LIGHT, Theme

WriteRun = Callable[..., Path]


@pytest.fixture
def facts(write_run: WriteRun, tmp_path: Path) -> RunFacts:
    return read_facts(write_run(tmp_path / "out"), time.time())


def draw(chart: Callable[[RunFacts, Theme], Any], run: RunFacts, theme: Theme = LIGHT) -> str:
    with drawing_style():
        drawing = chart(run, theme)
        return to_svg(drawing.figure, "key", "label")


def texts(svg: str) -> list[str]:
    return [
        "".join(element.itertext()) for element in ElementTree.fromstring(svg).iter() if element.tag.endswith("}text")
    ]


def test_test_accuracy_is_of_a_rounds_end_and_validation_accuracy_of_its_begin(facts: RunFacts) -> None:
    by_unit = {curve.unit: curve for curve in curves(facts)}
    assert by_unit[0].ends == (1, 2, 3, 6)  # frozen after the third round, and scored again at the end
    assert by_unit[7].ends == (4, 5, 6)
    assert by_unit[7].accuracies[0] == facts.rounds[3].test[7]

    untested = replace(
        facts, rounds=tuple(replace(record, test={}) for record in facts.rounds),
        exits=tuple(replace(exit, test=None) for exit in facts.exits),
    )  # fmt: skip
    by_unit = {curve.unit: curve for curve in curves(untested)}
    assert by_unit[0].ends == (0, 1, 2, 6)
    assert by_unit[0].accuracies[0] == facts.rounds[0].exits[0]


def test_blocks_of_two_plans_stand_in_two_rows(facts: RunFacts) -> None:
    def block(first: int, last: int) -> BlockTotals:
        return BlockTotals(first_unit=first, last_unit=last, batch_size=8)

    device = facts.devices[0]
    changed = replace(
        device, totals=replace(device.totals, blocks=(block(0, 1), block(0, 2), block(2, 3), block(3, 3)))
    )

    rows = device_rows(changed)

    spans = [[(block.first_unit, block.last_unit) for block in blocks] for _, _, blocks in rows]
    assert spans == [[(0, 1), (2, 3)], [(0, 2), (3, 3)]]


def test_memory_marks_what_is_over_the_budget(facts: RunFacts) -> None:
    svg = draw(memory, facts)

    assert "25.7 (107 %)" in texts(svg)
    fine = replace(facts, devices=facts.devices[:3])
    assert not any("%" in text for text in texts(draw(memory, fine)))


def test_plans_show_batch_sizes_and_hatch_untrained_units(facts: RunFacts) -> None:
    svg = draw(plans, replace(facts, devices=facts.devices[4:5]))

    batches = [str(block.batch_size) for block in facts.devices[4].totals.blocks]
    shown = texts(svg)
    assert all(batch in shown for batch in batches)
    hatched = "fill: url(#key-h"
    # One more than in the legend.
    assert svg.count(hatched) == draw(plans, replace(facts, devices=facts.devices[:1])).count(hatched) + 1


def test_stragglers_are_over_twice_the_median_of_at_least_three() -> None:
    def answer(round: int, seconds: float | None) -> Answer:
        fate = "missing" if seconds is None else "answered"
        return Answer(round=round, node_id=1, sent_at=0.0, seconds=seconds, fate=fate)

    answers = [answer(1, 10.0), answer(1, 11.0), answer(1, 22.5), answer(1, None), answer(2, 1.0), answer(2, 90.0)]
    typical = typical_seconds(answers)

    assert typical == {1: 11.0}
    assert [is_straggler(one, typical) for one in answers] == [False, False, True, False, False, False]


def test_idle_time_is_what_is_left_and_never_negative() -> None:
    answer = Answer(round=1, node_id=1, sent_at=0.0, seconds=10.0, fate="answered", train=6.0, cache=1.0)

    assert idle_seconds(answer) == 3.0
    assert idle_seconds(replace(answer, train=20.0)) == 0.0
    assert idle_seconds(replace(answer, seconds=None)) == 0.0


def test_the_timeline_marks_missing_and_late_answers(facts: RunFacts) -> None:
    without_late = tuple(answer for answer in facts.answers if answer.fate == "answered")
    plain = draw(timeline, replace(facts, answers=without_late))
    assert draw(timeline, facts).count(LIGHT.alarm) > plain.count(LIGHT.alarm)


def test_a_long_timeline_shows_the_latest_rounds_and_says_so(write_run: WriteRun, tmp_path: Path) -> None:
    run = read_facts(write_run(tmp_path / "long", devices=50, rounds=12, planned=12, finished=False), time.time())

    with drawing_style():
        drawing = timeline(run, LIGHT)

    assert drawing is not None
    assert drawing.note.startswith("40 of 50 devices")
    assert "Rounds 5 to 12" in drawing.note


@pytest.mark.parametrize("chart", [accuracy_by_round, memory, time_use, timeline])
def test_there_is_no_figure_of_nothing(chart: Callable[..., object], write_run: WriteRun, tmp_path: Path) -> None:
    run = read_facts(write_run(tmp_path / "none", rounds=0, finished=False), time.time())

    assert chart(run, LIGHT) is None


def test_svgs_keep_text_and_share_nothing(facts: RunFacts) -> None:
    name = "日本 $x$ <b>"
    facts = replace(facts, devices=(replace(facts.devices[0], name=name), *facts.devices[1:]))
    with drawing_style():
        drawings = [(theme, memory(facts, theme)) for theme in (LIGHT, DARK)]
        svgs = [to_svg(drawing.figure, f"memory-{theme.name}", "Memory") for theme, drawing in drawings if drawing]

    assert all(name in texts(svg) for svg in svgs)
    ids = [set(re.findall(r'\bid="([^"]+)"', svg)) for svg in svgs]
    assert ids[0]
    assert not ids[0] & ids[1]
    for svg, own in zip(svgs, ids, strict=True):
        named = set(re.findall(r"url\(#([^)]+)\)", svg)) | set(re.findall(r'xlink:href="#([^"]+)"', svg))
        assert named
        assert named <= own
        assert "<style" not in svg
        assert not re.search(r'(?:href|src)="(?!#)', svg)


def test_every_chart_has_its_own_key_and_is_explained() -> None:
    assert len({chart.key for chart in CHARTS}) == len(CHARTS)
    assert all(len(chart.reading) > 60 for chart in CHARTS)
