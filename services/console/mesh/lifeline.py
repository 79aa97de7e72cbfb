"""Becomes another program that dies with its parent: `python lifeline.py PARENT PROGRAM ARGUMENT…`.

Run as a file and without the site packages, so it costs some ten milliseconds. Linux's parent-death signal
survives exec; setting it in the child itself needs no code between fork and exec of a process with threads.
SIGKILL, because a parent that was killed is not there to insist.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    """Does not return."""
    parent, program = int(arguments[0]), arguments[1:]
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    if os.getppid() != parent:  # it died before we asked
        os._exit(1)
    os.execv(program[0], program)  # noqa: S606  (the plan's own programs)


if __name__ == "__main__":
    main(sys.argv[1:])
