"""Methods of servicers on the mesh's own streams, called by gRPC's clients and by ill-mannered ones."""

import asyncio
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc
import pytest
from grpc import aio
from hpack import Decoder
from hypothesis import given
from hypothesis import strategies as st

from libs.rpc.context import Context, timeout_s
from libs.rpc.server import RpcServer, Service
from libs.streams import connection, frames
from libs.streams.call import MESSAGE_BYTES
from libs.streams.compression import Incompressible, inflate
from libs.streams.headers import HEADER_BYTES, written
from tests.rpc.wire import frames_of, raw, take_frame

NAME = "headrace.test.Door"
ECHO, COUNT, SUM, TALK = (f"/{NAME}/{method}" for method in ("Echo", "Count", "Sum", "Talk"))
LARGE = [("grpc.max_receive_message_length", MESSAGE_BYTES), ("grpc.max_send_message_length", MESSAGE_BYTES)]


async def echo(request: bytes, context: Context) -> bytes:
    return request


async def count(request: bytes, context: Context) -> None:
    """As many messages of a million bytes as the request says."""
    for number in range(int(request)):
        await context.write(bytes([number]) * 1_000_000)
    context.set_trailing_metadata((("told", str(int(request))), ("told-bin", b"\0\xff")))


async def total(_: object, context: Context) -> bytes:
    found = 0
    while (message := await context.read()) is not aio.EOF:
        found += int(message)
    return str(found).encode()


async def talk(_: object, context: Context) -> None:
    await context.send_initial_metadata((("hello", "there"),))
    while (message := await context.read()) is not aio.EOF:
        await context.write(message)


def add(_: object, server: Any) -> None:
    server.add_registered_method_handlers(NAME, {
        "Echo": grpc.unary_unary_rpc_method_handler(echo),
        "Count": grpc.unary_stream_rpc_method_handler(count),
        "Sum": grpc.stream_unary_rpc_method_handler(total),
        "Talk": grpc.stream_stream_rpc_method_handler(talk),
    })  # fmt: skip


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[Any, str]]:
    server = RpcServer("127.0.0.1:0", [Service(NAME, add, None)], [], None)
    await server.start()
    endpoint = f"127.0.0.1:{server.port}"
    try:
        async with aio.insecure_channel(endpoint, options=LARGE) as channel:
            yield channel, endpoint
    finally:
        await server.stop()


def request(number: int, path: str, message: bytes | None = b"", **headers: str) -> bytes:
    """A call as bytes; None leaves its end open."""
    fields = {":method": "POST", ":scheme": "http", ":path": path, "content-type": "application/grpc"}
    sent = frames.headers(number, written([*fields.items(), *headers.items()]), end=False)
    return sent if message is None else sent + body(number, message)


def body(number: int, message: bytes, flags: int = frames.END_STREAM) -> bytes:
    data = len(message).to_bytes(5, "big") + message
    return frames.head(len(data), frames.DATA, flags, number) + data


HELLO = frames.PREFACE + frames.settings([])


async def statuses(reader: asyncio.StreamReader, numbers: set[int]) -> dict[int, dict[str, str]]:
    """The trailers of these calls."""
    decoder, found = Decoder(), dict[int, dict[str, str]]()
    async with asyncio.timeout(10):
        while set(found) < numbers:
            kind, _, number, payload = await take_frame(reader)
            if kind == frames.HEADERS:
                headers = {str(name): str(value) for name, value in decoder.decode(payload)}
                if "grpc-status" in headers:
                    found[number] = headers
    return found


async def test_methods_of_all_four_kinds() -> None:
    async with serving() as (channel, _):
        assert await channel.unary_unary(ECHO)(b"word", timeout=10) == b"word"
        assert await channel.stream_unary(SUM)(iter([b"1", b"20", b"300"]), timeout=10) == b"321"
        call = channel.stream_stream(TALK)(timeout=10)
        assert dict(await call.initial_metadata())["hello"] == "there"
        for word in (b"a", b"", b"c" * 100_000):
            await call.write(word)
            assert await call.read() == word
        await call.done_writing()
        assert await call.read() is aio.EOF
        assert await call.code() is grpc.StatusCode.OK


async def test_a_server_that_retires_serves_those_that_are_there_to_their_end() -> None:
    server = RpcServer("127.0.0.1:0", [Service(NAME, add, None)], [], None)
    await server.start()
    endpoint = f"127.0.0.1:{server.port}"
    async with raw(endpoint) as (reader, writer), aio.insecure_channel(endpoint) as channel:
        writer.write(HELLO)
        talking = channel.stream_stream(TALK)(timeout=10)
        await talking.initial_metadata()
        server.retire()
        await talking.write(b"still")
        assert await talking.read() == b"still"
        with pytest.raises(ConnectionRefusedError):
            async with raw(endpoint):
                pass
        with pytest.raises(aio.AioRpcError) as raised:
            await channel.unary_unary(ECHO)(b"new", timeout=10)
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE, "it dials anew"
        writer.write(request(1, ECHO, b"sent before that was read"))
        assert (await statuses(reader, {1}))[1]["grpc-status"] == "0"
        await talking.done_writing()
        assert await talking.read() is aio.EOF
        assert await talking.code() is grpc.StatusCode.OK
    await server.stop()


async def test_a_thousand_calls_at_once_on_one_connection() -> None:
    async with serving() as (channel, _):
        method = channel.unary_unary(ECHO)
        words = [str(number).encode() for number in range(1000)]
        assert await asyncio.gather(*(method(word, timeout=20) for word in words)) == words


async def test_a_slow_reader_gets_all_of_an_answer_and_then_its_end() -> None:
    async with serving() as (channel, _):
        call = channel.unary_stream(COUNT)(b"12", timeout=20)
        got = []
        while (message := await call.read()) is not aio.EOF:
            got.append(message[0])
            await asyncio.sleep(0.01)
        assert got == list(range(12))
        trailers = dict(await call.trailing_metadata())
        assert (await call.code(), trailers["told"], trailers["told-bin"]) == (grpc.StatusCode.OK, "12", b"\0\xff")


@pytest.mark.parametrize("kind", [grpc.Compression.Gzip, grpc.Compression.Deflate])
async def test_clients_may_compress(kind: grpc.Compression) -> None:
    async with serving() as (channel, _):
        assert await channel.unary_unary(ECHO)(b"x" * 100_000, compression=kind, timeout=10) == b"x" * 100_000


def test_what_cannot_be_decompressed() -> None:
    for data, encoding, code in (
        (b"", "br", grpc.StatusCode.UNIMPLEMENTED),
        (b"no", "gzip", grpc.StatusCode.INTERNAL),
        (zlib.compress(b"cut")[:-1], "deflate", grpc.StatusCode.INTERNAL),
        (zlib.compress(bytes(1001)), "deflate", grpc.StatusCode.RESOURCE_EXHAUSTED),
    ):
        with pytest.raises(Incompressible) as raised:
            inflate(data, encoding, 1000)
        assert raised.value.code is code
    assert inflate(zlib.compress(bytes(1000)), "deflate", 1000) == bytes(1000)


async def test_a_unary_request_is_one_message() -> None:
    async with serving() as (_, endpoint), raw(endpoint) as (reader, writer):
        writer.write(HELLO + request(1, ECHO, None) + frames.head(0, frames.DATA, frames.END_STREAM, 1))
        writer.write(request(3, ECHO, None) + body(3, b"one", 0) + body(3, b"two"))
        writer.write(request(5, ECHO, b"fine"))
        ended = await statuses(reader, {1, 3, 5})
    assert [ended[number]["grpc-status"] for number in (1, 3, 5)] == ["12", "12", "0"]
    assert ended[1]["grpc-message"] == "this method takes one message"


async def test_a_call_with_too_long_headers_is_refused_alone() -> None:
    async with serving() as (_, endpoint), raw(endpoint) as (reader, writer):
        writer.write(HELLO + request(1, ECHO, long="x" * HEADER_BYTES) + request(3, ECHO))
        ended = await statuses(reader, {1, 3})
    assert (ended[1]["grpc-status"], ended[3]["grpc-status"]) == ("8", "0")
    assert str(HEADER_BYTES) in ended[1]["grpc-message"]


async def test_a_header_that_is_no_text_disturbs_nobody() -> None:
    async with serving() as (_, endpoint), raw(endpoint) as (reader, writer):
        writer.write(HELLO + request(1, ECHO, odd="\xff\x80") + request(3, "/no/such\x00method"))
        ended = await statuses(reader, {1, 3})
    assert (ended[1]["grpc-status"], ended[3]["grpc-status"]) == ("0", "12")


async def test_unread_bytes_are_bounded_by_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HELD_BYTES", 64_000)
    half = (9_000).to_bytes(5, "big") + bytes(8_000)
    async with serving() as (_, endpoint), raw(endpoint) as (reader, writer):
        writer.write(HELLO)
        for number in range(1, 17, 2):  # 64,040 bytes: the eighth is one too many
            writer.write(request(number, ECHO, None) + frames.head(len(half), frames.DATA, 0, number) + half)
        refused = await statuses(reader, {15})
        assert refused[15]["grpc-status"] == str(grpc.StatusCode.RESOURCE_EXHAUSTED.value[0])
        for number in range(1, 15, 2):
            writer.write(frames.head(1_000, frames.DATA, frames.END_STREAM, number) + bytes(1_000))
        ended = await statuses(reader, set(range(1, 15, 2)))
        assert {status["grpc-status"] for status in ended.values()} == {"0"}


async def test_who_opens_calls_to_take_them_back_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "RESETS", 50)
    async with serving() as (channel, endpoint), raw(endpoint) as (reader, writer):
        writer.write(HELLO)
        for number in range(1, 105, 2):
            writer.write(request(number, TALK, None) + frames.reset(number, frames.CANCEL))
        async with asyncio.timeout(10):
            heard = await reader.read()
        *_, (kind, _, _, payload) = frames_of(heard)
        assert (kind, payload[4:8]) == (frames.GOAWAY, frames.ENHANCE_YOUR_CALM.to_bytes(4, "big"))
        assert await channel.unary_unary(ECHO)(b"others go on", timeout=10) == b"others go on"


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("1S", 1.0), ("250m", 0.25), ("3u", 3e-6), ("7n", 7e-9), ("2M", 120.0), ("1H", 3600.0), ("0S", 0.0),
     ("", None), ("S", None), ("5", None), ("-1S", None), ("1.5S", None), ("123456789S", None), ("1s", None)],
)  # fmt: skip
def test_timeouts(header: str, seconds: float | None) -> None:
    assert timeout_s(header) == (None if seconds is None else pytest.approx(seconds))


@given(st.binary(max_size=400), st.sampled_from(["gzip", "deflate"]))
def test_no_bytes_do_more_than_be_refused(data: bytes, encoding: str) -> None:
    with suppress(Incompressible):
        assert len(inflate(data, encoding, 100)) <= 100
