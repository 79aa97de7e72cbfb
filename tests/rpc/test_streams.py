"""Streams over real sockets: with each other, with grpc.aio on either side, and with who does not keep to HTTP/2."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc
import pytest
from grpc import aio
from hpack import Decoder, Encoder
from hypothesis import given, settings
from hypothesis import strategies as st

from libs.errors import Overloaded
from libs.rpc.serving import telling
from libs.streams import connection, frames
from libs.streams.call import MESSAGE_BYTES
from libs.streams.client import Dialer, StreamRefused
from libs.streams.server import StreamServer
from libs.streams.stream import WINDOW, Stream
from tests.rpc.wire import frames_of, raw, take_frame

PATH = "/test.Echo/Talk"
SIZES = (0, 1, 16_379, 16_380, 70_000, 1_500_000, MESSAGE_BYTES)
"""Around a frame, a default window, and the longest message."""


def hello() -> bytes:
    """What a client says first: preface, settings, and the call."""
    request = [(":method", "POST"), (":scheme", "http"), (":path", PATH), (":authority", "a"),
               ("te", "trailers"), ("content-type", "application/grpc")]  # fmt: skip
    return frames.PREFACE + frames.settings([]) + frames.headers(1, Encoder().encode(request), end=False)


async def echo(stream: Stream) -> None:
    while (message := await stream.read()) is not None:
        stream.write(message)


@asynccontextmanager
async def serving(handler: Callable[[Stream], Awaitable[None]] = echo) -> AsyncIterator[str]:
    async def take(stream: Stream) -> None:
        stream.begin()
        await handler(stream)

    server = StreamServer({PATH: telling(take)})
    await server.start("127.0.0.1:0")
    try:
        yield f"127.0.0.1:{server.port}"
    finally:
        await server.stop()


@pytest.mark.parametrize("size", SIZES)
async def test_messages_of_every_size_come_back(size: int) -> None:
    async with serving() as endpoint:
        stream = await Dialer().open(endpoint, PATH)
        for filling in b"ab":
            stream.write(bytes([filling]) * size)
        async with asyncio.timeout(10):
            assert [await stream.read(), await stream.read()] == [b"a" * size, b"b" * size]
        stream.cancel()


async def test_an_ordinary_client_speaks_with_this_server() -> None:
    async with serving() as endpoint, aio.insecure_channel(endpoint, options=_LARGE) as channel:
        call = channel.stream_stream(PATH)()
        for size in SIZES:
            await call.write(b"x" * size)
        async with asyncio.timeout(10):
            assert [len(await call.read()) for _ in SIZES] == list(SIZES)  # type: ignore[arg-type]
        await call.done_writing()
        assert await call.read() is aio.EOF
        assert await call.code() is grpc.StatusCode.OK


async def test_this_client_speaks_with_an_ordinary_server() -> None:
    async with ordinary() as endpoint:
        stream = await Dialer().open(endpoint, PATH)
        for size in SIZES:
            stream.write(b"x" * size)
        async with asyncio.timeout(10):
            assert [len(await stream.read() or b"") for _ in SIZES] == list(SIZES)
        stream.write(b"stop")
        ended = await stream.ended()
        assert (ended.code, ended.details) == (grpc.StatusCode.FAILED_PRECONDITION, "50 % of it, no more: ü")


async def test_what_a_handler_raises_arrives_with_its_details() -> None:
    async def refuse(stream: Stream) -> None:
        raise Overloaded("no room, 100 % full: ü", retry_after_s=1.5)

    async with serving(refuse) as endpoint:
        ended = await (await Dialer().open(endpoint, PATH)).ended()
        assert (ended.code, ended.details) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "no room, 100 % full: ü")
        async with aio.insecure_channel(endpoint) as channel:
            call = channel.stream_stream(PATH)()
            with pytest.raises(aio.AioRpcError) as raised:
                await call.read()
        assert raised.value.details() == "no room, 100 % full: ü"
        trailers = dict(raised.value.trailing_metadata() or ())
        assert b"OVERLOADED" in trailers["grpc-status-details-bin"]  # type: ignore[operator]


async def test_a_bug_of_a_handler_ends_its_call_and_no_other() -> None:
    async def fragile(stream: Stream) -> None:
        if await stream.read() == b"break":
            raise RuntimeError("boom")
        stream.write(b"fine")
        await stream.ended()

    async with serving(fragile) as endpoint:
        broken, whole = await Dialer().open(endpoint, PATH), await Dialer().open(endpoint, PATH)
        broken.write(b"break")
        ended = await broken.ended()
        assert (ended.code, "boom" in ended.details) == (grpc.StatusCode.INTERNAL, False)
        whole.write(b"go on")
        assert await whole.read() == b"fine"
        whole.cancel()


async def test_a_method_that_is_not_there_and_nobody_at_all() -> None:
    async with serving() as endpoint:
        with pytest.raises(StreamRefused, match=r"UNIMPLEMENTED: .*there is no /test.Echo/Shout"):
            await Dialer().open(endpoint, "/test.Echo/Shout")
        async with aio.insecure_channel(endpoint) as channel:
            with pytest.raises(aio.AioRpcError) as raised:
                await channel.unary_unary("/test.Echo/Shout")(b"")
        assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED
    with pytest.raises(StreamRefused, match="ConnectionRefused"):
        await Dialer().open(endpoint, PATH)
    with pytest.raises(StreamRefused):
        await Dialer().open("not an endpoint", PATH)


async def test_a_cancel_is_seen_on_the_other_side() -> None:
    ends: list[str] = []

    async def watch(stream: Stream) -> None:
        ends.append(str(await stream.ended()))

    async with serving(watch) as endpoint:
        stream = await Dialer().open(endpoint, PATH)
        stream.cancel("enough")
        assert str(await stream.ended()) == "CANCELLED: enough"
        await until(lambda: bool(ends))
        assert ends == ["CANCELLED: the other side cancelled the call"]
        stream.write(b"ignored")
        assert await stream.read() is None


async def test_a_server_that_stops_ends_its_streams() -> None:
    async with serving() as endpoint:
        stream = await Dialer().open(endpoint, PATH)
    async with asyncio.timeout(5):
        ended = await stream.ended()
    assert ended.code is grpc.StatusCode.UNAVAILABLE
    assert not stream.alive


async def test_a_writer_is_held_by_a_reader_that_stopped() -> None:
    """What is written is bounded by the window, not by what there is to write; and goes on where it stopped."""
    held: list[Stream] = []

    async def deaf(stream: Stream) -> None:
        held.append(stream)
        await stream.ended()

    async with serving(deaf) as endpoint:
        stream = await Dialer().open(endpoint, PATH)
        await until(lambda: bool(held))
        written, message = 0, b"x" * 60_000
        for _ in range(1000):
            if stream.room:
                stream.write(message)
                written += 1
            await asyncio.sleep(0)
        await asyncio.sleep(0.1)
        assert not stream.room
        assert written * 60_000 < WINDOW + 200_000
        more = asyncio.Event()
        stream.say_with(more.set)
        for _ in range(written - 1):
            assert await held[0].read() == message
        async with asyncio.timeout(5):
            await more.wait()
            assert await held[0].read() == message
        stream.cancel()


async def test_what_is_said_in_one_turn_leaves_once() -> None:
    async with serving() as endpoint:
        stream = await Dialer().open(endpoint, PATH)
        said: list[int] = []
        stream.say_with(lambda: said.append(len(said)))
        for _ in range(5):
            stream.wake()
        await asyncio.sleep(0)
        assert said == [0]
        stream.cancel()


async def test_who_is_silent_is_asked_and_then_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "KEEPALIVE_S", 0.1)
    async with serving() as endpoint:
        living = await Dialer().open(endpoint, PATH)
        async with raw(endpoint) as (reader, writer):
            writer.write(hello())
            async with asyncio.timeout(5):
                heard = await _until_closed(reader)
        assert frames.head(8, frames.PING, 0, 0) in heard
        living.write(b"still there")
        assert await living.read() == b"still there"
        living.cancel()


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        frames.PREFACE + frames.head(20_000, frames.DATA, 0, 1) + bytes(20_000),
        frames.PREFACE + frames.head(3, frames.SETTINGS, 0, 0) + b"abc",
        frames.PREFACE + frames.head(4, frames.HEADERS, frames.END_HEADERS, 1) + b"\xff\xff\xff\xff",
        frames.PREFACE + frames.head(4, frames.HEADERS, frames.END_HEADERS, 2) + b"\x82\x82\x82\x82",
        frames.PREFACE + frames.head(1, frames.HEADERS, frames.END_HEADERS, 0) + b"\x82",
        frames.PREFACE + frames.head(1, frames.CONTINUATION, frames.END_HEADERS, 1) + b"\x82",
        frames.PREFACE + frames.head(2, frames.HEADERS, frames.PADDED | frames.END_HEADERS, 1) + b"\x09\x82",
        hello() + frames.head(0, frames.DATA, frames.PADDED, 1),
        frames.PREFACE + frames.head(5, frames.PING, 0, 0) + bytes(5),
        frames.PREFACE + frames.head(0, frames.PUSH_PROMISE, 0, 1),
        frames.PREFACE + (frames.head(16_000, frames.HEADERS, 0, 1) + bytes(16_000))
        + (frames.head(16_000, frames.CONTINUATION, 0, 1) + bytes(16_000)) * 8,
    ],
)  # fmt: skip
async def test_who_breaks_the_protocol_is_let_go_and_nobody_else(sent: bytes) -> None:
    async with serving() as endpoint:
        other = await Dialer().open(endpoint, PATH)
        async with raw(endpoint) as (reader, writer):
            writer.write(sent)
            async with asyncio.timeout(5):
                heard = await _until_closed(reader)
        *_, last = (kind for kind, *_ in frames_of(heard))
        assert last == frames.GOAWAY
        other.write(b"and I?")
        assert await other.read() == b"and I?"
        other.cancel()


async def test_who_sends_more_than_the_window_takes_is_let_go() -> None:
    async def deaf(stream: Stream) -> None:
        await stream.ended()

    async with serving(deaf) as endpoint, raw(endpoint) as (reader, writer), asyncio.timeout(10):
        writer.write(hello())
        full = frames.head(frames.FRAME_BYTES, frames.DATA, 0, 1) + bytes(frames.FRAME_BYTES)
        with suppress(ConnectionError):
            for _ in range(WINDOW // frames.FRAME_BYTES + 1):
                writer.write(full)
                await writer.drain()
        assert b"more than the window takes" in await _until_closed(reader)


@settings(max_examples=60, deadline=None)
@given(noise=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 255), st.integers(0, 5), st.binary(max_size=80))))
def test_no_noise_disturbs_another_stream(noise: list[tuple[int, int, int, bytes]]) -> None:
    async def play() -> None:
        async with serving() as endpoint, raw(endpoint) as (_, writer):
            writer.write(hello())
            for kind, flags, stream, payload in noise:
                writer.write(frames.head(len(payload), kind, flags, stream) + payload)
            other = await Dialer().open(endpoint, PATH)
            other.write(b"x")
            async with asyncio.timeout(5):
                assert await other.read() == b"x"
            other.cancel()

    asyncio.run(play())


@given(
    cuts=st.lists(st.integers(1, 400), max_size=30),
    messages=st.lists(st.binary(max_size=300), max_size=12),
)
@settings(max_examples=60, deadline=None)
def test_however_the_bytes_are_cut_the_messages_are_the_same(cuts: list[int], messages: list[bytes]) -> None:
    async def play() -> list[bytes]:
        heard: list[bytes] = []

        async def take(stream: Stream) -> None:
            while (message := await stream.read()) is not None:
                heard.append(message)

        async with serving(take) as endpoint, raw(endpoint) as (reader, writer):
            writer.write(hello())
            data = b"".join(len(message).to_bytes(5, "big") + message for message in messages)
            at = 0
            for cut in [*cuts, len(data)]:
                part = data[at : at + cut][: frames.FRAME_BYTES]
                writer.write(frames.head(len(part), frames.DATA, 0, 1) + part)
                at += len(part)
            writer.write(frames.head(0, frames.DATA, frames.END_STREAM, 1))
            async with asyncio.timeout(5):
                while (await take_frame(reader))[:2] != (frames.HEADERS, frames.END_HEADERS | frames.END_STREAM):
                    pass
        return heard

    assert asyncio.run(play()) == messages


async def test_a_message_that_is_too_long_or_compressed_ends_its_call() -> None:
    async with serving() as endpoint:
        for prefix, said in (((MESSAGE_BYTES + 1).to_bytes(5, "big"), b"longer than"),):
            decoder, status = Decoder(), dict[Any, Any]()
            async with raw(endpoint) as (reader, writer), asyncio.timeout(5):
                writer.write(hello() + frames.head(len(prefix), frames.DATA, 0, 1) + prefix)
                while "grpc-status" not in status:
                    kind, _, _, payload = await take_frame(reader)
                    if kind == frames.HEADERS:
                        status = dict(decoder.decode(payload))
            assert status["grpc-status"] == str(grpc.StatusCode.RESOURCE_EXHAUSTED.value[0])
            assert said.decode() in status["grpc-message"]


async def test_an_ordinary_server_that_is_killed_and_a_status_without_an_answer() -> None:
    async def away(request: Any, context: aio.ServicerContext[Any, Any]) -> None:
        await context.abort(grpc.StatusCode.UNAVAILABLE, "not today")

    async with ordinary(away) as endpoint:
        with pytest.raises(StreamRefused, match="UNAVAILABLE: not today"):
            await Dialer().open(endpoint, PATH)


async def talk(_: Any, context: aio.ServicerContext[Any, Any]) -> None:
    await context.send_initial_metadata(())
    while (message := await context.read()) is not aio.EOF:
        if message == b"stop":
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "50 % of it, no more: ü")
        await context.write(message)


@asynccontextmanager
async def ordinary(handler: Any = talk) -> AsyncIterator[str]:
    """A server of grpc.aio."""
    server = aio.server(options=_LARGE)
    methods = {"Talk": grpc.stream_stream_rpc_method_handler(handler)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


_LARGE = [("grpc.max_receive_message_length", MESSAGE_BYTES), ("grpc.max_send_message_length", MESSAGE_BYTES)]


async def _until_closed(reader: asyncio.StreamReader) -> bytes:
    heard = b""
    try:
        while more := await reader.read(1000):
            heard += more
    except ConnectionError:
        pass
    return heard


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)
