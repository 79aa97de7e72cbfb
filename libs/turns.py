"""Upkeep of a process, turn by turn."""

import asyncio
from collections.abc import Callable
from contextlib import suppress

import structlog

from libs.tasks import Tasks

log = structlog.get_logger()

IDLE_S = 0.5
"""Between two looks of who has nothing to look after, in seconds."""


def every(tasks: Tasks, seconds: float, action: Callable[[], None], name: str) -> None:
    """Calls `action` again and again. What it raises is logged and ends one turn only."""

    async def repeat() -> None:
        while True:
            await asyncio.sleep(seconds)
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
                    async with asyncio.timeout(IDLE_S):
                        await stirred.wait()
            _turn(action, name)

    tasks.spawn(repeat(), name)
    return stirred.set


def _turn(action: Callable[[], None], name: str) -> None:
    try:
        action()
    except Exception:
        log.exception("task failed in one turn", task=name)
