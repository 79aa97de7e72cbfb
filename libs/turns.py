"""Upkeep of a process, turn by turn.

Turns come together: a process that wakes once for ten of them has warm caches for nine, and an idle one is mostly cold.
"""

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress

import structlog

from libs.tasks import Tasks

log = structlog.get_logger()

IDLE_S = 0.5
"""Between two looks of who has nothing to look after, in seconds."""
_PHASE = random.random()  # noqa: S311  so that the processes of one machine do not all wake at the same moment


def until_next(seconds: float) -> float:
    """Seconds to the next turn of those that come so often: all of them in this process share their turns, and so do
    those that come half or twice as often. Between 0.1 and 1.1 times `seconds`."""
    left = seconds - (asyncio.get_running_loop().time() + _PHASE) % seconds
    return left if left > 0.1 * seconds else left + seconds  # its timer may have been early


def every(tasks: Tasks, seconds: float, action: Callable[[], None], name: str) -> None:
    """Calls `action` again and again. What it raises is logged and ends one turn only."""

    async def repeat() -> None:
        while True:
            await asyncio.sleep(until_next(seconds))
            _turn(action, name)

    tasks.spawn(repeat(), name)


def while_busy(
    tasks: Tasks, seconds: float, action: Callable[[], None], busy: Callable[[], bool], name: str
) -> Callable[[], None]:
    """`every` as long as `busy()`; else `action` comes once in IDLE_S: a process with nothing to do does little.

    Returns what makes it quick again at once: to be called when there is something to look after.
    """
    stirred = asyncio.Event()

    async def repeat() -> None:
        while True:
            if busy():
                await asyncio.sleep(seconds)
            else:
                stirred.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(until_next(IDLE_S)):
                        await stirred.wait()
            _turn(action, name)

    tasks.spawn(repeat(), name)
    return stirred.set


def _turn(action: Callable[[], None], name: str) -> None:
    try:
        action()
    except Exception:
        log.exception("task failed in one turn", task=name)
