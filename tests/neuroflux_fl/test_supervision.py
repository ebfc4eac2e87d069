"""Children that end are started again and are taken along when their supervisor goes: with real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from neuroflux_fl import supervision
from neuroflux_fl.backoff import Backoff
from neuroflux_fl.stop_request import StopRequest
from neuroflux_fl.supervision import Child, Ended, stop_all

QUICK = Backoff(first_seconds=0.01, largest_seconds=0.02, jitter=0.0)
FOREVER = "import time; time.sleep(600)"
WITH_CHILD = "import subprocess, time; print(subprocess.Popen(['sleep', '600']).pid, flush=True); time.sleep(600)"

MakeChild = Callable[..., Child]


@pytest.fixture
def make_child(tmp_path: Path) -> Iterator[MakeChild]:
    made: list[Child] = []

    def make(code: str, backoff: Backoff = QUICK, clock: Callable[[], float] = time.monotonic) -> Child:
        child = Child(
            "Worker", lambda: python(code), log=tmp_path / "worker.log", environment=os.environ, backoff=backoff,
            clock=clock,
        )  # fmt: skip
        made.append(child)
        child.start()
        return child

    yield make
    stop_all(made, grace_seconds=0.0)


def python(code: str) -> Sequence[str]:
    return [sys.executable, "-I", "-S", "-c", code]


def tick_until(child: Child, condition: Callable[[], bool], seconds: float = 20.0) -> list[Ended]:
    """Ends that were told of meanwhile."""
    ends: list[Ended] = []
    deadline = time.monotonic() + seconds
    while not condition():
        ended = child.tick()
        if ended is not None:
            ends.append(ended)
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return ends


def running(child: Child) -> int:
    """Start it and wait until it has printed something; its process id."""
    tick_until(child, lambda: child.pid is not None)
    assert child.pid is not None
    return child.pid


def printed_pid(child: Child) -> int:
    tick_until(child, lambda: child.recent_output().strip().isdigit())
    return int(child.recent_output())


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone(pid: int, seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not alive(pid)


def test_pauses_double_up_to_the_largest() -> None:
    backoff = Backoff(first_seconds=1.0, largest_seconds=10.0, jitter=0.2)

    assert [backoff.pause(failures, 0.5) for failures in (1, 2, 3, 4, 5, 1000)] == [1, 2, 4, 8, 10, 10]
    assert backoff.pause(3, 0.0) == pytest.approx(3.2)
    assert backoff.pause(3, 1.0) == pytest.approx(4.8)


def test_what_ends_is_started_again_whatever_its_exit_code(make_child: MakeChild) -> None:
    for code in (0, 3):
        child = make_child(f"import sys; sys.exit({code})")

        ends = tick_until(child, lambda child=child: child.starts == 3)  # type: ignore[misc]

        assert [(ended.name, ended.exit_code, ended.failures) for ended in ends[:2]] == [
            ("Worker", code, 1),
            ("Worker", code, 2),
        ]


def test_nothing_is_started_before_the_pause_is_over(make_child: MakeChild) -> None:
    now = [100.0]
    child = make_child("", Backoff(first_seconds=5.0, jitter=0.0), lambda: now[0])
    (ended,) = tick_until(child, lambda: child.failures == 1)

    now[0] += 4.9
    child.tick()
    assert (child.starts, child.pid) == (1, None)
    now[0] += 0.2
    child.tick()

    assert child.starts == 2
    assert ended.pause_seconds == 5.0


def test_a_settled_life_forgives_earlier_failures(make_child: MakeChild) -> None:
    now = [0.0]
    child = make_child(FOREVER, Backoff(first_seconds=1.0, jitter=0.0, settled_seconds=60.0), lambda: now[0])
    failures = []
    for lived in (1.0, 1.0, 61.0):
        now[0] += 10.0
        child.tick()
        now[0] += lived
        child.kill()
        failures += [ended.failures for ended in tick_until(child, lambda: child.pid is None)]

    assert failures == [1, 2, 1]


def test_the_end_is_told_in_words() -> None:
    fields = {"name": "SuperNode", "seconds": 61.7, "pause_seconds": 4.0, "failures": 1}

    assert Ended(exit_code=-9, **fields).describe() == (  # type: ignore[arg-type]
        "SuperNode was ended by signal 9 (Killed) after 62 s; it is started again in 4 s."
    )
    assert "ended with exit code 0 after" in Ended(exit_code=0, **fields).describe()  # type: ignore[arg-type]


def test_ends_in_a_row_are_told_ever_more_rarely() -> None:
    fields = {"name": "A", "exit_code": 0, "seconds": 1.0, "pause_seconds": 1.0}

    told = [number for number in range(1, 40) if Ended(failures=number, **fields).noteworthy]  # type: ignore[arg-type]

    assert told == [1, 2, 4, 8, 16, 32]


def test_stopping_ends_the_children_of_a_child(make_child: MakeChild) -> None:
    child = make_child(WITH_CHILD)
    grandchild = printed_pid(child)
    pid = child.pid

    child.stop(grace_seconds=0.5)

    assert pid is not None
    assert not alive(pid)
    assert gone(grandchild)
    assert not child.wanted
    assert child.tick() is None


def test_who_does_not_listen_is_killed(make_child: MakeChild) -> None:
    child = make_child(
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(600)"
    )
    printed_pid(child)
    pid = child.pid

    child.stop(grace_seconds=0.2)

    assert pid is not None
    assert not alive(pid)


def test_several_are_given_their_time_to_end_side_by_side(tmp_path: Path) -> None:
    said = "import signal, sys, time\nsignal.signal(15, lambda *_: sys.exit(print('bye')))\nprint(1, flush=True)"
    children = [
        Child(str(index), lambda: python(f"{said}\ntime.sleep(600)"), log=tmp_path / f"{index}", environment=os.environ)
        for index in range(2)
    ]
    for child in children:
        child.start()
        tick_until(child, lambda child=child: "1" in child.recent_output())  # type: ignore[misc]

    stop_all(children)

    assert [child.recent_output().split() for child in children] == [["1", "bye"], ["1", "bye"]]


def test_what_a_dead_child_leaves_behind_is_killed_after_a_while(make_child: MakeChild) -> None:
    now = [0.0]
    child = make_child(WITH_CHILD, Backoff(first_seconds=1000.0), lambda: now[0])
    grandchild = printed_pid(child)
    child_pid = running(child)

    os.kill(child_pid, signal.SIGKILL)
    tick_until(child, lambda: child.pid is None)
    assert alive(grandchild)
    now[0] += 11.0
    child.tick()

    assert gone(grandchild)


@pytest.mark.skipif(sys.platform != "linux", reason="The kernel's help is Linux's")
def test_children_die_with_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    supervise = f"""
import os, time
from pathlib import Path
from neuroflux_fl.supervision import Child
child = Child("W", lambda: ["sleep", "600"], log=Path({str(tmp_path / "log")!r}), environment=os.environ)
child.start(); child.tick(); print(child.pid, flush=True); time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", supervise], stdout=subprocess.PIPE, text=True) as supervisor:
        assert supervisor.stdout is not None
        pid = int(supervisor.stdout.readline())
        deadline = time.monotonic() + 10
        while "sleep" not in Path(f"/proc/{pid}/cmdline").read_text() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert alive(pid)
        supervisor.kill()

    assert gone(pid)


def test_a_child_leads_a_session_of_its_own(make_child: MakeChild) -> None:
    pid = running(make_child(FOREVER))

    assert os.getsid(pid) == pid != os.getsid(0)


def test_whether_it_runs_something(make_child: MakeChild) -> None:
    parent, lonely = make_child(WITH_CHILD), make_child(FOREVER)
    printed_pid(parent)
    running(lonely)

    assert parent.runs_something() in (True, None)
    assert lonely.runs_something() in (False, None)


def test_recent_output_is_that_of_the_latest_start(make_child: MakeChild) -> None:
    child = make_child("import os; print('I am', os.getpid())")

    tick_until(child, lambda: child.starts == 2)
    latest = child.pid
    tick_until(child, lambda: bool(child.recent_output()))

    assert child.recent_output().split() == ["I", "am", str(latest)]
    assert len(child.log.read_text().splitlines()) == 2


def test_logs_do_not_grow_for_ever(make_child: MakeChild, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "_LOG_BYTES", 1000)
    now = [0.0]
    child = make_child("import time\nprint('x' * 2000, flush=True)\ntime.sleep(600)", clock=lambda: now[0])
    tick_until(child, lambda: len(child.recent_output()) > 2000)

    now[0] += 61.0
    child.tick()

    assert child.log.stat().st_size == 0
    assert child.log.with_name("worker.log.1").stat().st_size == 2001
    assert child.recent_output() == ""


def test_a_signal_is_noted_and_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop:
        assert stop.received is None
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)

        assert stop.received is signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before
