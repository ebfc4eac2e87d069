"""Where ``neuroflux-fl`` starts, with the memory allocator that training wants: one serves a process from its start."""

from __future__ import annotations

import os
import sys

from neuroflux_fl.memory_allocator import allocator_environment

_TRAINING = ("train", "simulate", "plan")
"""Commands that train in their own process, or measure there what training would take."""


def start() -> None:
    """Start this process anew where it should have another allocator, and run the command line."""
    if sys.argv[1:2] and sys.argv[1] in _TRAINING:
        added = allocator_environment(os.environ)
        if "LD_PRELOAD" in added:
            os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | added)
        os.environ.update(added)
    from neuroflux_fl.cli.main import main  # torch reads the environment when it is imported

    main()


if __name__ == "__main__":
    start()
