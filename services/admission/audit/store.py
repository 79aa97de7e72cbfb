"""The audit log on disk: a folder for each tenant, a file for each day, a line of JSON for each entry.

    {folder}/{tenant}/2026-11-21.jsonl

Lines are only ever appended. What goes, goes as a whole file: days that are past the tenant's retention, and all of a
tenant when that is asked for. So a deletion needs no rewriting, and what it left can be told from a file listing.
"""

import datetime
import heapq
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import msgspec

from services.admission.audit.entry import Entry

MOST_DAY_BYTES = 256 * 1024 * 1024
"""Of one tenant and day; what is beyond is not written, and counted."""
DAY_S = 86_400
_CHUNK = 16 * 1024
"""Bytes that are read of a file at a time: a search holds one such part for each tenant, and no more."""


@dataclass(frozen=True, slots=True)
class Search:
    """Which entries are wanted; what is empty or None matches all."""

    tenant: str = ""
    since: float | None = None
    """Unix seconds; included."""
    until: float | None = None
    """Unix seconds; not included."""
    request_id: str = ""
    operators_only: bool = False


class Store:
    """The files of one process. Blocks; to be used from one thread at a time, but `find`.

    Args:
        folder: Of this process alone.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._encoder = msgspec.json.Encoder()
        self._decoder = msgspec.json.Decoder(Entry)

    def append(self, entries: Sequence[Entry]) -> int:
        """Writes entries behind those that are there; returns how many had no room. Raises OSError."""
        files: dict[tuple[str, str], list[Entry]] = {}
        for entry in entries:
            files.setdefault((entry.tenant, _day(entry.time)), []).append(entry)
        dropped = 0
        for (tenant, day), added in files.items():
            folder = self._folder / tenant
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / f"{day}.jsonl").open("ab") as file:
                if file.tell() > MOST_DAY_BYTES:
                    dropped += len(added)
                    continue
                file.write(self._encoder.encode_lines(added))
        return dropped

    def find(self, search: Search) -> Iterator[Entry]:
        """Entries that match, the newest first: as they were written, so a clock that was set back shows. Reads no more
        of the files than is asked of it. Raises OSError. A line that is cut, as by a full disk, is left out."""
        tenants = [search.tenant] if search.tenant else sorted(path.name for path in self._tenants())
        days = sorted({path.stem for tenant in tenants for path in self._days(tenant)}, reverse=True)
        for day in days:
            if search.since is not None and day < _day(search.since):
                return
            if search.until is not None and day > _day(search.until):
                continue
            files = [self._folder / tenant / f"{day}.jsonl" for tenant in tenants]
            merged = heapq.merge(
                *(self._newest_first(file, search.since) for file in files),
                key=lambda entry: (entry.time, entry.sequence),
                reverse=True,
            )
            yield from (entry for entry in merged if _matches(entry, search))

    def delete(self, tenant: str) -> int:
        """Removes all of a tenant; returns how many entries that were. Raises OSError."""
        count = sum(1 for path in self._days(tenant) for _ in self._newest_first(path, None))
        shutil.rmtree(self._folder / tenant, ignore_errors=True)
        return count

    def expire(self, days: Callable[[str], int], now: float) -> int:
        """Removes the files that are older than their tenant's days; returns how many. Raises OSError."""
        removed = 0
        for folder in self._tenants():
            oldest = _day(now - DAY_S * days(folder.name))
            for path in self._days(folder.name):
                if path.stem < oldest:
                    path.unlink(missing_ok=True)
                    removed += 1
        return removed

    def _tenants(self) -> list[Path]:
        return [path for path in self._folder.iterdir() if path.is_dir()] if self._folder.is_dir() else []

    def _days(self, tenant: str) -> list[Path]:
        folder = self._folder / tenant
        return sorted(folder.glob("*.jsonl")) if tenant and folder.is_dir() else []

    def _newest_first(self, path: Path, since: float | None) -> Iterator[Entry]:
        for line in _backwards(path):
            try:
                entry = self._decoder.decode(line)
            except msgspec.DecodeError:
                continue
            if since is not None and entry.time < since:
                return
            yield entry


def _backwards(path: Path) -> Iterator[bytes]:
    """The lines of a file, the last one first. The file is open only while it is read: there may be one per tenant."""
    rest, at = b"", path.stat().st_size if path.exists() else 0
    while at:
        size = min(_CHUNK, at)
        at -= size
        try:
            with path.open("rb") as file:
                file.seek(at)
                rest, *lines = (file.read(size) + rest).split(b"\n")
        except FileNotFoundError:  # removed meanwhile, with all that was in it
            return
        yield from (line for line in reversed(lines) if line)
    if rest:
        yield rest


def _matches(entry: Entry, search: Search) -> bool:
    return (
        (search.since is None or entry.time >= search.since)
        and (search.until is None or entry.time < search.until)
        and (not search.request_id or entry.request_id == search.request_id)
        and (not search.operators_only or bool(entry.change))
    )


def _day(time: float) -> str:
    return _date(int(time // DAY_S))


@lru_cache(maxsize=64)
def _date(day: int) -> str:
    return datetime.datetime.fromtimestamp(day * DAY_S, datetime.UTC).date().isoformat()
