"""A client's side of a connection."""

import asyncio
from urllib.parse import unquote

import grpc

from libs.streams import frames
from libs.streams.call import CODES, Ended, Headers
from libs.streams.connection import Connection
from libs.streams.headers import written
from libs.streams.stream import Stream


class Dialed(Connection):
    """A client's side, with one stream.

    Args:
        path: /package.Service/Method
        authority: host:port, as it was dialed.
    """

    def __init__(self, path: str, authority: str, scheme: str) -> None:
        super().__init__()
        self._request = [
            (":method", "POST"), (":scheme", scheme), (":path", path), (":authority", authority),
            ("te", "trailers"), ("content-type", "application/grpc"), ("user-agent", "headrace"),
        ]  # fmt: skip
        self.stream = Stream(self, 1, self._initial_window)
        self.stands: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the server has taken the call."""

    greeting = frames.PREFACE

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._streams[1] = self.stream
        self.send(frames.headers(1, written(self._request), end=False))

    def finish(self, stream: Stream, ended: Ended | None) -> None:
        super().finish(stream, None)
        self.close()

    def _opened(self, number: int, headers: Headers, size: int, end: bool) -> None:
        stream = self._streams.get(number)
        if stream is None:
            return
        if end:
            stream.closed_by_other()
            self._forget(number)
            stream.gone(_status(headers))
            self.close()
        elif headers.get(":status") != "200":
            stream.cancel(f"HTTP {headers.get(':status')}")
        elif not self.stands.done():
            self.stands.set_result(None)

    def _ended_by_other(self, stream: Stream) -> None:
        self._forget(stream.number)
        stream.gone(Ended(grpc.StatusCode.INTERNAL, "the answer ended without a status"))
        self.close()

    def _going(self, said: str) -> None:
        self._break(said)
        self.close()


def _status(headers: Headers) -> Ended:
    number = headers.get("grpc-status", "")
    code = CODES.get(int(number)) if number.isdecimal() and len(number) < 3 else None
    return Ended(code or grpc.StatusCode.UNKNOWN, unquote(headers.get("grpc-message", "")))
