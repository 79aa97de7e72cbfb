"""The layers around every RPC, on a real server."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from google.protobuf import empty_pb2
from google.rpc import status_pb2
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from structlog.testing import capture_logs

from libs.clock import SystemClock
from libs.errors import CredentialsInvalid, QuotaExceeded, RequestInvalid, Violation
from libs.rpc.call import CALL, Call
from libs.rpc.channels import Channels
from libs.rpc.interceptors import Layer, deadline, errors, identity, telemetry
from libs.rpc.server import RpcServer, Service
from libs.rpc.status import from_failure
from libs.telemetry import names
from libs.telemetry.span import SpanRecord
from libs.telemetry.tracing import Tracing

Handler = Callable[[Any, Any], Awaitable[Any]]
NAME = "headrace.test.Echo"
UNARY, STREAM = f"/{NAME}/Unary", f"/{NAME}/Stream"


def service(unary: Handler, stream: Handler) -> Service:
    """A service of two methods, without generated code."""
    codec: dict[str, Any] = {
        "request_deserializer": empty_pb2.Empty.FromString,
        "response_serializer": empty_pb2.Empty.SerializeToString,
    }

    def add(_: Any, server: Any) -> None:
        server.add_registered_method_handlers(NAME, {
            "Unary": grpc.unary_unary_rpc_method_handler(unary, **codec),
            "Stream": grpc.stream_stream_rpc_method_handler(stream, **codec),
        })  # fmt: skip

    return Service(NAME, add, None)


async def nothing(request: Any, context: Any) -> Any:
    return empty_pb2.Empty()


@asynccontextmanager
async def serving(
    unary: Handler = nothing, stream: Handler = nothing, layers: Sequence[Layer] = (errors,)
) -> AsyncIterator[tuple[aio.Channel, RpcServer]]:
    server = RpcServer("127.0.0.1:0", [service(unary, stream)], layers, None)
    await server.start()
    channels = Channels()
    try:
        yield channels.connect(f"127.0.0.1:{server.port}"), server
    finally:
        await channels.close()
        await server.stop()


def call_unary(channel: aio.Channel, **options: Any) -> Any:
    method = channel.unary_unary(UNARY, empty_pb2.Empty.SerializeToString, empty_pb2.Empty.FromString)
    return method(empty_pb2.Empty(), **{"timeout": 10, **options})


def call_stream(channel: aio.Channel, **options: Any) -> Any:
    method = channel.stream_stream(STREAM, empty_pb2.Empty.SerializeToString, empty_pb2.Empty.FromString)
    return method(**options)


def raising(error: BaseException) -> Handler:
    async def handle(request: Any, context: Any) -> Any:
        raise error

    return handle


def details(error: aio.AioRpcError) -> status_pb2.Status:
    (packed,) = [value for key, value in error.trailing_metadata() or () if key == "grpc-status-details-bin"]
    return status_pb2.Status.FromString(packed)


@pytest.mark.parametrize("kind", ["unary", "stream"])
async def test_an_error_arrives_with_its_details(kind: str) -> None:
    error = QuotaExceeded("three are running", violations=[Violation("tenant/t", "3 of 3")], retry_after_s=1.5)
    async with serving(raising(error), raising(error)) as (channel, _):
        with pytest.raises(aio.AioRpcError) as raised:
            await (call_unary(channel) if kind == "unary" else call_stream(channel, timeout=10).read())
    assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert raised.value.details() == "three are running"
    back = from_failure(details(raised.value))
    assert isinstance(back, QuotaExceeded)
    assert (back.violations, back.retry_after_s) == (error.violations, 1.5)


async def test_however_much_is_wrong_the_error_arrives() -> None:
    many = [Violation(f"chat.messages[{n}].role", "世" * 1000) for n in range(1024)]
    async with serving(raising(RequestInvalid.of(many))) as (channel, _):
        with pytest.raises(aio.AioRpcError) as raised:
            await call_unary(channel)
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert isinstance(from_failure(details(raised.value)), RequestInvalid)


@pytest.mark.parametrize("kind", ["unary", "stream"])
async def test_a_bug_does_not_tell_its_text(kind: str) -> None:
    with capture_logs() as logs:
        async with serving(raising(KeyError("the secret")), raising(KeyError("the secret"))) as (channel, _):
            with pytest.raises(aio.AioRpcError) as raised:
                await (call_unary(channel) if kind == "unary" else call_stream(channel, timeout=10).read())
    assert raised.value.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in repr(raised.value) + str(details(raised.value))
    assert [entry["event"] for entry in logs] == ["handler failed"]


async def test_a_cancel_from_inside_does_not_leave_the_caller_hanging() -> None:
    async def handle(request: Any, context: Any) -> Any:
        inner = asyncio.ensure_future(asyncio.sleep(60))
        asyncio.get_running_loop().call_soon(inner.cancel)
        await inner

    async with serving(handle, handle) as (channel, _):
        for call in (call_unary(channel), call_stream(channel, timeout=10).read()):
            async with asyncio.timeout(5):
                with pytest.raises((aio.AioRpcError, asyncio.CancelledError)) as raised:
                    await call
            if isinstance(raised.value, aio.AioRpcError):
                assert raised.value.code() is grpc.StatusCode.CANCELLED


class Held:
    """A handler that waits until it is cancelled."""

    def __init__(self) -> None:
        self.begun, self.ended = asyncio.Event(), asyncio.Event()

    async def __call__(self, request: Any, context: Any) -> Any:
        self.begun.set()
        try:
            await asyncio.sleep(60)
        finally:
            self.ended.set()


@pytest.mark.parametrize("kind", ["unary", "stream"])
async def test_a_caller_that_goes_away_ends_the_handler(kind: str) -> None:
    held = Held()
    async with serving(held.__call__, held.__call__) as (channel, _), asyncio.timeout(5):
        call = call_unary(channel) if kind == "unary" else call_stream(channel)
        await held.begun.wait()
        call.cancel()
        await held.ended.wait()


async def test_a_deadline_ends_the_handler() -> None:
    held = Held()
    async with serving(held.__call__) as (channel, _), asyncio.timeout(5):
        with pytest.raises(aio.AioRpcError) as raised:
            await call_unary(channel, timeout=0.1)
        assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await held.ended.wait()


async def test_a_server_that_stops_ends_its_handlers_and_its_callers() -> None:
    held = Held()
    async with serving(stream=held.__call__) as (channel, server), asyncio.timeout(5):
        call = call_stream(channel)
        await held.begun.wait()
        await server.stop()
        await held.ended.wait()
        assert await call.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


async def test_the_callers_deadline_is_noted() -> None:
    seen: list[float | None] = []

    async def note(request: Any, context: Any) -> Any:
        seen.append(CALL.get().deadline)
        return empty_pb2.Empty()

    clock = SystemClock()
    async with serving(note, layers=[errors, deadline(clock)]) as (channel, _):
        await call_unary(channel, timeout=5)
        await call_unary(channel, timeout=None)
    first, second = seen
    assert first is not None
    assert abs(first - clock.now() - 5) < 1
    assert second is None


async def test_the_caller_is_who_the_authenticator_says() -> None:
    def who(call: Call) -> str:
        if call.metadata.get("authorization") != "Bearer key":
            raise CredentialsInvalid("nobody has this API key")
        return "tenant"

    seen: list[tuple[str, str]] = []

    async def note(request: Any, context: Any) -> Any:
        seen.append((CALL.get().identity, CALL.get().method))
        return empty_pb2.Empty()

    async with serving(note, layers=[errors, identity(who)]) as (channel, _):
        await call_unary(channel, metadata=[("authorization", "Bearer key"), ("bytes-bin", b"\x00")])
        for metadata in ([], [("authorization", "Bearer no")]):
            with pytest.raises(aio.AioRpcError) as raised:
                await call_unary(channel, metadata=metadata)
            assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert seen == [("tenant", UNARY)]


async def test_calls_at_the_same_time_do_not_see_each_other() -> None:
    both = asyncio.Barrier(2)

    async def note(request: Any, context: Any) -> Any:
        before = CALL.get().metadata["who"]
        await both.wait()
        assert CALL.get().metadata["who"] == before
        return empty_pb2.Empty()

    async with serving(note) as (channel, _):
        await asyncio.gather(*(call_unary(channel, metadata=[("who", who)]) for who in "ab"))


async def test_a_span_around_a_traced_call_says_how_it_ended() -> None:
    spans: list[SpanRecord] = []
    tracing = Tracing("test", "test-0", 1.0, spans.append)
    layers = [telemetry(tracing, frozenset({UNARY})), errors]
    parent = "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01"
    async with serving(raising(CredentialsInvalid("no")), layers=layers) as (channel, _):
        with pytest.raises(aio.AioRpcError):
            await call_unary(channel, metadata=[("traceparent", parent)])
        await call_stream(channel, timeout=5).read()
    (span,) = spans
    assert span.trace_id == "0123456789abcdef0123456789abcdef"
    assert span.parent_id == "0123456789abcdef"
    assert span.attributes[names.RPC_STATUS] == "UNAUTHENTICATED"


async def test_health_reflection_and_channelz_need_no_key() -> None:
    def nobody(call: Call) -> None:
        raise CredentialsInvalid("no")

    async with serving(layers=[errors, identity(nobody)]) as (channel, server):
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", NAME):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=name), timeout=5)
            assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING
        await server.set_serving(True)
        answer = await health.Check(health_pb2.HealthCheckRequest(service=NAME), timeout=5)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(timeout=5)
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        listed = {one.name for one in (await call.read()).list_services_response.service}
        call.cancel()
        assert listed == {
            NAME, "grpc.health.v1.Health", "grpc.channelz.v1.Channelz", "grpc.reflection.v1alpha.ServerReflection"
        }  # fmt: skip


async def test_an_unknown_method_is_unimplemented() -> None:
    async with serving() as (channel, _):
        method: Any = channel.unary_unary(f"/{NAME}/Nothing")
        with pytest.raises(aio.AioRpcError) as raised:
            await method(b"", timeout=5)
        assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_generator_is_not_a_handler_of_the_mesh() -> None:
    async def generator(request: Any, context: Any) -> Any:
        yield empty_pb2.Empty()

    with pytest.raises(TypeError, match="writes to its context"):
        RpcServer("127.0.0.1:0", [service(nothing, generator)], [errors], None)


async def test_two_servers_do_not_share_a_port() -> None:
    async with serving() as (_, server):
        with pytest.raises(OSError, match="in use"):
            await RpcServer(f"127.0.0.1:{server.port}", [], [], None).start()


@pytest.mark.parametrize("kind", ["unary", "stream"])
async def test_bytes_that_are_no_message_are_the_callers_fault(kind: str) -> None:
    async def read(request: Any, context: Any) -> Any:
        if kind == "stream":
            await context.read()
        pytest.fail("the handler has got a message")

    async with serving(read, read) as (channel, _):
        raw = channel.unary_unary(UNARY) if kind == "unary" else channel.unary_stream(STREAM)
        call = raw(b"\x0a\xff", timeout=10)
        with pytest.raises(aio.AioRpcError) as raised:
            await (call if kind == "unary" else call.read())
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert isinstance(from_failure(details(raised.value)), RequestInvalid)
    assert "protobuf" not in str(raised.value.details())


async def test_who_calls_comes_before_what_is_wrong_with_the_bytes() -> None:
    def nobody(call: Call) -> Any:
        raise CredentialsInvalid("nobody has this API key")

    async with serving(layers=[errors, identity(nobody)]) as (channel, _):
        with pytest.raises(aio.AioRpcError) as raised:
            await channel.unary_unary(UNARY)(b"\x0a\xff", timeout=10)
    assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_a_stream_can_ask_who_calls_anew() -> None:
    known = ["first", "second"]

    async def handle(request: Any, context: Any) -> None:
        call = CALL.get()
        assert (call.identity, call.who(), call.identity) == ("first", "second", "second")
        call.who()

    def next_one(call: Call) -> str:
        if not known:
            raise CredentialsInvalid("nobody has this API key")
        return known.pop(0)

    async with serving(stream=handle, layers=[errors, identity(next_one)]) as (channel, _):
        with pytest.raises(aio.AioRpcError) as raised:
            await call_stream(channel, timeout=10).read()
    assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED
