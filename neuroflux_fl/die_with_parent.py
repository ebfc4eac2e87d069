"""Run as a script: asks the kernel to end this process when its parent dies, then becomes the command it was given.

``python die_with_parent.py PARENT_PID SIGNAL COMMAND...``. Started without site packages, so that it costs nothing.
"""

import ctypes
import os
import sys

_PR_SET_PDEATHSIG = 1


def become(parent_pid: int, signal_number: int, command: list[str]) -> None:
    """Replace this process; the request to the kernel outlives that. Linux only, elsewhere nothing is asked for."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal_number, 0, 0, 0)
        if os.getppid() != parent_pid:
            sys.exit(1)  # it died before the kernel knew
    os.execvp(command[0], command)


if __name__ == "__main__":
    become(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
