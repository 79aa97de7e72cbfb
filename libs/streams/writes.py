"""What a connection says in one turn of the event loop, as one write.

Each write of a transport is a system call, which costs as much as making ten frames: without this, two thirds of a
server's CPU went there.
"""

import asyncio

from libs import tick
from libs.tick import SEND

MOST_BYTES = 65_536
"""That wait for the end of the turn; more goes out at once, so that the socket can say stop."""


class Writes:
    """Frames on their way to the socket. What is added once it is closed, or before there is one, is dropped."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._tick = tick.of_loop()
        self._parts: list[bytes] = []
        self._bytes = 0

    def to(self, transport: asyncio.Transport) -> None:
        """From now on it goes there."""
        self._transport = transport

    @property
    def waiting(self) -> int:
        """Bytes that the socket has not taken yet."""
        return self._bytes + (self._transport.get_write_buffer_size() if self._transport is not None else 0)

    def add(self, data: bytes) -> None:
        """Goes out at the end of this turn of the loop."""
        if not self._parts:
            self._tick.add(SEND, self.flush)
        self._parts.append(data)
        self._bytes += len(data)
        if self._bytes > MOST_BYTES:
            self.flush()

    def flush(self) -> None:
        """Now."""
        parts, self._parts, self._bytes = self._parts, [], 0
        if parts and self._transport is not None and not self._transport.is_closing():
            self._transport.write(b"".join(parts))
