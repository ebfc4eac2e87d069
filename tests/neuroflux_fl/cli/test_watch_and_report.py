"""The commands that read a run's folder: what they print, write and refuse."""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from neuroflux_fl.cli.main import main
from neuroflux_fl.cli.watch_view import bar, clock, draw_run, sparkline
from server.live_facts import LiveRun, live_facts
from server.run_folder import read_run_folder

WriteRun = Callable[..., Path]


@pytest.fixture
def run_main(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[Any, str, str]]:
    def run(*arguments: str) -> tuple[Any, str, str]:
        monkeypatch.setattr(sys, "argv", ["neuroflux-fl", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return ended.value.code, out, err

    return run


def live(out: Path) -> LiveRun:
    return live_facts(read_run_folder(out), time.time())


def drawn(run: LiveRun, width: int, **options: Any) -> str:
    console = Console(file=io.StringIO(), width=width)
    with console.capture() as capture:
        console.print(draw_run(run, width=width, **options))
    return capture.get()


def test_report_writes_a_page_and_says_where(
    run_main: Callable[..., tuple[Any, str, str]], write_run: WriteRun, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib", reason="the extra 'report' is not installed")
    out = write_run(tmp_path / "state/out", devices=2, rounds=1)

    code, text, _ = run_main("report", str(tmp_path / "state"), "--json")

    assert code == 0
    told = json.loads(text)
    page = out / "report.html"
    assert (told["report"], told["bytes"], told["chosen_exit"]) == (str(page), page.stat().st_size, 4)
    assert page.read_text().startswith("<!doctype html>")
    assert not list(out.glob("*.tmp"))

    code, text, _ = run_main("report", str(out), "--out", str(tmp_path / "other.html"))
    assert (code, text) == (0, f"sample, finished: {tmp_path / 'other.html'}\n")


@pytest.mark.parametrize("command", ["report", "watch"])
def test_a_folder_without_a_run_is_an_error_of_files(
    command: str, run_main: Callable[..., tuple[Any, str, str]], tmp_path: Path
) -> None:
    code, _, err = run_main(command, str(tmp_path))

    assert code == 6
    assert "holds no run" in err


def test_watch_json_is_one_document(
    run_main: Callable[..., tuple[Any, str, str]], write_run: WriteRun, tmp_path: Path
) -> None:
    out = write_run(tmp_path / "out", devices=3, rounds=2, finished=False)

    code, text, _ = run_main("watch", str(out), "--json")

    told = json.loads(text)
    assert code == 0
    assert (told["phase"], told["rounds_done"], len(told["devices"])) == ("training", 2, 3)
    assert told["exits"][0]["accuracies"] == list(live(out).exits[0].accuracies)


def test_watch_writes_a_line_for_each_round_and_ends_with_the_run(
    run_main: Callable[..., tuple[Any, str, str]],
    write_run: WriteRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = write_run(tmp_path / "out", devices=3, rounds=1, finished=False)
    later = [{"rounds": 1, "finished": False}, {"rounds": 2, "finished": False}, {"rounds": 6, "finished": True}]

    def go_on(seconds: float) -> None:
        (out / "answers.jsonl").unlink()
        write_run(out, devices=3, **later.pop(0))

    monkeypatch.setattr(time, "sleep", go_on)
    code, text, _ = run_main("watch", str(out))

    lines = [line.partition(" ")[2] for line in text.splitlines()]
    assert code == 0
    rounds = [line.partition(",")[0] for line in lines if "rounds" in line]
    assert rounds == ["training; 1 of 6 rounds", "training; 2 of 6 rounds", "finished; 6 of 6 rounds"]
    assert sum(line.startswith("Stragglers") for line in lines) == 1
    assert not later


def test_ctrl_c_ends_watching_cleanly(
    run_main: Callable[..., tuple[Any, str, str]],
    write_run: WriteRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", interrupt)
    code, _, err = run_main("watch", str(write_run(tmp_path / "out", rounds=1, finished=False)))

    assert (code, err) == (0, "")


@pytest.mark.parametrize("width", [40, 60, 80, 100, 160])
def test_the_view_fits_the_terminal(width: int, write_run: WriteRun, tmp_path: Path) -> None:
    run = live(write_run(tmp_path / "out", rounds=3, finished=False, reporting=True, names=("n" * 60,)))

    text = drawn(run, width)

    assert all(len(line) <= width for line in text.splitlines())
    assert "device-4" in text
    if width >= 100:
        assert "…" not in text.replace("n…", "")
        assert "25.7M of 24M" in text


def test_the_view_shows_the_most_interesting_devices_of_many(write_run: WriteRun, tmp_path: Path) -> None:
    run = live(write_run(tmp_path / "out", devices=100, rounds=2, finished=False))

    text = drawn(run, 100)
    text = text[text.index("peak of budget") :]
    assert text.index("device-4 ") < text.index("device-2 ")
    assert "and 80 more" in text
    assert len(drawn(run, 100, height=24).splitlines()) <= 24


def test_names_are_not_markup_and_ascii_terminals_get_ascii(write_run: WriteRun, tmp_path: Path) -> None:
    out = write_run(tmp_path / "out", devices=1, rounds=1, finished=False, names=("[red]x[/red]\x1b[2J",))

    text = drawn(live(out), 100, ascii_only=True)

    assert "[red]x[/red]?[2J" in text
    assert text.isascii()


def test_sparklines_bars_and_clocks() -> None:
    assert sparkline([0.0, 0.5, 1.0], columns=8) == "▁▅█"
    assert sparkline([0.2, 0.0, 0.5, 1.0], columns=3) == "▁▅█"
    assert sparkline([0.5, 0.5], columns=3, ascii_only=True) == "__"
    assert sparkline([], columns=3) == ""
    assert [bar(share, columns=4) for share in (0.0, 0.5, 1.7)] == ["░░░░", "██░░", "████"]
    assert [clock(seconds) for seconds in (5, 65, 3661)] == ["0:05", "1:05", "1:01:01"]
