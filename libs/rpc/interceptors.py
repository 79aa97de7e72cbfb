"""The layers around every RPC of a server, outermost first: telemetry, errors, deadline, identity.

The mesh's own streaming handlers are coroutines that write to their context; handlers that are
generators (reflection's) are not ours and pass through unwrapped.
"""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc
import structlog
from google.protobuf.message import DecodeError
from grpc import aio
from grpc._cython.cygrpc import ExecuteBatchError  # it has no public name

from libs.clock import Clock
from libs.errors import Cancelled, HeadraceError, InternalError, RequestInvalid
from libs.rpc.call import CALL, Call
from libs.rpc.status import CODES, to_status
from libs.telemetry import names
from libs.telemetry.span import Kind
from libs.telemetry.tracing import Tracing

log = structlog.get_logger()

Handler = Callable[[Any, aio.ServicerContext[Any, Any]], Awaitable[Any]]
Layer = Callable[[Handler], Handler]

_FOREIGN = ("/grpc.health.", "/grpc.reflection.", "/grpc.channelz.")
_STATUS_DETAILS = "grpc-status-details-bin"
_SAN = "x509_subject_alternative_name"
"""gRPC's property of a connection by mTLS."""


class Layers(aio.ServerInterceptor):
    """Wraps the handlers of this mesh's own services in layers, the first outermost."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self._layers = tuple(layers)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wraps one call's handler. Unknown methods and gRPC's own services are left alone."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or method.startswith(_FOREIGN):
            return handler
        call = Call(method, _texts(handler_call_details.invocation_metadata or ()))
        kind = _kind(handler)
        behaviour: Handler = getattr(handler, kind)
        if inspect.isasyncgenfunction(behaviour):
            raise TypeError(f"{method}: a handler of the mesh is a coroutine that writes to its context")
        if not handler.request_streaming:
            behaviour = _decoded(behaviour)
        for layer in reversed(self._layers):
            behaviour = layer(behaviour)

        async def enter(request: Any, context: aio.ServicerContext[Any, Any]) -> Any:
            CALL.set(call)  # each RPC runs in a context of its own
            return await behaviour(request, context)

        decode = _decoder(handler.request_deserializer, handler.request_streaming)
        return getattr(grpc, f"{kind}_rpc_method_handler")(enter, decode, handler.response_serializer)


def _texts(metadata: Sequence[tuple[str, str | bytes]]) -> dict[str, str]:
    """Text metadata. A key that comes again is one with a comma, as every proxy may write it: whoever reads only the
    first, or only the last, can be told something else than who stands in front."""
    found: dict[str, str] = {}
    for key, value in metadata:
        if isinstance(value, str):
            found[key] = f"{found[key]},{value}" if key in found else value
    return found


class Undecodable:
    """Stands for a request whose bytes are no message: layers see it, handlers do not."""


def _decoder(parse: Callable[[bytes], Any], streaming: bool) -> Callable[[bytes], Any]:
    """What a deserializer raises in front of a handler, gRPC tells the caller word for word, as UNKNOWN, before anybody
    has asked who calls. So the fault waits until the handler's turn; within a stream the handler reads it itself."""

    def decode(data: bytes) -> Any:
        try:
            return parse(data)
        except DecodeError:
            if streaming:
                raise _undecodable() from None
            return Undecodable()

    return decode


def _decoded(inner: Handler) -> Handler:
    async def handle(request: Any, context: aio.ServicerContext[Any, Any]) -> Any:
        if isinstance(request, Undecodable):
            raise _undecodable()
        return await inner(request, context)

    return handle


def _undecodable() -> RequestInvalid:
    return RequestInvalid("the bytes are no message that this method takes: was it made with the same protos?")


def telemetry(tracing: Tracing, traced: frozenset[str]) -> Layer:
    """A server span around each call of a method in `traced`; its parent is the caller's traceparent."""

    def layer(inner: Handler) -> Handler:
        async def handle(request: Any, context: aio.ServicerContext[Any, Any]) -> Any:
            call = CALL.get()
            if call.method not in traced:
                return await inner(request, context)
            span = call.span = tracing.start(
                call.method[1:],
                call.metadata.get("traceparent", ""),
                kind=Kind.SERVER,
                attributes={names.RPC_SYSTEM: "grpc", names.RPC_METHOD: call.method[1:]},
            )
            try:
                return await inner(request, context)
            finally:
                span.set(names.RPC_STATUS, _code_name(context.code()))
                span.end()

        return handle

    return layer


def errors(inner: Handler) -> Handler:
    """Turns what a handler raises into a status with google.rpc details. Nothing else calls abort."""

    async def handle(request: Any, context: aio.ServicerContext[Any, Any]) -> Any:
        try:
            return await inner(request, context)
        except HeadraceError as error:
            failure = error
        except asyncio.CancelledError:
            # Our own task being cancelled means that the RPC has gone: let it go. A CancelledError that
            # comes from something awaited would, let out, leave the caller hanging.
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            failure = Cancelled("the call was cancelled inside the mesh")
        except aio.AbortError:
            raise
        except Exception:
            log.exception("handler failed", method=CALL.get().method)
            failure = InternalError("internal error; the mesh's logs have the cause")
        status = to_status(failure)
        if (span := CALL.get().span) is not None:
            span.error(failure.message, failure.reason)
        trailer = ((_STATUS_DETAILS, status.SerializeToString()),)
        try:
            return await context.abort(CODES[status.code], status.message, trailing_metadata=trailer)
        except ExecuteBatchError as gone:  # the caller left in this very moment: there is nobody to tell
            raise asyncio.CancelledError from gone

    return handle


def deadline(clock: Clock) -> Layer:
    """Notes the caller's deadline."""

    def layer(inner: Handler) -> Handler:
        async def handle(request: Any, context: aio.ServicerContext[Any, Any]) -> Any:
            remaining = context.time_remaining()
            # grpc says "no deadline" with None or with centuries
            if remaining is not None and remaining < 10**8:
                CALL.get().deadline = clock.now() + remaining
            return await inner(request, context)

        return handle

    return layer


def identity(authenticate: Callable[[Call], Any]) -> Layer:
    """Notes who calls. `authenticate` raises CredentialsInvalid or NotAllowed."""

    def layer(inner: Handler) -> Handler:
        async def handle(request: Any, context: aio.ServicerContext[Any, Any]) -> Any:
            call = CALL.get()
            call.peer = [name.decode() for name in context.auth_context().get(_SAN, ())]
            call.authenticate = authenticate
            call.who()
            return await inner(request, context)

        return handle

    return layer


def _code_name(code: Any) -> str:
    """grpc.aio gives a StatusCode, a number, or None for OK."""
    return (code if isinstance(code, grpc.StatusCode) else CODES[code or 0]).name


def _kind(handler: Any) -> str:
    return f"{'stream' if handler.request_streaming else 'unary'}_{'stream' if handler.response_streaming else 'unary'}"
