"""Lines of spans in a local file, for a mesh without a collector: in a size that never passes a bound."""

from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

LIMIT_BYTES = 64 * 1024 * 1024
"""What the spans of one process may take, both files together."""
OLD = ".1"
"""What the name of the older file ends with."""


class SpanFile:
    """Appends lines to PATH; at half the bound PATH becomes PATH.1, and what PATH.1 held is forgotten.

    One process writes to a path at a time; after a crash the next one goes on behind a line that was cut off.
    """

    def __init__(self, path: Path, limit_bytes: int = LIMIT_BYTES) -> None:
        """Opens the file, and makes its folder. Raises OSError."""
        self._path = path
        self._limit = limit_bytes // 2
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: BinaryIO = path.open("ab", buffering=0)
        self._size = self._file.tell()
        if self._size and not _ends_a_line(path):
            self._write(b"\n")

    def append(self, lines: Iterable[bytes]) -> None:
        """Hands lines, each with its end, to the operating system: readers see them at once.

        A line longer than half the bound is left out. Raises OSError; what was not written then is lost.
        """
        pending: list[bytes] = []
        size = self._size
        for line in lines:
            if len(line) > self._limit:
                continue
            if size + len(line) > self._limit:
                self._write(b"".join(pending))
                self._rotate()
                pending, size = [], 0
            pending.append(line)
            size += len(line)
        self._write(b"".join(pending))

    def close(self) -> None:
        """Closes the file. Idempotent."""
        self._file.close()

    def _write(self, data: bytes) -> None:
        written = 0
        while written < len(data):
            written += self._file.write(data[written:])
        self._size += written

    def _rotate(self) -> None:
        self._file.close()
        self._path.replace(self._path.with_name(self._path.name + OLD))
        self._file = self._path.open("ab", buffering=0)
        self._size = 0


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read() == b"\n"
