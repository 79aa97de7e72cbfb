"""What is done at the end of a turn of the event loop, once for all that happened in it.

Were each of these a callback of its own, a frame that comes would take four turns to go out again: each with a system
call, and with caches that others have emptied. They have ranks, so that whatever one of them gives rise to is done in
the same turn: first stages tell each other their news, then streams say what they have to, then it goes to sockets.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from weakref import WeakKeyDictionary

TELL, SAY, SEND = range(3)
"""The ranks."""
MOST = 4096
"""Actions in one turn: then others have theirs."""


class Tick:
    """The end of the turns of one loop. Make it with `of_loop`."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._soon = loop.call_soon
        self._report = loop.call_exception_handler
        self._ranks: tuple[deque[Callable[[], None]], ...] = (deque(), deque(), deque())
        self._scheduled = False

    def add(self, rank: int, action: Callable[[], None]) -> None:
        """Calls `action` once, at the end of this turn: behind all of a lower rank, and those of its own that were
        added before. What it raises is reported to the loop."""
        self._ranks[rank].append(action)
        if not self._scheduled:
            self._scheduled = True
            self._soon(self._end)

    def _end(self) -> None:
        tell, say, send = self._ranks
        for _ in range(MOST):
            if tell:
                action = tell.popleft()
            elif say:
                action = say.popleft()
            elif send:
                action = send.popleft()
            else:
                self._scheduled = False
                return
            try:
                action()
            except Exception as error:
                self._report({"message": "what was to be done at the end of a turn failed", "exception": error})
        self._soon(self._end)


_OF_LOOPS: WeakKeyDictionary[asyncio.AbstractEventLoop, Tick] = WeakKeyDictionary()


def of_loop() -> Tick:
    """That of the running loop."""
    loop = asyncio.get_running_loop()
    tick = _OF_LOOPS.get(loop)
    if tick is None:
        tick = _OF_LOOPS[loop] = Tick(loop)
    return tick
