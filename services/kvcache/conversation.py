"""A standing stream, seen from the server: reads go on while a write is in flight, and answers accumulate."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

import structlog
from grpc import aio

from libs.errors import HeadraceError, InternalError

log = structlog.get_logger()

Request = TypeVar("Request")
Response = TypeVar("Response")


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


class Conversation(Generic[Request, Response]):
    """One call of a stream-stream method.

    Bounded: while `take` says that too much waits to be written, or lasts, nothing more is read, and gRPC's flow
    control holds the client.

    Args:
        take: Takes a message in; returns whether there is room for the answers to another.
        flush: Gives what has accumulated as one message; None when there is nothing.
    """

    def __init__(
        self,
        context: aio.ServicerContext[Any, Any],
        take: Callable[[Request], Awaitable[bool]],
        flush: Callable[[], Response | None],
    ) -> None:
        self._context = context
        self._take = take
        self._flush = flush
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._ended = False
        self._error: HeadraceError | None = None

    async def run(self) -> None:
        """Lasts until the client half-closes, `end`, or the call breaks. Raises what `take` raises; what is
        not a HeadraceError becomes an InternalError."""
        await self._context.send_initial_metadata(())  # tells the client that the stream stands
        reader = asyncio.create_task(self._read(), name="conversation reader")
        try:
            while True:
                self._wake.clear()
                while (message := self._flush()) is not None:
                    await self._context.write(message)
                self._room.set()
                if self._ended:
                    break
                await self._wake.wait()
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
        if self._error is not None:
            raise self._error

    def wake(self) -> None:
        """There is something to write that no message from the client has brought about."""
        self._wake.set()

    def end(self) -> None:
        """Ends the call from this side, once what has accumulated is written."""
        self._ended = True
        self._wake.set()

    async def _read(self) -> None:
        try:
            while not self._ended and (request := await self._context.read()) is not aio.EOF:
                room = await self._take(request)
                self._room.clear()
                self._wake.set()
                if not room:
                    await self._room.wait()
        except HeadraceError as error:
            self._error = error
        except Exception:  # a bug; the other side must see the call end, not hang
            log.exception("conversation failed")
            self._error = InternalError("internal error; the mesh's logs have the cause")
        finally:
            self.end()
