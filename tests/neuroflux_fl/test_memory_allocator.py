"""What a process is started with, and tcmalloc's limits against resident memory in processes that it serves."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from neuroflux_fl import memory_allocator
from neuroflux_fl.memory_allocator import FreedMemory, allocator_environment

_PRELUDE = """
import json
import torch
from neuroflux_fl.device_memory import PeakMeter, run_keeping, warm_up_kernels
from neuroflux_fl.memory_allocator import FreedMemory, return_freed_memory_at_once
MIB = 2**20
torch.set_num_threads(1)
exact = return_freed_memory_at_once()
warm_up_kernels()
meter = PeakMeter(torch.device("cpu"))
def touch(mib):
    return torch.ones(mib * MIB // 4)
"""

TCMALLOC = {
    "LD_PRELOAD": "libtcmalloc_minimal.so.4",
    "THP_MEM_ALLOC_ENABLE": "0",
    "TCMALLOC_RELEASE_RATE": "0",
}


def _run(code: str) -> object:
    environment = os.environ | allocator_environment(os.environ)
    if "LD_PRELOAD" not in environment or "tcmalloc" not in environment["LD_PRELOAD"]:
        pytest.skip("tcmalloc is not installed (Debian: libtcmalloc-minimal4), or another allocator is preloaded")
    done = subprocess.run(
        [sys.executable, "-c", _PRELUDE + code],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    answer: object = json.loads(done.stdout)
    return answer


@pytest.mark.parametrize(
    ("environment", "library", "added"),
    [
        ({}, "libtcmalloc_minimal.so.4", TCMALLOC),
        ({}, None, {"THP_MEM_ALLOC_ENABLE": "1"}),
        ({"THP_MEM_ALLOC_ENABLE": "0"}, None, {}),
        ({"LD_PRELOAD": "libjemalloc.so.2"}, "libtcmalloc_minimal.so.4", {"THP_MEM_ALLOC_ENABLE": "1"}),
        ({"NEUROFLUX_FL_ALLOCATOR": "system"}, "libtcmalloc_minimal.so.4", {"THP_MEM_ALLOC_ENABLE": "1"}),
    ],
)
def test_a_process_gets_tcmalloc_where_it_is_installed_and_nothing_else_is_wanted(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], library: str | None, added: dict[str, str]
) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(memory_allocator, "_library", lambda: library)

    assert allocator_environment(environment) == added


def test_without_tcmalloc_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_allocator, "_tcmalloc", lambda: None)
    freed = FreedMemory(2**30)
    with freed.kept():
        pass

    assert not freed.give_up()


def test_freed_memory_is_kept_inside_and_given_back_outside() -> None:
    held = _run("""
meter.start()
touch(64)
outside = meter.held_bytes()
freed = FreedMemory(96 * MIB)
with freed.kept():
    touch(64)
    inside = meter.held_bytes()
print(json.dumps([exact, outside // MIB, inside // MIB, meter.held_bytes() // MIB]))
""")
    assert isinstance(held, list)
    exact, outside, inside, after = held
    assert exact is True
    assert outside < 4
    assert 60 < inside < 70
    assert after < 4


def test_what_is_kept_is_kept_however_much_is_freed() -> None:
    least = _run("""
meter.start()
freed = FreedMemory(96 * MIB)
least = []
with freed.kept():
    for _ in range(80):
        touch(64)
        least.append(meter.held_bytes())
print(json.dumps(min(least) // MIB))
""")
    assert isinstance(least, int)
    assert least > 60


def test_what_is_kept_makes_room_before_the_limit_is_passed() -> None:
    # Sizes that no earlier piece fits exactly: kept alone, the pieces would come to more than twice the limit.
    peak = _run("""
meter.start()
freed = FreedMemory(64 * MIB)
with freed.kept():
    for mib in range(5, 54, 3):
        one, other = touch(mib // 2), touch(mib - mib // 2)
        del one
        touch(3)
        del other
print(json.dumps(meter.peak_bytes() // MIB))
""")
    assert isinstance(peak, int)
    assert 48 < peak <= 64


def test_tables_of_the_allocator_are_no_part_of_a_limit() -> None:
    outcome = _run("""
tries = []
def work():
    tries.append(1)
    return touch(59).numel()
meter.start()
freed = FreedMemory(64 * MIB)
run_keeping(freed, work)
print(json.dumps([len(tries), meter.peak_bytes() // MIB]))
""")

    assert outcome in ([1, 58], [1, 59])


def test_what_does_not_fit_fails_and_succeeds_once_nothing_is_kept() -> None:
    outcome = _run("""
tries = []
def work():
    tries.append(1)
    return touch(80).numel() * 4 // MIB
freed = FreedMemory(64 * MIB)
size = run_keeping(freed, work)
again = run_keeping(freed, work)
print(json.dumps([len(tries), size, again, freed.widen()]))
""")

    assert outcome == [3, 80, 80, False]


def test_what_is_expected_is_the_limit_until_memory_runs_out() -> None:
    # Sizes that no earlier piece fits exactly, as above.
    outcome = _run("""
tries = []
def work(largest):
    tries.append(largest)
    for mib in range(5, largest, 3):
        one, other = touch(mib // 2), touch(mib - mib // 2)
        del one
        touch(3)
        del other
    return meter.held_bytes() // MIB
meter.start()
freed = FreedMemory(96 * MIB, expected_bytes=48 * MIB)
kept_of_few = run_keeping(freed, lambda: work(40))
few = meter.peak_bytes() // MIB
kept_of_many = run_keeping(freed, lambda: work(80))
many = meter.peak_bytes() // MIB
print(json.dumps([tries, kept_of_few, few, kept_of_many, many, [freed.widen(), freed.widen()]]))
""")

    assert isinstance(outcome, list)
    tries, kept_of_few, few, kept_of_many, many, widened = outcome
    assert tries == [40, 80, 80]
    assert 30 < kept_of_few <= 48 >= few
    assert 60 < kept_of_many <= 96 >= many, "kept under the wider limit, not given back"
    assert widened == [True, False]


def test_small_limits_no_limit_and_other_memory_keep_nothing() -> None:
    outcome = _run("print(json.dumps([FreedMemory(*a).give_up() for a in ((31 * MIB,), (None,), (64 * MIB, 'cuda'))]))")

    assert outcome == [False, False, False]


def test_a_heap_that_grows_stays_in_addresses_it_has_a_table_for() -> None:
    grown = _run("""
from neuroflux_fl.memory_allocator import _tcmalloc
def heap():
    return _tcmalloc()._get("generic.heap_size")
before = heap()
held = [torch.empty(8 * MIB // 4) for _ in range(40)]
print(json.dumps([len(held), heap() - before]))
""")

    assert grown == [40, 0]


def test_a_few_bytes_take_no_huge_page_where_a_large_array_lay() -> None:
    # numpy asks the kernel for huge pages under its large arrays, and the addresses stay marked when they are free.
    held = _run("""
import numpy as np
large = np.ones(64 * MIB, np.uint8)
del large
meter.start()
pieces = [torch.empty(MIB // 4, dtype=torch.uint8) for _ in range(200)]
for piece in pieces:
    piece[:1] = 1
print(json.dumps(meter.held_bytes() // MIB))
""")
    assert isinstance(held, int)
    assert held < 4
