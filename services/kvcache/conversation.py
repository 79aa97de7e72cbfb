"""A standing stream, seen from the server: reads go on while nothing can be written, and answers accumulate."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from libs.errors import RequestInvalid
from libs.streams.stream import Stream

M = TypeVar("M", bound=Message)


def parsed(kind: type[M], data: bytes) -> M:
    """The message. Raises RequestInvalid."""
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise RequestInvalid(f"the bytes are no {kind.DESCRIPTOR.full_name}") from error


class Turns:
    """Lets many streams share the event loop with those who are in a hurry.

    Whoever has a large piece of work cuts it into parts and asks for a turn before each. Turns come in the order
    of asking, and each time as much as `size` has been done, everything else that is ready goes first.

    Args:
        size: In whatever unit parts are measured; a part of more than that has a turn of its own.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._done = 0
        self._lock = asyncio.Lock()

    async def turn(self, part: int) -> None:
        """Waits until a part of this size may be done; then do it without an await."""
        async with self._lock:
            if self._done + part > self.size:
                await asyncio.sleep(0)
                self._done = 0
            self._done += part


class Conversation:
    """One call of a stream-stream method.

    Bounded: while `take` says that too much waits to be written, or lasts, nothing more is read, and flow control
    holds the client.

    Args:
        take: Takes a message in; returns whether there is room for the answers to another.
        flush: Gives what has accumulated as one message; None when there is nothing.
    """

    def __init__(
        self,
        stream: Stream,
        take: Callable[[bytes], Awaitable[bool]],
        flush: Callable[[], Message | None],
    ) -> None:
        self._stream = stream
        self._take = take
        self._flush = flush
        self._room = asyncio.Event()
        stream.say_with(self._say)

    async def run(self) -> None:
        """Lasts until the client half-closes, `end`, or the call breaks. Raises what `take` raises."""
        while (data := await self._stream.read()) is not None:
            room = await self._take(data)
            self._room.clear()
            self._stream.wake()
            if not room:
                await self._room.wait()
        self._say()

    def wake(self) -> None:
        """There is something to write that no message from the client has brought about."""
        self._stream.wake()

    def end(self) -> None:
        """Ends the call from this side, once what has accumulated is written."""
        self._say()
        self._stream.end()

    def _say(self) -> None:
        stream = self._stream
        while stream.room and (message := self._flush()) is not None:
            stream.write(message.SerializeToString())
        self._room.set()
