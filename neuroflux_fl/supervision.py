"""Keeps child processes running: starts them, starts them again after growing pauses, ends them and all of theirs."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from neuroflux_fl import die_with_parent
from neuroflux_fl.backoff import Backoff
from neuroflux_fl.errors import StorageError

Command = Callable[[], Sequence[str]]


class Watcher(Protocol):
    """Shows people what a supervisor does."""

    def note(self, text: str) -> None:
        """Something happened once: a line that stays."""

    def show(self, lines: Sequence[str], key: object) -> None:
        """How things stand. Where there is nothing to draw on, only a new ``key`` is worth new lines."""


_ORPHAN_SECONDS = 10.0
_LOG_BYTES = 16 * 1024**2
_LOG_CHECK_SECONDS = 60.0
_OUTPUT_BYTES = 8192
_POLL_SECONDS = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a child came to its end, and when it is started again."""

    name: str
    exit_code: int
    """Negative: the signal that ended it."""
    seconds: float
    """How long it lived."""
    pause_seconds: float
    """Until the next start."""
    failures: int
    """Ends in a row without a settled life between them."""

    @property
    def noteworthy(self) -> bool:
        """Whether to tell people: of the first, second, fourth, eighth... end in a row. A log is to last for weeks."""
        return self.failures & (self.failures - 1) == 0

    def describe(self) -> str:
        """One sentence for people."""
        if self.exit_code < 0:
            how = f"was ended by signal {-self.exit_code} ({signal.strsignal(-self.exit_code) or 'unknown'})"
        else:
            how = f"ended with exit code {self.exit_code}"
        return f"{self.name} {how} after {self.seconds:.0f} s; it is started again in {self.pause_seconds:.0f} s."


class Child:
    """One process that is to run for as long as its supervisor wants.

    Nothing happens by itself: call ``tick`` a few times a second, always from the thread that lives as long as the
    supervisor, since the kernel ends a child with the thread that started it. The process leads a session of its own,
    so a Ctrl-C in the terminal reaches only the supervisor, and ending it ends everything that it started.
    """

    def __init__(
        self,
        name: str,
        command: Command,
        *,
        log: Path,
        environment: Mapping[str, str],
        folder: Path | None = None,
        backoff: Backoff | None = None,
        death_signal: signal.Signals = signal.SIGTERM,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """Nothing is started yet.

        Args:
            name: for messages.
            command: called at each start, since a free port or a file may have changed.
            log: gets what the process and its children print; kept below about twice 16 MiB.
            environment: the whole environment.
            folder: its working directory; by default the log's.
            backoff: pauses between starts.
            death_signal: what the kernel sends the process when the supervisor dies, even of SIGKILL (Linux).
            clock: seconds, never going back.
            draw: random numbers from 0 to 1.
        """
        self.name = name
        self.log = log
        self.starts = 0
        self.failures = 0
        self._command = command
        self._environment = {**environment, "PYTHONUNBUFFERED": "1"}
        self._folder = folder or log.parent
        self._backoff = backoff or Backoff()
        self._death_signal = death_signal
        self._clock = clock
        self._draw = draw
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._start_at: float | None = None
        self._log_start = 0
        self._log_checked_at = clock()
        self._orphans: list[tuple[int, float]] = []

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return None if self._process is None else self._process.pid

    @property
    def seconds(self) -> float:
        """How long the present process has lived; 0 where there is none."""
        return 0.0 if self._process is None else self._clock() - self._started_at

    @property
    def wanted(self) -> bool:
        """Whether it runs or is to be started again."""
        return self._process is not None or self._start_at is not None

    def start(self) -> None:
        """Have it started at the next tick; no effect on one that is wanted already."""
        if not self.wanted:
            self._start_at = self._clock()

    def tick(self) -> Ended | None:
        """Start the process if it is time, and tell of its end once.

        Raises:
            StorageError: the log cannot be written.
        """
        now = self._clock()
        self._kill_orphans(now)
        self._bound_log(now)
        if self._process is not None and self._process.poll() is not None:
            return self._note_end(self._process, now)
        if self._process is None and self._start_at is not None and now >= self._start_at:
            self._launch(now)
        return None

    def kill(self) -> None:
        """End a process that hangs, at once; the next ticks tell of its end and start it again."""
        if self._process is not None:
            _signal_group(self._process.pid, signal.SIGKILL)

    def stop(self, grace_seconds: float = 8.0) -> None:
        """End the process and all of its session, by force after ``grace_seconds``; it is not started again."""
        stop_all([self], grace_seconds)

    def runs_something(self) -> bool | None:
        """Whether the process has a living child of its own; None where the platform does not tell."""
        if self._process is None:
            return False
        pid = self._process.pid
        try:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        except OSError:
            return None
        return any(_is_alive(child) for child in children)

    def recent_output(self) -> str:
        """What the present process, or the last one, has printed: the last 8 KiB."""
        try:
            with self.log.open("rb") as file:
                end = file.seek(0, os.SEEK_END)
                file.seek(max(self._log_start if self._log_start <= end else 0, end - _OUTPUT_BYTES))
                return file.read().decode(errors="replace")
        except OSError:
            return ""

    def _launch(self, now: float) -> None:
        command = list(self._command())
        if sys.platform.startswith("linux"):
            launcher = [sys.executable, "-I", "-S", die_with_parent.__file__]
            command = [*launcher, str(os.getpid()), str(int(self._death_signal)), *command]
        try:
            with self.log.open("ab") as log:
                self._log_start = log.tell()
                self._process = subprocess.Popen(
                    command,
                    cwd=self._folder,
                    env=self._environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        except OSError as error:
            raise StorageError(f"{self.name} cannot be started with log {self.log}: {error.strerror}.") from error
        self.starts += 1
        self._started_at = now
        self._start_at = None

    def _note_end(self, process: subprocess.Popen[bytes], now: float) -> Ended:
        lived = now - self._started_at
        self._leave_orphans(process.pid, now)
        self._process = None
        self.failures = 1 if lived >= self._backoff.settled_seconds else self.failures + 1
        pause = self._backoff.pause(self.failures, self._draw())
        self._start_at = now + pause
        return Ended(
            name=self.name,
            exit_code=process.returncode,
            seconds=lived,
            pause_seconds=pause,
            failures=self.failures,
        )

    def _leave_orphans(self, group: int, now: float) -> None:
        """What the process has started may see for itself that its parent is gone, and is killed if it does not.

        No SIGTERM for it: a Flower app ends by itself then, and a second signal would cut its farewell off.
        """
        if _signal_group(group, 0):
            self._orphans.append((group, now + _ORPHAN_SECONDS))

    def _kill_orphans(self, now: float) -> None:
        for group, deadline in list(self._orphans):
            if now >= deadline:
                _signal_group(group, signal.SIGKILL)
                self._orphans.remove((group, deadline))

    def _bound_log(self, now: float) -> None:
        if now < self._log_checked_at + _LOG_CHECK_SECONDS:
            return
        self._log_checked_at = now
        with suppress(OSError):
            if self.log.stat().st_size > _LOG_BYTES:
                # The process keeps its file open for appending: copy and cut, do not rename.
                shutil.copyfile(self.log, self.log.with_name(self.log.name + ".1"))
                os.truncate(self.log, 0)
                self._log_start = 0

    def _finish_stop(self, deadline: float) -> None:
        """Second half of ``stop``: wait, then kill."""
        process, self._process, self._start_at = self._process, None, None
        groups = [group for group, _ in self._orphans]
        self._orphans.clear()
        if process is not None:
            groups.append(process.pid)
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                _signal_group(process.pid, signal.SIGKILL)
                process.wait()
        while any(_signal_group(group, 0) for group in groups) and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        for group in groups:
            _signal_group(group, signal.SIGKILL)


def stop_all(children: Iterable[Child], grace_seconds: float = 8.0) -> None:
    """End several children side by side; those still alive after ``grace_seconds`` are killed."""
    ending = list(children)
    for child in ending:
        if child.pid is not None:
            # Only the process itself: its own children see that it has gone, and end in their own way.
            with suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGTERM)
    deadline = time.monotonic() + grace_seconds
    for child in ending:
        child._finish_stop(deadline)


def _is_alive(pid: str) -> bool:
    try:
        # The name in parentheses may hold anything; the state follows it.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (OSError, IndexError):
        return False


def _signal_group(group: int, number: int) -> bool:
    """Whether a process of the group was there to get the signal."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True
