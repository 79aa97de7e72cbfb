"""How admission leaves while its clients keep asking: nobody whose load is balanced in front of it fails.

SIGTERM ─▶ health says NOT_SERVING, the record leaves etcd (libs.process)
        ─▶ notice_s: takes requests as before, until whoever stands in front has noticed and sends them elsewhere
        ─▶ drain_s: closes its port and asks who is connected to go elsewhere; hands back what still comes (Envoy sends
           it elsewhere), ends sessions on which nothing runs, lets the rest end
        ─▶ hands back what still runs: its client goes on elsewhere behind the tokens that it has
"""

import asyncio
from collections.abc import Callable
from typing import Protocol

import structlog

from libs.process import TICK_S
from services.admission.front import Front

log = structlog.get_logger()

LAST_WORDS_S = 1.0
"""For what was handed back to be told so, at most; a client that does not read is not waited for."""
QUIET_S = 0.25
"""Without a call, and nobody sends any here; one that came while the port is being shut would fail."""


class Doors(Protocol):
    """Where requests come in; services.admission.service."""

    @property
    def in_flight(self) -> int:
        """Calls that ask for answers."""
        ...

    @property
    def idle_s(self) -> float:
        """Seconds since the last such call, refused ones included."""
        ...

    def leave(self) -> None:
        """Ends each session as soon as nothing runs on it."""
        ...


async def leave(front: Front, doors: Doors, retire: Callable[[], None], notice_s: float, drain_s: float) -> None:
    """Returns when every call has its end, `notice_s + drain_s` + 2 LAST_WORDS_S from now at the latest.

    Args:
        retire: Closes the port. A client that stayed connected, with other addresses to go to, would ask here again and
            again for as long as the drain lasts.
    """
    await asyncio.sleep(notice_s)
    log.info("takes nothing any more", in_flight=doors.in_flight)
    front.draining = True
    retire()
    doors.leave()
    if not await _reached(lambda: not doors.in_flight, drain_s):
        log.info("hands back what still runs", in_flight=doors.in_flight)
        await front.give_up()
        await _reached(lambda: not doors.in_flight, LAST_WORDS_S)
    await _reached(lambda: doors.idle_s >= QUIET_S, LAST_WORDS_S)
    await asyncio.sleep(TICK_S)  # the status of the call that ended last is on its way
    log.info("has left", in_flight=doors.in_flight)


async def _reached(goal: Callable[[], bool], within_s: float) -> bool:
    """Whether it came true within that time."""
    end = asyncio.get_running_loop().time() + within_s
    while not goal():
        if asyncio.get_running_loop().time() >= end:
            return False
        await asyncio.sleep(TICK_S)
    return True
