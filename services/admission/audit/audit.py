"""The audit log of one process: entries go through a bounded queue to a thread that redacts and writes them.

`record` never blocks a request: when the disk is slower than requests come, entries are dropped, counted and logged.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path

import structlog
from msgspec.structs import replace

from libs.clock import Clock
from services.admission.audit.entry import Entry
from services.admission.audit.redact import redact
from services.admission.audit.store import Search, Store
from services.admission.policy import Storage

log = structlog.get_logger()

MOST_WAITING = 10_000
MOST_WAITING_TEXT = 32 * 1024 * 1024
"""Characters of prompts and answers that wait to be written."""
BATCH = 64
"""Entries between which the writer lets others run: it may hold the interpreter for half a millisecond, not for two."""
GATHER_S = 0.1
"""For which the writer lets entries gather: waking it for each costs requests more than the writing."""
EXPIRE_S = 3600.0
"""Between two looks for files that are too old."""


_Waiting = tuple[Entry, Storage]


class Audit:
    """See the module.

    Args:
        folder: Where its files lie; of this process alone.
        days: For how many days a tenant's entries are kept.
        dropped: Called, from any thread, with how many entries were lost.
    """

    def __init__(
        self, folder: Path, instance: str, days: Callable[[str], int], dropped: Callable[[int], None], clock: Clock
    ) -> None:
        self._store = Store(folder)
        self._instance = instance
        self._days = days
        self._dropped = dropped
        self._clock = clock
        self._waiting: deque[_Waiting] = deque()
        self._text = 0
        self._sequence = 0
        self._lock = threading.Lock()
        self._disk = threading.Lock()
        """Held while files are written or removed."""
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)

    def start(self) -> None:
        """Begins to write."""
        self._thread.start()

    async def close(self) -> None:
        """Writes what waits, and ends."""
        self._closing.set()
        self._wake.set()
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join)

    def record(self, entry: Entry, storage: Storage = Storage.FULL) -> None:
        """Takes an entry in; its texts are redacted before they are written, if `storage` says so."""
        size = len(entry.prompt) + len(entry.answer)
        with self._lock:
            full = len(self._waiting) >= MOST_WAITING or self._text + size > MOST_WAITING_TEXT
            if not full:
                self._waiting.append((entry, storage))
                self._text += size
        if full:
            self._lost(1, "the disk is slower than requests come")
        elif not self._wake.is_set():
            self._wake.set()

    async def find(self, search: Search, most: int) -> list[Entry]:
        """The newest entries that match, at most so many; those that waited are written first. Raises OSError."""
        return await asyncio.to_thread(self._find, search, most)

    def _find(self, search: Search, most: int) -> list[Entry]:
        while batch := self._take():
            self._write(batch)
        return list(islice(self._store.find(search), most))

    async def delete(self, tenant: str) -> int:
        """Removes all entries of a tenant, those that wait too; how many that were. Raises OSError."""
        return await asyncio.to_thread(self._delete, tenant)

    def _delete(self, tenant: str) -> int:
        with self._disk:
            with self._lock:
                kept = deque(each for each in self._waiting if each[0].tenant != tenant)
                gone = len(self._waiting) - len(kept)
                self._waiting = kept
                self._text = _characters(kept)
            return gone + self._store.delete(tenant)

    def _run(self) -> None:
        expired = float("-inf")
        while True:
            closing = self._closing.is_set()  # before the queue is looked at: what came by then is written
            batch = self._take()
            if batch:
                self._write(batch)
            elif closing:
                return
            else:
                self._wake.wait(EXPIRE_S)
                self._closing.wait(GATHER_S)
                self._wake.clear()
            if self._clock.monotonic() - expired > EXPIRE_S:
                expired = self._clock.monotonic()
                self._expire()

    def _take(self) -> Sequence[tuple[int, _Waiting]]:
        """The entries that came first, with their numbers."""
        with self._lock:
            batch = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
            self._text -= _characters(batch)
            numbered = list(enumerate(batch, self._sequence + 1))
            self._sequence += len(batch)
        return numbered

    def _write(self, batch: Sequence[tuple[int, _Waiting]]) -> None:
        try:
            with self._disk:
                dropped = self._store.append([self._fit(*entry, sequence) for sequence, entry in batch])
        except OSError as error:
            self._lost(len(batch), str(error))
            return
        if dropped:
            self._lost(dropped, "a tenant's file of today is full")

    def _fit(self, entry: Entry, storage: Storage, sequence: int) -> Entry:
        """The entry as it may be kept."""
        instance = self._instance
        if storage is Storage.FULL:
            return replace(entry, instance=instance, sequence=sequence)
        prompt, answer = redact(entry.prompt), redact(entry.answer)
        return replace(entry, prompt=prompt, answer=answer, instance=instance, sequence=sequence)

    def _expire(self) -> None:
        try:
            with self._disk:
                removed = self._store.expire(self._days, self._clock.now())
        except OSError as error:
            log.warning("audit files were not removed", error=str(error))
            return
        if removed:
            log.info("audit files removed", files=removed)

    def _lost(self, count: int, why: str) -> None:
        self._dropped(count)
        log.error("audit entries lost", entries=count, error=why)


def _characters(entries: Iterable[_Waiting]) -> int:
    return sum(len(entry.prompt) + len(entry.answer) for entry, _ in entries)
