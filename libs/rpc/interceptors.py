"""The layers around every RPC of the mesh's own services, outermost first: telemetry, errors, deadline, identity."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc
import structlog
from grpc import aio

from libs.clock import Clock
from libs.errors import Cancelled, HeadraceError, InternalError
from libs.rpc.call import CALL, Call
from libs.rpc.context import Context, Undecodable, undecodable
from libs.rpc.status import DETAILS, to_status
from libs.streams.call import CODES
from libs.telemetry import names
from libs.telemetry.span import Kind
from libs.telemetry.tracing import Tracing

log = structlog.get_logger()

Handler = Callable[[Any, Context], Awaitable[Any]]
Layer = Callable[[Handler], Handler]


def layered(method: str, behavior: Handler, layers: Sequence[Layer]) -> Handler:
    """A method of this mesh's own services in layers, the first outermost.

    Raises TypeError for a generator: a handler that writes to its context is what errors can be told from.
    """
    if inspect.isasyncgenfunction(behavior):
        raise TypeError(f"{method}: a handler of the mesh is a coroutine that writes to its context")
    behavior = _decoded(behavior)
    for layer in reversed(layers):
        behavior = layer(behavior)

    async def enter(request: Any, context: Context) -> Any:
        CALL.set(Call(method, context.headers))  # each call runs in a task of its own
        return await behavior(request, context)

    return enter


def _decoded(inner: Handler) -> Handler:
    """Bytes that are no message are told to who may call, and to nobody before that is known."""

    async def handle(request: Any, context: Context) -> Any:
        if isinstance(request, Undecodable):
            raise undecodable()
        return await inner(request, context)

    return handle


def telemetry(tracing: Tracing, traced: frozenset[str]) -> Layer:
    """A server span around each call of a method in `traced`; its parent is the caller's traceparent."""

    def layer(inner: Handler) -> Handler:
        async def handle(request: Any, context: Context) -> Any:
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
                span.set(names.RPC_STATUS, (context.code() or grpc.StatusCode.OK).name)
                span.end()

        return handle

    return layer


def errors(inner: Handler) -> Handler:
    """Turns what a handler raises into a status with google.rpc details. Nothing else calls abort."""

    async def handle(request: Any, context: Context) -> Any:
        try:
            return await inner(request, context)
        except HeadraceError as error:
            failure = error.with_traceback(None)  # which holds this frame: the two would wait for the garbage collector
        except asyncio.CancelledError:
            # Our own task being cancelled means that the RPC has gone: let it go. A CancelledError that
            # comes from something awaited would, let out, leave the caller hanging.
            if _cancelled():
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
        trailer = ((DETAILS, status.SerializeToString()),)
        return await context.abort(CODES[status.code], status.message, trailing_metadata=trailer)

    return handle


def _cancelled() -> bool:
    """Whether the current task is to end."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def deadline(clock: Clock) -> Layer:
    """Notes the caller's deadline."""

    def layer(inner: Handler) -> Handler:
        async def handle(request: Any, context: Context) -> Any:
            if (remaining := context.time_remaining()) is not None:
                CALL.get().deadline = clock.now() + remaining
            return await inner(request, context)

        return handle

    return layer


def identity(authenticate: Callable[[Call], Any]) -> Layer:
    """Notes who calls. `authenticate` raises CredentialsInvalid or NotAllowed."""

    def layer(inner: Handler) -> Handler:
        async def handle(request: Any, context: Context) -> Any:
            call = CALL.get()
            call.peer = context.peer_names
            call.authenticate = authenticate
            call.who()
            return await inner(request, context)

        return handle

    return layer
