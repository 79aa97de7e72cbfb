"""Follows the placements of a mesh, across restarts of whatever answers."""

import asyncio
from collections.abc import Callable, Sequence
from typing import NoReturn

from libs.client.errors import CapacityError, DeadlinePassed, HeadraceError
from services.console.operations import Operations
from services.console.placements import Placements

AGAIN_S = 1.0
"""Between two attempts to reach the mesh."""


async def follow(
    operations: Operations, models: Sequence[str], placements: Placements, changed: Callable[[], None]
) -> NoReturn:
    """Keeps `placements` up to date until it is cancelled, and calls `changed` after each message.

    Raises HeadraceError for a refusal, and when the mesh does not answer the very first time.
    """
    while True:
        try:
            async for message in operations.watch(models):
                placements.take(message)
                changed()
        except HeadraceError as error:
            away = isinstance(error, (CapacityError, DeadlinePassed)) or not error.reason
            if not away or not placements.known:
                raise
            placements.lost = error.message
            changed()
        await asyncio.sleep(AGAIN_S)
