"""Serving gRPC calls in the event loop: every method is a handler of a stream of bytes."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import grpc
import structlog

from libs.streams.accepted import Accepted
from libs.streams.call import OK, Ended
from libs.streams.frames import ENHANCE_YOUR_CALM
from libs.streams.headers import MESSAGE_CHARACTERS
from libs.streams.stream import Stream
from libs.streams.tls import server_context
from libs.tasks import Tasks

log = structlog.get_logger()

Handler = Callable[[Stream], Awaitable[None]]
"""Takes the call with `begin`, or with its first message. Lasts as long as the call does from this side. What it raises
is a bug."""
MAX_CONNECTIONS = 10_000
"""Of one server; one more is closed at once."""


class StreamServer:
    """Serves methods of any kind. Bounded: MAX_CONNECTIONS, and what each connection bounds.

    Args:
        handlers: By /package.Service/Method.
        tls_dir: See settings.Process.
    """

    def __init__(self, handlers: Mapping[str, Handler], tls_dir: Path | None = None) -> None:
        self._handlers = handlers
        self._tls = None if tls_dir is None else server_context(tls_dir)
        self._tasks = Tasks()
        self._connections: set[Accepted] = set()
        self._server: asyncio.Server | None = None
        self.port = 0

    async def start(self, listen: str) -> None:
        """Opens host:port; port 0 takes a free one, see `port`. Raises OSError."""
        host, _, port = listen.rpartition(":")
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(self.connected, host.strip("[]"), int(port), ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]

    def retire(self) -> None:
        """Takes no new connections, and asks who is connected to open another one, elsewhere, for its next calls. Calls
        go on meanwhile, also those that still come."""
        if self._server is not None:
            self._server.close()
            for connection in self._connections:
                connection.retire()

    async def stop(self) -> None:
        """Breaks every stream."""
        if self._server is None:
            return
        server, self._server = self._server, None
        server.close()
        connections = list(self._connections)
        for connection in connections:
            connection.close(said="the process ends")
        # Handlers see their streams end and clean up; then whoever is left is cancelled.
        await asyncio.sleep(0)
        await self._tasks.close()
        await server.wait_closed()

    def connected(self) -> Accepted:
        """The server's side of a new connection."""
        connection = Accepted(self._accept)
        self._connections.add(connection)
        connection.closed.add_done_callback(lambda _: self._connections.discard(connection))
        if len(self._connections) > MAX_CONNECTIONS:
            asyncio.get_running_loop().call_soon(connection.close, ENHANCE_YOUR_CALM, "too many connections")
        return connection

    def _accept(self, stream: Stream) -> None:
        path = stream.headers.get(":path", "")
        if (handler := self._handlers.get(path)) is not None:
            self._tasks.spawn(_serve(handler, stream), path)
            return
        stream.end(Ended(grpc.StatusCode.UNIMPLEMENTED, f"there is no {path[:MESSAGE_CHARACTERS]} at this port"))


async def _serve(handler: Handler, stream: Stream) -> None:
    try:
        await handler(stream)
    except asyncio.CancelledError:
        stream.cancel("the process ends")
        raise
    except Exception:
        log.exception("stream failed")
        stream.end(Ended(grpc.StatusCode.INTERNAL, "internal error; the process's logs have the cause"))
    else:
        stream.end(OK)
