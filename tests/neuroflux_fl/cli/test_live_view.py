"""The view of long commands: drawn anew on a terminal, only news in a log."""

from __future__ import annotations

import io

from rich.console import Console

from neuroflux_fl.cli.live_view import LiveView


def test_a_log_gets_news_only() -> None:
    out = io.StringIO()
    with LiveView(Console(file=out, width=40)) as view:
        view.note("Something with [brackets] that is much longer than the line is wide.")
        view.show(["round 1", "exit 0 50 %"], key=1)
        view.show(["round 1, 1 answer", "exit 0 50 %"], key=1)
        view.show(["round 2", "exit 0 50 %"], key=2)
        view.show(["round 2", "exit 0 60 %"], key=3)

    assert [line.partition(" ")[2] for line in out.getvalue().splitlines()] == [
        "Something with [brackets] that is much longer than the line is wide.",
        "round 1; exit 0 50 %",
        "round 2",
        "exit 0 60 %",
    ]


def test_a_terminal_is_drawn_on_and_left_clean() -> None:
    out = io.StringIO()
    with LiveView(Console(file=out, width=80, force_terminal=True)) as view:
        view.show(["round 1", "exit 0 50 %"], key=1)
        view.note("A line that stays.")
        view.show(["round 2"], key=1)

    text = out.getvalue()
    assert "0:00:00  round 1\n" in text.replace("\r", "")
    assert "A line that stays." in text
    assert "round 2" in text
    assert text.endswith(("\x1b[2K", "\x1b[?25h"))
