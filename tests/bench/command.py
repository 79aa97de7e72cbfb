"""What the longer benches have in common as commands."""

import argparse
import sys
from collections.abc import Callable, Collection
from typing import NoReturn


def say(text: str) -> None:
    """On stderr: stdout is the report's."""
    print(text, file=sys.stderr, flush=True)


def some_of(known: Collection[str]) -> Callable[[str], list[str]]:
    """Reads names with commas."""

    def read(text: str) -> list[str]:
        names = text.split(",")
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: there are {', '.join(known)}")
        return names

    return read


def end(*_: object) -> NoReturn:
    """A signal's handler: lets `finally` stop what runs."""
    raise SystemExit(143)
