"""What the engine tells beside its answers: block events, statistics, health.

The engine's iterators of events and of statistics end when nothing came for a while, and stay ended until the next
request; so each is told to go on, as long as the engine lives.
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

from services.executor.engine import BlockEvent
from services.executor.trtllm.events import BlockNames

READ_S = 1.0
"""How long a read waits; then it begins anew."""

PAUSE_S = 0.01
"""Between two reads that brought nothing."""

MOST_EVENTS = 4096
"""Block events that wait for the parent to read; beyond them they stay in the engine, whose buffer may overflow."""


class EngineDied(Exception):
    """The engine is at its end; the text says why."""


class Feed:
    """Reads events and statistics of an engine until `close`.

    Args:
        llm: The engine.
        names: Translates its events.
    """

    def __init__(self, llm: Any, names: BlockNames) -> None:
        self.fault = ""
        """Why the engine is at its end; empty while it is not."""
        self.latest: Mapping[str, Any] = {}
        """Statistics of the last iteration."""
        self._llm = llm
        self._names = names
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._readers = [
            asyncio.create_task(self._read("block events", llm.get_kv_cache_events_async, self._event)),
            asyncio.create_task(self._read("statistics", llm.get_stats_async, self._stat)),
        ]

    @property
    def cache(self) -> Mapping[str, Any]:
        """Statistics of the KV cache; empty where there are none."""
        return self.latest.get("kvCacheStats") or {}

    async def events(self) -> AsyncIterator[Sequence[BlockEvent]]:
        """What changes, in our names. Raises EngineDied when the engine has."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            if self.fault:
                raise EngineDied(self.fault)
            events = self._names.drain()
            self._room.set()
            yield events

    def tell(self) -> None:
        """Something has changed."""
        self._changed.set()
        if self._names.pending > MOST_EVENTS:
            self._room.clear()

    def die(self, fault: str) -> None:
        """The engine is at its end. The first reason counts."""
        self.fault = self.fault or fault
        self._changed.set()

    async def close(self) -> None:
        """Stops reading."""
        pending = set(self._readers)
        while pending:
            for reader in pending:
                reader.cancel()
            # Once is not enough: the engine's queues use asyncio.wait_for, which before Python 3.12 lets a cancel pass
            # that comes with an item.
            _, pending = await asyncio.wait(pending, timeout=PAUSE_S)

    async def _read(self, what: str, reads: Callable[..., Any], take: Callable[[Mapping[str, Any]], None]) -> None:
        while not self.fault:
            try:
                results = reads(timeout=READ_S)
                if (go_on := getattr(results, "mark_undone", None)) is not None:
                    go_on()
                async for item in results:
                    take(json.loads(item) if isinstance(item, str) else item)
                    await self._room.wait()
                self._look()
            except AssertionError:
                pass  # no request has been made yet
            except Exception as error:
                self.die(f"its {what} cannot be read: {text(error)}")
            await asyncio.sleep(PAUSE_S)

    def _look(self) -> None:
        healthy = getattr(self._llm, "_check_health", None)
        if healthy is not None and not healthy():
            self.die("the engine says that it is not healthy")

    def _event(self, event: Mapping[str, Any]) -> None:
        self._names.event(event)
        if self._names.pending:
            self.tell()

    def _stat(self, stat: Mapping[str, Any]) -> None:
        self.latest = stat
        self._changed.set()


def text(error: BaseException) -> str:
    """What an operator is told of an error; all of it goes to standard error."""
    print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:500]
