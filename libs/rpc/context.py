"""What a servicer sees of the call that it serves: as much of grpc.aio's ServicerContext as this mesh uses."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError
from grpc import aio

from libs.errors import RequestInvalid
from libs.streams.call import OK, Ended, Headers, Metadata
from libs.streams.outgoing import Outgoing
from libs.streams.stream import Stream

_UNITS_S = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}


class Undecodable:
    """Stands for a request whose bytes are no message: layers see it, handlers do not."""


class Context:
    """One call. Owned by the task that serves it.

    Args:
        decode: Makes a message of bytes; raises DecodeError.
        encode: Makes bytes of a message.
    """

    __slots__ = ("_code", "_deadline", "_decode", "_details", "_encode", "_stream", "_trailers")

    def __init__(self, stream: Stream, decode: Callable[[bytes], Any], encode: Callable[[Any], bytes]) -> None:
        self._stream = stream
        self._decode = decode
        self._encode = encode
        self._code: grpc.StatusCode | None = None
        self._details = ""
        self._trailers: Metadata = ()
        seconds = timeout_s(stream.headers.get("grpc-timeout", ""))
        self._deadline = None if seconds is None else asyncio.get_running_loop().time() + seconds

    # What servicers use.

    @property
    def headers(self) -> Headers:
        """The caller's metadata."""
        return self._stream.headers

    @property
    def peer_names(self) -> Sequence[str]:
        """Subject alternative names of the caller's certificate, where it connected by mTLS."""
        return self._stream.peer_names

    def time_remaining(self) -> float | None:
        """Seconds to the caller's deadline; None where it set none."""
        return None if self._deadline is None else max(self._deadline - asyncio.get_running_loop().time(), 0.0)

    async def read(self) -> Any:
        """The next message; aio.EOF behind the last one. Raises RequestInvalid for bytes that are no message."""
        data = await self._stream.read()
        if data is None:
            return aio.EOF
        try:
            return self._decode(data)
        except DecodeError:
            raise undecodable() from None

    async def write(self, message: Any) -> None:
        """Sends a message. Waits while the caller takes no more."""
        if not self._stream.room:
            await self._stream.room_again()
        self._stream.write(self._encode(message))

    @property
    def room(self) -> bool:
        """Whether the caller takes more now."""
        return self._stream.room

    def say(self, message: Any) -> None:
        """Sends a message at once. For who looks at `room` before."""
        self._stream.write(self._encode(message))

    def say_bytes(self, message: bytes) -> None:
        """The same, of a message that is encoded."""
        self._stream.write(message)

    @property
    def out(self) -> Outgoing:
        """For who tells many calls at once, by `scatter`, when this one has taken its first message."""
        return self._stream.out

    async def speak(self, say: Callable[[], bool]) -> None:
        """Has `say` called now, when there is room again, and after `wake`, until it says that it is done. Nothing else
        writes to the call meanwhile. Raises what `say` raises."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def turn() -> None:
            try:
                over = say()
            except Exception as error:  # nothing may be raised here; the call's task raises it
                if not done.done():
                    done.set_exception(error)
            else:
                if over and not done.done():
                    done.set_result(None)

        self._stream.say_with(turn)
        self._stream.wake()
        await done

    def wake(self) -> None:
        """There is something to say for who speaks: once, at the end of this turn of the loop, if there is room."""
        self._stream.wake()

    async def send_initial_metadata(self, metadata: Metadata) -> None:
        """Says that the call is taken, before its first message does."""
        self._stream.begin(metadata)

    def set_trailing_metadata(self, metadata: Metadata) -> None:
        """What is said behind the last message."""
        self._trailers = tuple(metadata)

    def set_code(self, code: grpc.StatusCode) -> None:
        """How the call ends, once its handler returns."""
        self._code = code

    def set_details(self, details: str) -> None:
        """Why it ends so."""
        self._details = details

    def code(self) -> grpc.StatusCode | None:
        """How the call ends, as far as that has been said."""
        return self._code

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Metadata = ()) -> NoReturn:
        """Ends the call: raises AbortError, which nobody is to catch for good."""
        self._code, self._details = code, details
        self._trailers = (*self._trailers, *trailing_metadata)
        raise aio.AbortError(details)

    # What the server uses.

    async def request(self) -> Any:
        """The one message of a unary request; Undecodable for bytes that are none.

        Raises AbortError with gRPC's own code for another number of messages.
        """
        data = await self._stream.read()
        if data is None or await self._stream.read() is not None:
            await self.abort(grpc.StatusCode.UNIMPLEMENTED, "this method takes one message")
        try:
            return self._decode(data)
        except DecodeError:
            return Undecodable()

    async def requests(self) -> AsyncIterator[Any]:
        """All messages, for handlers that iterate."""
        while (message := await self.read()) is not aio.EOF:
            yield message

    async def end(self) -> None:
        """Sends what is left, then the status."""
        while not (self._stream.drained or self._stream.over):
            await self._stream.room_again()
        code = self._code or grpc.StatusCode.OK
        if code is grpc.StatusCode.OK and not self._trailers:
            self._stream.end(OK)
        else:
            self._stream.end(Ended(code, self._details, self._trailers))


def undecodable() -> RequestInvalid:
    """What a caller is told whose bytes cannot be read."""
    return RequestInvalid("the bytes are no message that this method takes: was it made with the same protos?")


def timeout_s(header: str) -> float | None:
    """Of a grpc-timeout header: up to eight digits and a unit. None for none, and for one that is not valid."""
    digits, unit = header[:-1], _UNITS_S.get(header[-1:])
    if unit is None or not (digits.isascii() and digits.isdigit()) or len(digits) > 8:
        return None
    return int(digits) * unit
