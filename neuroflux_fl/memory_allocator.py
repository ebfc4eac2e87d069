"""How the C allocator is told to keep to a memory budget: to give freed memory back, or to keep it while it fits.

Every process has glibc's allocator, which can give freed tensors back to the kernel at once: peaks are then exact, and
every step pays for fresh pages. tcmalloc, where it is installed and served the process from its start, can also keep
them for the next step inside a limit that it holds to, as CUDA's allocator does.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import sys
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache

from neuroflux_fl.sizes import MIB

ALLOCATOR_CHOICE = "NEUROFLUX_FL_ALLOCATOR"
"""An environment variable: ``system`` leaves the allocator alone."""
_SYSTEM = "system"
_LIBRARY = "tcmalloc_minimal"
_HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"
_RELEASE_RATE = "TCMALLOC_RELEASE_RATE"
"""Left alone, tcmalloc gives a piece back for every few GiB that were freed, also where they are to be kept."""

_PR_SET_THP_DISABLE = 41
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_MAP_FROM_BYTES = 128 * 1024
_THREAD_CACHE_BYTES = MIB
_ELSEWHERE_BYTES = 3 * MIB
_ELSEWHERE_SHARE = 1 / 128
"""Of a limit, for what is not in the heap: just-in-time kernels, and those tables that are touched."""
_TABLES_AT_MOST_BYTES = 64 * MIB
_PAGE_BYTES = 8 * 1024
_RESERVED_BYTES = 512 * MIB
"""Addresses that the heap may grow into. For every 2 GiB of them tcmalloc has a table of 2 MiB, made when the heap
first comes there; a block that happened to be the first to cross would hold 2 MiB that no plan counts."""
_SMALLEST_LIMIT_BYTES = 32 * MIB
"""Below, what no plan counts is too large a share: a library that cannot have a few bytes ends the process."""


def allocator_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What to add to the environment of a process that is to train, before it starts.

    tcmalloc where it is installed (Debian: libtcmalloc-minimal4). Otherwise huge pages for large tensors, which cost
    fewer page faults where freed memory goes back at once. With ``NEUROFLUX_FL_ALLOCATOR=system``, or where another
    library is preloaded already, the allocator is left alone.
    """
    library = None
    if (
        sys.platform.startswith("linux")
        and environment.get(ALLOCATOR_CHOICE) != _SYSTEM
        and "LD_PRELOAD" not in environment
    ):
        library = _library()
    if library is None:
        return {} if _HUGE_PAGES in environment else {_HUGE_PAGES: "1"}
    # Whole huge pages would be more than what tcmalloc counts.
    return {"LD_PRELOAD": library, _HUGE_PAGES: "0", _RELEASE_RATE: "0"}


def return_freed_memory_at_once() -> bool:
    """Make the allocator give every freed tensor back to the kernel at once, for the rest of the process.

    Left alone, glibc keeps freed tensors in a fragmented heap, and a training step's true peak is about twice what
    its tensors need. Mapping large allocations one by one makes the peak exact, at the price of page faults. Returns
    False where there is no glibc. Any other allocator than these two that was preloaded goes on as it likes, and the
    measured peak shows it.
    """
    tcmalloc = _tcmalloc()
    if tcmalloc is not None:
        _refuse_huge_pages()
        tcmalloc.set("tcmalloc.max_total_thread_cache_bytes", _THREAD_CACHE_BYTES)
        tcmalloc.give_back_at_once(True)
        tcmalloc.reserve(_RESERVED_BYTES)
        tcmalloc.measure_tables()
        return True
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    settings = ((_M_MMAP_THRESHOLD, _MAP_FROM_BYTES), (_M_TRIM_THRESHOLD, _MAP_FROM_BYTES), (_M_ARENA_MAX, 2))
    return all(mallopt(option, value) == 1 for option, value in settings)


def _refuse_huge_pages() -> None:
    """For this process and those that it starts.

    numpy asks for huge pages under its large arrays, and some kernels give them unasked. In a heap they stay where they
    were given: of 2 MiB that were returned all would be held again for the first few bytes, now or when the kernel
    tidies up, and a block's peak would depend on where in memory it happens to lie.
    """
    ctypes.CDLL(None).prctl(_PR_SET_THP_DISABLE, 1, 0, 0, 0)


def return_free_memory() -> None:
    """Give the heap's free pages back to the kernel, once."""
    tcmalloc = _tcmalloc()
    if tcmalloc is not None:
        tcmalloc.give_back()
    elif sys.platform.startswith("linux"):
        try:
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        except (OSError, AttributeError):
            return


class FreedMemory:
    """Freed memory that is kept for the next step, as long as everything fits a limit.

    The limit is over what is allocated when this is made. Only where ``return_freed_memory_at_once`` has told tcmalloc
    to hold to budgets; everywhere else nothing changes.
    """

    def __init__(self, limit_bytes: int | None, device_type: str = "cpu", *, expected_bytes: int | None = None) -> None:
        """Take note of what is allocated.

        Args:
            limit_bytes: how much more there may be, freed memory included; None, or less than 32 MiB, keeps nothing.
            device_type: whose memory the limit is about; of a GPU's this allocator knows nothing.
            expected_bytes: how much will probably suffice. It is the limit until memory has run out once, so that freed
                memory does not fill what others can use; at least 32 MiB.
        """
        self._tcmalloc: _Tcmalloc | None = None
        self._limits_mib: list[int] = []
        """The last is the present one."""
        if device_type != "cpu" or limit_bytes is None or limit_bytes < _SMALLEST_LIMIT_BYTES:
            return
        tcmalloc = _tcmalloc()
        if tcmalloc is not None and tcmalloc.exact:
            self._tcmalloc = tcmalloc
            counted = tcmalloc.held_bytes() + tcmalloc.tables_bytes
            limits = [limit_bytes]
            expected = limit_bytes if expected_bytes is None else max(expected_bytes, _SMALLEST_LIMIT_BYTES)
            if expected < limit_bytes:
                limits.append(expected)
            for limit in limits:
                elsewhere = _ELSEWHERE_BYTES + int(_ELSEWHERE_SHARE * limit)
                self._limits_mib.append((counted + limit - elsewhere) // MIB)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keep freed memory inside; it is given back at the end. What does not fit fails as out of memory: then
        ``widen``."""
        tcmalloc = self._tcmalloc
        if tcmalloc is None:
            yield
            return
        tcmalloc.set("tcmalloc.heap_limit_mb", self._limits_mib[-1])
        tcmalloc.give_back_at_once(False)
        try:
            yield
        finally:
            self._return_at_once(tcmalloc)

    def widen(self) -> bool:
        """After memory ran out, of which free pieces here and there may be the cause: the wider limit, or keep no more.

        Returns:
            Whether any was kept until now, so that trying again is worth it.
        """
        if self._tcmalloc is None or len(self._limits_mib) == 1:
            return self.give_up()
        self._limits_mib.pop()
        return True

    def give_up(self) -> bool:
        """Keep no more from now on.

        Returns:
            Whether any was kept until now.
        """
        kept, self._tcmalloc = self._tcmalloc, None
        if kept is not None:
            self._return_at_once(kept)
        return kept is not None

    @staticmethod
    def _return_at_once(tcmalloc: _Tcmalloc) -> None:
        tcmalloc.set("tcmalloc.heap_limit_mb", 0)
        tcmalloc.give_back_at_once(True)
        tcmalloc.give_back()


class _Tcmalloc:
    """gperftools' ``MallocExtension``, by its interface for C."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self.exact = False
        """Whether it was told to keep to budgets."""
        self.tables_bytes = 0
        """What a limit counts beside the heap: tcmalloc's own tables, mostly not touched."""
        library.malloc.argtypes, library.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
        library.free.argtypes, library.free.restype = [ctypes.c_void_p], None

    def give_back_at_once(self, at_once: bool) -> None:
        """Or keep what is freed from now on."""
        self.exact = self.exact or at_once
        self.set("tcmalloc.aggressive_memory_decommit", int(at_once))

    def give_back(self) -> None:
        """What is free now."""
        self._library.MallocExtension_ReleaseFreeMemory()

    def reserve(self, size_bytes: int) -> None:
        """Let the heap have so many more addresses, none of them touched, where the kernel grants them."""
        self._can_have(size_bytes)

    def measure_tables(self) -> None:
        """Find ``tables_bytes``, of which no property tells, by what can still be had under a generous limit."""
        limit_mib = (self.held_bytes() + 2 * _TABLES_AT_MOST_BYTES) // MIB
        self.set("tcmalloc.heap_limit_mb", limit_mib)
        sizes = range(_TABLES_AT_MOST_BYTES, 2 * _TABLES_AT_MOST_BYTES, _PAGE_BYTES)
        had = bisect_left(sizes, True, key=lambda size: not self._can_have(size)) - 1
        self.set("tcmalloc.heap_limit_mb", 0)
        if had >= 0:
            self.tables_bytes = limit_mib * MIB - sizes[had] - self.held_bytes()

    def _can_have(self, size_bytes: int) -> bool:
        address = self._library.malloc(size_bytes)
        self._library.free(address)
        return address is not None

    def held_bytes(self) -> int:
        """Of the kernel: what was handed out, and what is free and was not given back."""
        return self._get("generic.heap_size") - self._get("tcmalloc.pageheap_unmapped_bytes")

    def set(self, name: str, value: int) -> None:
        """Set a property."""
        self._library.MallocExtension_SetNumericProperty(name.encode(), ctypes.c_size_t(value))

    def _get(self, name: str) -> int:
        value = ctypes.c_size_t()
        self._library.MallocExtension_GetNumericProperty(name.encode(), ctypes.byref(value))
        return value.value


@cache
def _tcmalloc() -> _Tcmalloc | None:
    """The allocator that serves this process, if it is tcmalloc."""
    if not sys.platform.startswith("linux") or _LIBRARY not in os.environ.get("LD_PRELOAD", ""):
        return None
    served = ctypes.CDLL(None)
    return _Tcmalloc(served) if hasattr(served, "MallocExtension_SetNumericProperty") else None


@cache
def _library() -> str | None:
    return ctypes.util.find_library(_LIBRARY)
