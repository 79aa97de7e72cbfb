"""`headrace logs`."""

import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

from services.console.log_lines import pretty
from services.console.mesh.folder import StateFolder
from services.console.mesh.process import tail
from services.console.problem import Problem

POLL_S = 0.2
READ_BYTES = 64 * 1024


def logs(state_dir: Path, service: str, lines: int, follow: bool, console: Console) -> None:
    """Prints the last lines of a component, or of all of a service; with `follow`, what comes after, too.

    Raises Problem.
    """
    paths = _find(StateFolder(state_dir).logs_dir, service)
    many = len(paths) > 1
    followers = [(path.stem if many else "", Follower(path)) for path in paths]
    for path, (name, _) in zip(paths, followers, strict=True):
        for line in tail(path, lines, most_bytes=max(READ_BYTES, lines * 1024)):
            _print(line, name, console)
    while follow:
        for name, follower in followers:
            for line in follower.lines():
                _print(line, name, console)
        time.sleep(POLL_S)


class Follower:
    """What is appended to a log, also after it was cut off."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = path.stat().st_size
        self._rest = b""

    def lines(self) -> Iterator[str]:
        """Whole lines since the last call."""
        try:
            size = self._path.stat().st_size
        except FileNotFoundError:
            return
        if size < self._at:  # cut off: what it held is in NAME.log.1
            self._at, self._rest = 0, b""
        with self._path.open("rb") as file:
            file.seek(self._at)
            while data := file.read(READ_BYTES):
                self._at += len(data)
                *whole, self._rest = (self._rest + data).split(b"\n")
                yield from (line.decode(errors="replace") for line in whole)


def _find(logs_dir: Path, service: str) -> list[Path]:
    there = sorted(logs_dir.glob("*.log"))
    exact = [path for path in there if path.stem == service]
    found = exact or [path for path in there if path.stem.rpartition("-")[0] == service]
    if not found:
        names = ", ".join(path.stem for path in there)
        raise Problem(f"there is no log of {service!r}", [f"there are {names}" if names else f"{logs_dir} is empty"])
    return found


def _print(line: str, name: str, console: Console) -> None:
    if console.is_terminal:
        console.print(pretty(line, name), soft_wrap=True)
    else:  # for programs: as it was written
        console.file.write(line + "\n")
        console.file.flush()
