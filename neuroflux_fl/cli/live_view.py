"""One view for commands that run for days: drawn anew on a terminal, a line for each event in a log."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Console
from rich.live import Live
from rich.text import Text


class LiveView:
    """Implements ``neuroflux_fl.supervision.Watcher`` on a console."""

    def __init__(self, console: Console) -> None:
        """Nothing is drawn before its block begins."""
        self._console = console
        # No thread of its own: the supervisor calls often enough.
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self._key: object = None
        self._shown: set[str] = set()
        self._began = time.monotonic()

    def __enter__(self) -> LiveView:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def note(self, text: str) -> None:
        """A line with the time of day, above the view."""
        self._console.print(Text(f"{time.strftime('%H:%M:%S')} {text}"), soft_wrap=True)

    def show(self, lines: Sequence[str], key: object) -> None:
        """Draw the lines anew; in a log, where the key is new, those that the log does not end with anyway."""
        if self._live is not None:
            seconds = int(time.monotonic() - self._began)
            clock = f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
            drawn = "\n  ".join([f"{clock}  {lines[0]}", *lines[1:]])
            self._live.update(Text(drawn), refresh=True)
        elif key != self._key:
            news = [line for line in lines if line not in self._shown]
            self._key, self._shown = key, set(lines)
            if news:
                self.note("; ".join(news))
