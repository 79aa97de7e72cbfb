"""Errors of requests, and the queue between the engine's thread and the loop."""

import asyncio
from collections import deque
from typing import Any


class RequestError(RuntimeError):
    """A request failed; the engine goes on."""


class AsyncQueue:
    """Filled by a thread, read on the loop where it was made."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()
        self._items: deque[Any] = deque()

    def put(self, item: Any) -> None:
        """From any thread."""
        self._items.append(item)
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._event.set)

    async def get(self, timeout: float | None = None) -> Any:
        """Raises TimeoutError."""
        while not self._items:
            self._event.clear()
            await asyncio.wait_for(self._event.wait(), timeout)
        return self._items.popleft()
