"""The page: everything in one file, nothing from elsewhere, and texts of others as texts."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="the extra 'report' is not installed")
pytest.importorskip("jinja2", reason="the extra 'report' is not installed")

from neuroflux_fl.errors import DependencyError
from neuroflux_fl.run_config import RunConfig
from server.report.facts import read_facts
from server.report.figures import CHARTS
from server.report.page import make_page
from server.report.repeat_command import repeat_command

WriteRun = Callable[..., Path]
VOID = {"meta", "br", "img", "link", "input", "hr"}


class Tags(HTMLParser):
    """Tags, ids and links of a page; finds elements that are not closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            elif name in ("src", "href", "xlink:href", "srcset", "action", "data"):
                self.links.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def page(write_run: WriteRun, tmp_path_factory: pytest.TempPathFactory) -> str:
    names = ("<script>alert(1)</script>", 'x" onload="alert(1)', "{{ 7 * 7 }}")
    out = write_run(tmp_path_factory.mktemp("state") / "out", names=names, classes=("<img src=x>", "&amp;"))
    return make_page(read_facts(out, time.time()))


def test_the_page_is_whole_and_needs_nothing_from_elsewhere(page: str) -> None:
    tags = Tags(page)

    assert tags.open == []
    assert not {"script", "link", "img", "iframe", "object", "image"} & set(tags.tags)
    assert all(link.startswith("#") for link in tags.links)
    assert not re.search(r"@import|url\((?!#)", page)
    assert len(set(tags.ids)) == len(tags.ids)
    assert {link[1:] for link in tags.links} <= set(tags.ids)


def test_names_of_others_are_text(page: str) -> None:
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<script" not in page
    assert "&lt;img src=x&gt;" in page
    assert "{{ 7 * 7 }}" in page
    assert "&amp;amp;" in page


def test_every_figure_is_there_in_light_and_dark_with_its_reading(page: str) -> None:
    for chart in CHARTS:
        assert page.count(f'aria-label="{chart.title}"') == 2
        assert chart.title in page
    assert "prefers-color-scheme: dark" in page
    assert page.count('class="scroll light"') == page.count('class="scroll dark"') == len(CHARTS)


def test_the_header_has_the_figures_of_the_run(page: str) -> None:
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))

    assert "8x fewer than full depth (512 k)" in text
    assert "47 of 48" in text
    assert "memory budgets 6.0 MiB to 24.0 MiB" in text
    assert "Accuracy is on test images." in text


def test_a_run_without_rounds_has_a_page(write_run: WriteRun, tmp_path: Path) -> None:
    page = make_page(read_facts(write_run(tmp_path / "out", rounds=0, finished=False), time.time()))

    assert "No round has ended yet" in page
    assert "<svg" not in page
    assert Tags(page).open == []


def test_many_devices_make_no_giant_page(write_run: WriteRun, tmp_path: Path) -> None:
    out = write_run(tmp_path / "out", devices=1000, rounds=3, planned=3, finished=False)

    page = make_page(read_facts(out, time.time()))

    assert len(page) < 2_000_000
    assert "40 of 1,000 devices" in page


def test_missing_packages_are_named_with_the_remedy(
    write_run: WriteRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = read_facts(write_run(tmp_path / "out", devices=1, rounds=1), time.time())
    monkeypatch.setitem(sys.modules, "jinja2", None)

    with pytest.raises(DependencyError, match=r'jinja2.*pip install "neuroflux-fl\[report\]"'):
        make_page(run)


def test_the_command_repeats_what_differs_from_the_defaults() -> None:
    config = RunConfig(
        model="vgg16", budgets="6MiB,8MiB", require_all_classes=True, poll_seconds=0.0, out="x", run_name="y",
        data="my data", image_shape="1x28x28", class_names='["a", "b"]', mean="0.5", std="0.5",
    ).to_flat()  # fmt: skip

    simulated = repeat_command(config, devices=4, simulated=True)
    real = repeat_command(config, devices=4, simulated=False)

    assert simulated.startswith("neuroflux-fl simulate --devices 4 --set model=vgg16 --set 'data=my data'")
    assert "--set require-all-classes=true" in simulated
    assert "poll-seconds" not in simulated
    assert real == (
        "neuroflux-fl server --certs CERTS --state NEW-FOLDER --set model=vgg16 --set 'data=my data' "
        "--set require-all-classes=true --set poll-seconds=0.0"
    )
