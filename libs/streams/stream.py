"""One gRPC call, from either side."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

import grpc

from libs import tick
from libs.streams.call import MESSAGE_BYTES, NO_HEADERS, OK, Ended, Headers, Metadata
from libs.streams.compression import Incompressible, inflate
from libs.streams.outgoing import PREFIX, Outgoing, Way
from libs.tick import SAY

CREDIT = 524_288
"""Bytes that have been read before the other side is told that it may send as many again."""
WINDOW = MESSAGE_BYTES + PREFIX + CREDIT
"""Bytes that the other side may send ahead of what it knows to have been read: the longest message always fits."""


class Carrier(Way, Protocol):
    """The connection below a stream."""

    def consumed(self, stream: "Stream", size: int) -> None:
        """So many bytes of a stream have been read: the other side may send as many again."""
        ...

    def begin(self, stream: "Stream", metadata: Metadata) -> None:
        """Says that a server has taken the call."""
        ...

    def finish(self, stream: "Stream", ended: Ended | None) -> None:
        """Ends a stream from this side: with a status where it is a server's, else it is reset."""
        ...

    def peer_names(self) -> Sequence[str]:
        """Subject alternative names of the other side's certificate, where the connection has mTLS."""
        ...


class Stream:
    """Messages both ways, as bytes. Nothing here waits but `read`, `room_again` and `ended`, nothing raises.

    Bounded: what comes in by WINDOW bytes, and what goes out as Outgoing is.

    Args:
        headers: A client's, on the server's side, where the call is still to be taken: see `begin`.
    """

    __slots__ = (
        "_carrier", "_due", "_ended", "_inbox", "_on_message", "_partial", "_reader", "_say", "_tick", "_writer",
        "allowance", "begun", "credit", "half_closed", "headers", "number", "on_gone", "out", "unread",
    )  # fmt: skip

    def __init__(self, carrier: Carrier, number: int, window: int, headers: Headers | None = None) -> None:
        self.number = number
        self.headers = NO_HEADERS if headers is None else headers
        self.begun = headers is None
        """Whether the server has taken the call."""
        self.on_gone: Callable[[], object] = _nothing
        """Called when the other side, or the connection, is gone in the middle of the call."""
        self.half_closed = False
        """Whether the other side will say no more."""
        self.unread = 0
        """Bytes that came and have not been read."""
        self.out = Outgoing(carrier, number, window)
        """What this side says. Written to directly by `scatter` alone."""
        self.allowance = WINDOW
        """Bytes that the other side may send now."""
        self.credit = 0
        """Bytes that have been read, and are not yet allowed anew."""
        self._carrier = carrier
        self._on_message: Callable[[bytes], None] | None = None
        self._say: Callable[[], None] = _nothing
        self._due = False
        self._inbox: deque[tuple[bytes, int]] = deque()
        self._partial = bytearray()
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._tick = tick.of_loop()
        self._ended: asyncio.Future[Ended] = asyncio.Future()

    @property
    def over(self) -> bool:
        """Whether this side has done with it."""
        return self.out.over

    @property
    def room(self) -> bool:
        """Whether what is written now goes out, rather than waits here."""
        return self.out.room

    @property
    def drained(self) -> bool:
        """Whether all that was written has gone to the socket."""
        return not self.out.unsent

    def listen(self, on_message: Callable[[bytes], None], say: Callable[[], None]) -> None:
        """From now on each message goes to `on_message` as it comes, those that wait at once; `say` is called
        when there is room again, and after `wake`. Neither may raise."""
        self._on_message, self._say = on_message, say
        while self._inbox and not self.over:
            self._deliver(*self._inbox.popleft())

    def say_with(self, say: Callable[[], None]) -> None:
        """For who reads with `read`: `say` is called when there is room again, and after `wake`."""
        self._say = say

    def wake(self) -> None:
        """There is something to say: `say` is called once, at the end of this turn of the loop, if there is room."""
        if not self._due and not self.over:
            self._due = True
            self._tick.add(SAY, self._said)

    async def read(self) -> bytes | None:
        """The next message; None when the call has ended or the other side will say no more. Only as much comes in
        as is read."""
        while not self._inbox:
            if self.half_closed or self._ended.done():
                return None
            self._reader = asyncio.Future()
            await self._reader
        message, size = self._inbox.popleft()
        self._carrier.consumed(self, size)
        return message

    async def room_again(self) -> None:
        """Waits until there is room, or the call is over. Takes the place of `say_with`."""
        while not self.room and not self.over:
            self._writer = asyncio.Future()
            self._say = self._wake_writer
            await self._writer

    async def ended(self) -> Ended:
        """How the call ended; for a server also that the client will say no more."""
        return await asyncio.shield(self._ended)

    @property
    def alive(self) -> bool:
        """Whether the call goes on."""
        return not self._ended.done()

    @property
    def peer_names(self) -> Sequence[str]:
        """Subject alternative names of the other side's certificate, where the connection has mTLS."""
        return self._carrier.peer_names()

    def begin(self, metadata: Metadata = ()) -> None:
        """A server takes the call: its headers go out. Once; the first message does it, too."""
        if not self.begun and not self.over:
            self.begun = True
            self._carrier.begin(self, metadata)

    def write(self, message: bytes) -> None:
        """Sends a message, or keeps it until there is room. Ignored once the call is over."""
        if not self.out.over:
            if not self.begun:
                self.begin()
            self.out.write(message)

    def end(self, ended: Ended = OK) -> None:
        """A server's answer is complete. What waits to be written goes out first if the window takes it."""
        self._finish(ended)
        self.broke(ended)

    def cancel(self, why: str = "cancelled on this side") -> None:
        """Ends the call at once."""
        self._finish(None)
        self.broke(Ended(grpc.StatusCode.CANCELLED, why))

    def _finish(self, ended: Ended | None) -> None:
        if not self.over:
            self.out.flush()
            self.out.over = True
            self._carrier.finish(self, ended)

    # What the connection tells it.

    def has_room(self) -> None:
        """The other side, or the socket, takes more."""
        self.out.flush()
        if self.out.room:
            self._say()

    def take_in(self, data: bytes) -> None:
        """Payload of a DATA frame."""
        size = len(data) - PREFIX
        if not self._partial and size >= 0 and int.from_bytes(data[:PREFIX], "big") == size:
            self._deliver(data[PREFIX:], len(data))  # one frame, one message: almost all are
            return
        self._partial += data
        partial, at = self._partial, 0
        while len(partial) - at >= PREFIX:
            size = int.from_bytes(partial[at + 1 : at + PREFIX], "big")
            if size > MESSAGE_BYTES:
                self.refuse(grpc.StatusCode.RESOURCE_EXHAUSTED, f"a message is longer than {MESSAGE_BYTES} bytes")
                return
            if len(partial) - at - PREFIX < size:
                break
            message = bytes(partial[at + PREFIX : at + PREFIX + size])
            if partial[at]:
                try:
                    message = inflate(message, self.headers.get("grpc-encoding", ""), MESSAGE_BYTES)
                except Incompressible as why:
                    self.refuse(why.code, str(why))
                    return
            self._deliver(message, PREFIX + size)
            at += PREFIX + size
        del partial[:at]

    def refuse(self, code: grpc.StatusCode, why: str) -> None:
        """What came cannot be taken: the call ends."""
        self._partial.clear()
        on_gone = self.on_gone
        self.end(Ended(code, why))
        on_gone()

    def closed_by_other(self) -> None:
        """The other side will say no more."""
        self.half_closed = True
        self._wake_reader()

    def broke(self, ended: Ended) -> None:
        """It ended, whoever ended it."""
        if not self._ended.done():
            self._ended.set_result(ended)
            self._say()  # for whoever waits for room
        self._wake_reader()
        if self.over:  # these know this stream, too: all of them would lie around until the garbage collector comes
            self._say = self.on_gone = self._on_message = _nothing

    def gone(self, ended: Ended) -> None:
        """It ended, and nothing can be written any more."""
        self.out.over, on_gone = True, self.on_gone
        self.broke(ended)
        on_gone()

    def _said(self) -> None:
        self._due = False
        self.has_room()

    def _deliver(self, message: bytes, size: int) -> None:
        if self._on_message is None:
            self._inbox.append((message, size))
            self._wake_reader()
            return
        self._carrier.consumed(self, size)
        self._on_message(message)

    def _wake_reader(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def _wake_writer(self) -> None:
        if self._writer is not None and not self._writer.done():
            self._writer.set_result(None)


def _nothing(*_: object) -> None:
    pass
