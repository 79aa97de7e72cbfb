"""A server's side of a connection."""

from collections.abc import Callable

import grpc

from libs.streams import frames
from libs.streams.call import Ended, Headers, Metadata
from libs.streams.connection import MAX_STREAMS, Connection
from libs.streams.frames import Fault
from libs.streams.headers import HEADER_BYTES, REFUSED, TAKEN, fields_of, trailers, written
from libs.streams.stream import Stream


class Accepted(Connection):
    """A server's side.

    Args:
        accept: Gets each call; it is the server's from then on.
    """

    def __init__(self, accept: Callable[[Stream], None]) -> None:
        super().__init__()
        self._accept = accept
        self._greeting = bytearray()
        self._greeted = False
        self._last = 0

    def data_received(self, data: bytes) -> None:
        if not self._greeted:
            self._greeting += data
            if not frames.PREFACE.startswith(self._greeting[: len(frames.PREFACE)]):
                self.close(frames.PROTOCOL_ERROR, "this port speaks gRPC")
                return
            if len(self._greeting) < len(frames.PREFACE):
                return
            self._greeted, data = True, bytes(self._greeting[len(frames.PREFACE) :])
            self._greeting.clear()
        super().data_received(data)

    def retire(self) -> None:
        """Asks the client to make its next calls on another connection. What it has begun goes on, and what it begins
        before it has read this is taken (RFC 9113, section 6.8)."""
        self.send(frames.goaway(frames.MOST_STREAM, frames.NO_ERROR, "this process leaves"))

    def begin(self, stream: Stream, metadata: Metadata) -> None:
        self._send_headers(stream.number, TAKEN + written(fields_of(metadata)) if metadata else TAKEN)

    def finish(self, stream: Stream, ended: Ended | None) -> None:
        if ended is None:
            super().finish(stream, ended)
            return
        self._forget(stream.number)
        self._send_headers(stream.number, b"" if stream.begun else TAKEN, trailers(ended))

    def _opened(self, number: int, headers: Headers, size: int, end: bool) -> None:
        known = self._streams.get(number)
        if known is not None:
            if not end:
                raise Fault(frames.PROTOCOL_ERROR, "headers in the middle of a stream")
            known.closed_by_other()
            self._ended_by_other(known)
            return
        if number % 2 == 0:
            raise Fault(frames.PROTOCOL_ERROR, f"stream {number}, which is a server's to open")
        if number <= self._last:
            return  # trailers of a call that has ended on this side
        self._last = number
        if len(self._streams) >= MAX_STREAMS:
            self.send(frames.reset(number, frames.REFUSED_STREAM))
            return
        if not headers.get("content-type", "").startswith("application/grpc"):
            self.send(frames.headers(number, REFUSED, end=True))
            return
        stream = self._streams[number] = Stream(self, number, self._initial_window, headers)
        if size > HEADER_BYTES:
            stream.refuse(grpc.StatusCode.RESOURCE_EXHAUSTED, f"headers of more than {HEADER_BYTES} bytes")
            return
        if end:
            stream.closed_by_other()
            self._ended_by_other(stream)
        self._accept(stream)

    def _ended_by_other(self, stream: Stream) -> None:
        stream.broke(Ended(grpc.StatusCode.OK))

    def _send_headers(self, number: int, block: bytes, last: bytes | None = None) -> None:
        self.send(frames.headers(number, block + (last or b""), end=last is not None))
