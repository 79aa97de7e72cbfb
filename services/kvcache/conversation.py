"""A standing stream, seen from the server: reads go on while a write is in flight, and answers accumulate."""

import asyncio
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import structlog
from grpc import aio

from libs.errors import HeadraceError, InternalError

log = structlog.get_logger()

Request = TypeVar("Request")
Response = TypeVar("Response")


class Conversation(Generic[Request, Response]):
    """One call of a stream-stream method.

    Bounded: while `take` says that too much waits to be written, nothing more is read, and gRPC's flow control
    holds the client.

    Args:
        take: Takes a message in; returns whether there is room for the answers to another.
        flush: Gives what has accumulated as one message; None when there is nothing.
    """

    def __init__(
        self,
        context: aio.ServicerContext[Any, Any],
        take: Callable[[Request], bool],
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

    def end(self) -> None:
        """Ends the call from this side, once what has accumulated is written."""
        self._ended = True
        self._wake.set()

    async def _read(self) -> None:
        try:
            while not self._ended and (request := await self._context.read()) is not aio.EOF:
                self._room.clear()
                room = self._take(request)
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
