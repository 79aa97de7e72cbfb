"""The consoles that commands write to."""

import sys

from rich.console import Console

PLAIN_WIDTH = 160
"""Columns where there is no terminal to ask: enough that nothing is cut off in a file or a pipe."""


def out() -> Console:
    """Standard output."""
    return _console(sys.stdout.isatty(), stderr=False)


def err() -> Console:
    """Standard error."""
    return _console(sys.stderr.isatty(), stderr=True)


def _console(terminal: bool, *, stderr: bool) -> Console:
    return Console(stderr=stderr, highlight=False, width=None if terminal else PLAIN_WIDTH)
