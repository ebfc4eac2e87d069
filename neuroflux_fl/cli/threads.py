"""``--threads``, as all commands that train take it."""

from __future__ import annotations

from neuroflux_fl.errors import UsageError

_MOST_THREADS = 1024
"""More than any device has; with many more the system kills the process."""


def check_threads(threads: int) -> None:
    """Before torch is given it.

    Raises:
        UsageError: no number of threads.
    """
    if not 0 <= threads <= _MOST_THREADS:
        raise UsageError(f"Threads {threads} is not allowed: give 1 to {_MOST_THREADS}, or 0 to leave them alone.")
