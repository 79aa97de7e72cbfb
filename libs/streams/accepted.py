"""A server's side of a connection."""

import base64
from collections.abc import Callable
from urllib.parse import quote

import grpc

from libs.streams import frames
from libs.streams.connection import MAX_STREAMS, Connection, Headers
from libs.streams.frames import Fault
from libs.streams.stream import Ended, Stream

MESSAGE_CHARACTERS = 1024
"""Of a status's text."""
_ANSWER = [(":status", "200"), ("content-type", "application/grpc")]


class Accepted(Connection):
    """A server's side.

    Args:
        accept: Gets each stream with its path and headers; False from it means that there is no such method.
    """

    def __init__(self, accept: Callable[[Stream, Headers], bool]) -> None:
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

    def finish(self, stream: Stream, ended: Ended | None) -> None:
        if ended is None:
            super().finish(stream, ended)
            return
        self._forget(stream.number)
        self._send_headers(stream.number, _trailers(ended), end=True)

    def _opened(self, number: int, headers: Headers, end: bool) -> None:
        known = self._streams.get(number)
        if known is not None:
            if not end:
                raise Fault(frames.PROTOCOL_ERROR, "headers in the middle of a stream")
            known.half_closed()
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
            self._send_headers(number, [(":status", "415")], end=True)
            return
        stream = self._streams[number] = Stream(self, number, self._initial_window)
        if not self._accept(stream, headers):
            path = headers.get(":path", "")[:MESSAGE_CHARACTERS]
            self._forget(number)
            said = Ended(grpc.StatusCode.UNIMPLEMENTED, f"this port carries the mesh's streams; there is no {path}")
            self._send_headers(number, [*_ANSWER, *_trailers(said)], end=True)
            stream.gone(said)
            return
        self._send_headers(number, _ANSWER, end=False)
        if end:
            stream.half_closed()
            self._ended_by_other(stream)

    def _ended_by_other(self, stream: Stream) -> None:
        stream.broke(Ended(grpc.StatusCode.OK))

    def _send_headers(self, number: int, headers: list[tuple[str, str]], *, end: bool) -> None:
        self.send(frames.headers(number, self._encoder.encode(headers), end=end))


def _trailers(ended: Ended) -> list[tuple[str, str]]:
    trailers = [("grpc-status", str(ended.code.value[0]))]
    if ended.details:
        trailers.append(
            ("grpc-message", quote(ended.details[:MESSAGE_CHARACTERS], safe=" !#$&'()*+,/:;=?@[]\"<>^`{|}~"))
        )
    if ended.status:
        trailers.append(("grpc-status-details-bin", base64.b64encode(ended.status).decode().rstrip("=")))
    return trailers
