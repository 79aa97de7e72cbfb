"""Streams of a process to itself: the same wire, without a socket."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from grpc import StatusCode

from libs.streams.call import MESSAGE_BYTES, Ended
from libs.streams.client import Dialer, StreamRefused
from libs.streams.server import Handler, StreamServer
from libs.streams.stream import Stream

PATH = "/test.Echo/Talk"
ENDPOINT = "service.of.this.process:1"
"""Nobody listens there: what comes, comes through memory."""


async def echo(stream: Stream) -> None:
    """Says everything twice."""
    while (message := await stream.read()) is not None:
        stream.write(message)
        stream.write(message)
        await stream.room_again()


@asynccontextmanager
async def dialer(handler: Handler = echo) -> AsyncIterator[Dialer]:
    server = StreamServer({PATH: handler})
    await server.start("127.0.0.1:0")
    try:
        yield Dialer(here={ENDPOINT: server})
    finally:
        await server.stop()


async def taking(stream: Stream) -> None:
    stream.begin()
    await echo(stream)


async def test_messages_go_both_ways_whatever_their_size() -> None:
    async with asyncio.timeout(10), dialer(taking) as dial:
        stream = await dial.open(ENDPOINT, PATH)
        for size in (0, 1, 16_383, 16_384, 1_000_000, MESSAGE_BYTES):
            message = bytes(range(256)) * (size // 256) + bytes(size % 256)
            stream.write(message)
            assert await stream.read() == message
            assert await stream.read() == message
        stream.cancel()


async def test_each_call_is_a_connection_of_its_own() -> None:
    async with asyncio.timeout(10), dialer(taking) as dial:
        streams = [await dial.open(ENDPOINT, PATH) for _ in range(5)]
        for number, stream in enumerate(streams):
            stream.write(str(number).encode())
        streams[2].cancel()
        for number in (0, 1, 3, 4):
            assert await streams[number].read() == str(number).encode()


async def test_the_server_sees_a_caller_that_goes() -> None:
    gone = asyncio.Event()

    async def wait(stream: Stream) -> None:
        stream.begin()
        ended = await stream.ended()
        assert ended.code is StatusCode.CANCELLED
        gone.set()

    async with asyncio.timeout(10), dialer(wait) as dial:
        stream = await dial.open(ENDPOINT, PATH)
        stream.cancel()
        await gone.wait()


async def test_the_caller_sees_a_server_that_stops() -> None:
    async with asyncio.timeout(10):
        async with dialer(taking) as dial:
            stream = await dial.open(ENDPOINT, PATH)
        assert (await stream.ended()).code is StatusCode.UNAVAILABLE


async def test_a_status_comes_back() -> None:
    async def refuse(stream: Stream) -> None:
        stream.end(Ended(StatusCode.PERMISSION_DENIED, "not you"))

    async with asyncio.timeout(10), dialer(refuse) as dial:
        with pytest.raises(StreamRefused, match=r"PERMISSION_DENIED.*not you"):
            await dial.open(ENDPOINT, PATH)


async def test_an_endpoint_of_another_process_is_dialed() -> None:
    async with asyncio.timeout(10), dialer(taking) as dial:
        with pytest.raises(StreamRefused):
            await dial.open("127.0.0.1:1", PATH)
