"""A connection within one process: two protocols, and nothing between them but memory.

A conversation of a process with itself over the loopback address costs each side a wake-up and two system calls per
message. Here what one side writes is what the other one reads, in the same turn of the loop.
"""

import asyncio
from functools import partial
from typing import Any

from libs import tick
from libs.tick import TELL


class MemoryTransport(asyncio.Transport):
    """One side's way to the other. Nothing accumulates: what is written is read at the end of the turn."""

    def __init__(self, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self._protocol = protocol
        self._other: MemoryTransport | None = None
        self._closing = False
        self._tick = tick.of_loop()

    def to(self, other: "MemoryTransport") -> None:
        """From now on it leads there."""
        self._other = other
        self._protocol.connection_made(self)

    def write(self, data: Any) -> None:
        if not self._closing and self._other is not None:
            self._tick.add(TELL, partial(self._other.deliver, data))

    def deliver(self, data: bytes) -> None:
        """What the other side wrote."""
        if not self._closing:
            self._protocol.data_received(data)

    def close(self) -> None:
        """Both sides see the end, behind what has been written."""
        if not self._closing:
            self._closing = True
            self._tick.add(TELL, partial(self._protocol.connection_lost, None))
            if self._other is not None:
                self._tick.add(TELL, self._other.close)

    def abort(self) -> None:
        self.close()

    def is_closing(self) -> bool:
        return self._closing

    def get_write_buffer_size(self) -> int:
        return 0


def join(one: asyncio.Protocol, other: asyncio.Protocol) -> None:
    """Connects two protocols."""
    here, there = MemoryTransport(one), MemoryTransport(other)
    there.to(here)
    here.to(there)
