"""One HTTP/2 connection that carries gRPC streams, in the event loop's own thread.

grpc.aio does its work in threads of its own: a message in and one out cost a process 350 µs of CPU when they come
alone, ten changes of thread among them. Here the bytes are read where they arrive, at a third of that
(docs/decisions/0012-streams.md). The wire is gRPC's, so each side may as well be any other gRPC.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import cast

import grpc
from hpack import HPACKError

from libs.streams import frames
from libs.streams.call import KEEPALIVE_S, Ended, Headers, Metadata
from libs.streams.frames import Fault
from libs.streams.headers import BLOCK_BYTES, HEADER_BYTES, HeaderReader
from libs.streams.stream import CREDIT, WINDOW, Stream
from libs.streams.writes import Writes

MAX_STREAMS = 4096
"""Streams of one connection, at most."""
HELD_BYTES = 16 * WINDOW
"""Of all streams of one connection, that came and have not been read, at most: the stream that passes it is refused."""
UNREAD_BYTES = 1024 * 1024
"""Answers to pings and settings that the other side lets lie, at most; then it is not talked to any more."""
RESETS = 10_000
"""Calls that the other side takes back, in KEEPALIVE_S, at most: opening and taking back costs it next to nothing."""
_CONNECTION_WINDOW = 2**30


class Connection(asyncio.Protocol, ABC):
    """Either side of a connection; `Accepted` and `Dialed` are the two.

    Every fault of the other side ends the connection, with GOAWAY that says why. A side that is silent for KEEPALIVE_S
    is asked whether it is there, and given up after as much again.
    """

    def __init__(self) -> None:
        self.writable = False
        self._transport: asyncio.Transport | None = None
        self._streams: dict[int, Stream] = {}
        self._writes = Writes()
        self._rest = b""
        self.window = self._initial_window = frames.DEFAULT_WINDOW
        self._received = self._held = self._resets = 0
        self._headers = HeaderReader()
        self._block: tuple[int, int, bytearray] | None = None
        """The header block that is not complete: its stream, its flags, its bytes."""
        self._heard = True
        self._asked = False
        self._timer: asyncio.TimerHandle | None = None
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    # What differs between the sides.

    greeting = b""
    """What comes before all frames."""

    @abstractmethod
    def _opened(self, number: int, headers: Headers, size: int, end: bool) -> None:
        """A header block of a stream, `size` bytes of it."""

    @abstractmethod
    def _ended_by_other(self, stream: Stream) -> None:
        """The other side will say no more on a stream."""

    # asyncio's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport, self.writable = cast("asyncio.Transport", transport), True
        self._writes.to(self._transport)
        wanted = [
            (frames.ENABLE_PUSH, 0), (frames.INITIAL_WINDOW_SIZE, WINDOW),
            (frames.MAX_HEADER_LIST_SIZE, HEADER_BYTES), (frames.MAX_CONCURRENT_STREAMS, MAX_STREAMS),
        ]  # fmt: skip
        # What streams may send is bounded by their own windows: the connection's never stands in the way.
        more = frames.window_update(0, _CONNECTION_WINDOW - frames.DEFAULT_WINDOW)
        self.send(self.greeting + frames.settings(wanted) + more)
        self._timer = asyncio.get_running_loop().call_later(KEEPALIVE_S, self._keep_alive)

    def data_received(self, data: bytes) -> None:
        self._heard = True
        try:
            self._take_in(data)
        except Fault as fault:
            self.close(fault.code, str(fault))
        except HPACKError as error:
            self.close(frames.COMPRESSION_ERROR, f"headers that cannot be read: {error}")

    def _take_in(self, data: bytes) -> None:
        if self._rest:
            data = self._rest + data
        at, end = 0, len(data)
        while end - at >= frames.HEAD:
            size = data[at] << 16 | data[at + 1] << 8 | data[at + 2]
            if size > frames.FRAME_BYTES:
                raise Fault(frames.FRAME_SIZE_ERROR, f"a frame of {size} bytes")
            start, after = at + frames.HEAD, at + frames.HEAD + size
            if after > end:
                break
            number = int.from_bytes(data[at + 5 : start], "big") & 0x7FFFFFFF
            self._frame(data[at + 3], data[at + 4], number, data[start:after])
            at = after
        self._rest = data[at:]

    def eof_received(self) -> None:
        """The other side closed: so does this one."""

    def connection_lost(self, exc: Exception | None) -> None:
        self.writable = False
        if self._timer is not None:
            self._timer.cancel()
        self._break(f"the connection broke: {exc}" if exc else "the other side closed the connection")
        if not self.closed.done():
            self.closed.set_result(None)

    def pause_writing(self) -> None:
        self.writable = False

    def resume_writing(self) -> None:
        self.writable = True
        self._room_for_all()

    # The streams' side.

    def send(self, data: bytes) -> None:
        self._writes.add(data)

    def peer_names(self) -> Sequence[str]:
        tls = self._transport.get_extra_info("ssl_object") if self._transport is not None else None
        certificate = tls.getpeercert() if tls is not None else None
        return [name for _, name in (certificate or {}).get("subjectAltName", ())]

    def consumed(self, stream: Stream, size: int) -> None:
        if stream.unread:  # else the call has ended, and nothing of it counts any more
            stream.unread -= size
            self._held -= size
        stream.credit += size
        if stream.credit >= CREDIT and not stream.over:
            self.send(frames.window_update(stream.number, stream.credit))
            stream.allowance += stream.credit
            stream.credit = 0

    def begin(self, stream: Stream, metadata: Metadata) -> None:
        """A client's side takes no calls."""

    def finish(self, stream: Stream, ended: Ended | None) -> None:
        self._forget(stream.number)
        self.send(frames.reset(stream.number, frames.CANCEL if ended is None else frames.NO_ERROR))

    def close(self, code: int = frames.NO_ERROR, said: str = "") -> None:
        """Ends the connection and all streams on it, with what has been written."""
        if self._transport is not None and not self._transport.is_closing():
            self.send(frames.goaway(max(self._streams, default=0), code, said))
            self._writes.flush()
            self._transport.close()
        self._break(said or "closed on this side")

    # The other side's frames.

    def _frame(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if self._block is not None and (kind != frames.CONTINUATION or number != self._block[0]):
            raise Fault(frames.PROTOCOL_ERROR, "a header block that something stands in the middle of")
        if kind == frames.DATA:
            self._data(flags, number, payload)
        elif kind == frames.HEADERS:
            block = frames.unpadded(kind, flags, payload)
            if flags & frames.END_HEADERS:
                self._header_block(number, flags, block)
            else:
                self._block = number, flags, bytearray(block)
        elif kind == frames.CONTINUATION:
            if self._block is None:
                raise Fault(frames.PROTOCOL_ERROR, "CONTINUATION of nothing")
            _, first, parts = self._block
            parts += payload
            if len(parts) > BLOCK_BYTES:
                raise Fault(frames.ENHANCE_YOUR_CALM, f"headers of more than {BLOCK_BYTES} bytes")
            if flags & frames.END_HEADERS:
                self._block = None
                self._header_block(number, first, bytes(parts))
        elif kind == frames.WINDOW_UPDATE:
            self._more_window(number, frames.number_of(payload) & 0x7FFFFFFF)
        elif kind == frames.RST_STREAM:
            code = frames.number_of(payload)
            if (ended := self._forget(number)) is not None:
                said = "the other side cancelled the call" if code == frames.CANCEL else f"reset with code {code}"
                status = grpc.StatusCode.CANCELLED if code == frames.CANCEL else grpc.StatusCode.UNAVAILABLE
                ended.gone(Ended(status, said))
                self._resets += 1
                if self._resets > RESETS:
                    raise Fault(frames.ENHANCE_YOUR_CALM, "calls that are taken back, and nothing else")
        elif kind == frames.SETTINGS:
            if not flags & frames.ACK:
                self._settings(payload)
        elif kind == frames.PING:
            if flags & frames.ACK:
                self._asked = False
            elif len(payload) != 8:
                raise Fault(frames.FRAME_SIZE_ERROR, "a PING that has not eight bytes")
            else:
                self._reply(frames.head(8, frames.PING, frames.ACK, 0) + payload)
        elif kind == frames.GOAWAY:
            said = payload[8:].decode(errors="replace")
            self._going(said or "the other side closes the connection")
        elif kind == frames.PUSH_PROMISE:
            raise Fault(frames.PROTOCOL_ERROR, "PUSH_PROMISE, which is switched off")

    def _data(self, flags: int, number: int, payload: bytes) -> None:
        # The connection's window is wide, and given anew at once: were it what bounds the unread, streams whose
        # messages are half here would hold up each other.
        size = len(payload)
        self._received += size
        if self._received >= _CONNECTION_WINDOW // 4:
            self.send(frames.window_update(0, self._received))
            self._received = 0
        stream = self._streams.get(number)
        if stream is None:
            return
        stream.allowance -= size
        if stream.allowance < 0:
            raise Fault(frames.FLOW_CONTROL_ERROR, "more than the window takes")
        stream.unread += size
        self._held += size
        if self._held > HELD_BYTES:
            stream.refuse(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{HELD_BYTES} bytes of this connection are unread")
            return
        if flags & frames.PADDED:
            payload = frames.unpadded(frames.DATA, flags, payload)
            self.consumed(stream, size - len(payload))
        stream.take_in(payload)
        if flags & frames.END_STREAM:
            stream.closed_by_other()
            self._ended_by_other(stream)

    def _header_block(self, number: int, flags: int, block: bytes) -> None:
        if number == 0:
            raise Fault(frames.PROTOCOL_ERROR, "headers of no stream")
        self._opened(number, self._headers.read(block), len(block), bool(flags & frames.END_STREAM))

    def _settings(self, payload: bytes) -> None:
        for key, value in frames.settings_of(payload):
            if key == frames.INITIAL_WINDOW_SIZE:
                more, self._initial_window = value - self._initial_window, value
                for stream in self._streams.values():
                    stream.out.window += more
        self._reply(frames.head(0, frames.SETTINGS, frames.ACK, 0))
        self._room_for_all()

    def _more_window(self, number: int, more: int) -> None:
        if number == 0:
            self.window += more
            self._room_for_all()
        elif (one := self._streams.get(number)) is not None:
            one.out.window += more
            one.has_room()

    def _room_for_all(self) -> None:
        for stream in list(self._streams.values()):
            stream.has_room()

    def _going(self, said: str) -> None:
        """The other side will take no new streams, and soon none at all."""

    def _reply(self, data: bytes) -> None:
        if self._writes.waiting > UNREAD_BYTES:
            raise Fault(frames.ENHANCE_YOUR_CALM, "asks, and does not read the answers")
        self.send(data)

    def _keep_alive(self) -> None:
        assert self._transport is not None
        if not self._heard and self._asked:
            self._transport.abort()
            self._break(f"nothing was heard for {2 * KEEPALIVE_S} s")
            return
        if not self._heard:
            self._asked = True
            self.send(frames.head(8, frames.PING, 0, 0) + bytes(8))
        self._heard, self._resets = False, 0
        self._timer = asyncio.get_running_loop().call_later(KEEPALIVE_S, self._keep_alive)

    def _forget(self, number: int) -> Stream | None:
        stream = self._streams.pop(number, None)
        if stream is not None:
            self._held -= stream.unread
            stream.unread = 0
        return stream

    def _break(self, said: str) -> None:
        streams, self._streams = list(self._streams.values()), {}
        for stream in streams:
            stream.gone(Ended(grpc.StatusCode.UNAVAILABLE, said))
