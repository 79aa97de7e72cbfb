"""A method of a servicer, served on the mesh's own streams.

The bytes of a call are read in the event loop (libs.streams), so what many callers send in the same moment is there in
the same turn, and leaves for the next stage in one message. gRPC's own server hands calls over one by one from threads
of its own, which costs ten times as much and has every stage behind woken once per call
(docs/decisions/0012-streams.md).
"""

import asyncio
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import grpc
import structlog
from grpc import aio

from libs.errors import HeadraceError
from libs.rpc.context import Context
from libs.rpc.status import DETAILS, to_status
from libs.streams.call import CODES, Ended
from libs.streams.server import Handler
from libs.streams.stream import Stream

log = structlog.get_logger()

Behavior = Callable[[Any, Any], Any]
"""A servicer's method: (request or iterator of requests, context) → what grpc.aio allows."""
Wrap = Callable[[str, Behavior], Behavior]
"""Puts layers around the behavior of a path."""


class Methods:
    """Stands where generated `add_…Servicer_to_server` functions want a server, and collects what they add.

    Attributes:
        handlers: By /package.Service/Method.
    """

    def __init__(self, wrap: Wrap) -> None:
        self.handlers: dict[str, Handler] = {}
        self._wrap = wrap

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """Generated code adds the same methods twice; this is the less telling way."""

    def add_registered_method_handlers(self, service: str, methods: Mapping[str, Any]) -> None:
        """The methods of a service, as grpc.RpcMethodHandler."""
        for name, method in methods.items():
            path = f"/{service}/{name}"
            self.handlers[path] = _handler(path, method, self._wrap)


def telling(handler: Handler) -> Handler:
    """A handler of a stream of bytes whose errors are the call's status."""

    async def serve(stream: Stream) -> None:
        try:
            await handler(stream)
        except HeadraceError as error:
            status = to_status(error)
            stream.end(Ended(CODES[status.code], status.message, ((DETAILS, status.SerializeToString()),)))

    return serve


def _handler(path: str, method: Any, wrap: Wrap) -> Handler:
    ends = (method.request_streaming, method.response_streaming)
    kind = "_".join("stream" if streaming else "unary" for streaming in ends)
    behavior = wrap(path, getattr(method, kind))
    decode, encode = method.request_deserializer or bytes, method.response_serializer or bytes

    async def serve(stream: Stream) -> None:
        stream.on_gone = _cancel_of_current()  # in no variable: the error that a task ends with holds this frame
        if stream.over:
            return
        context, loop = Context(stream, decode, encode), asyncio.get_running_loop()
        remaining = context.time_remaining()
        alarm = None if remaining is None else loop.call_later(remaining, _too_late, stream, stream.on_gone)
        try:
            try:
                request = context.requests() if method.request_streaming else await context.request()
                answer = behavior(request, context)
                if inspect.isasyncgen(answer):
                    async for message in answer:
                        await context.write(message)
                else:
                    answer = await answer if inspect.isawaitable(answer) else answer
                    if not method.response_streaming:
                        await context.write(answer)
            except aio.AbortError:
                pass  # the context knows
            except Exception:
                log.exception("method failed", method=path)
                context.set_code(grpc.StatusCode.UNKNOWN)
                context.set_details("the method failed; the process's logs have the cause")
            await context.end()
        except asyncio.CancelledError:
            # Gone already, where the caller or the deadline is the reason; else this process ends.
            stream.end(Ended(grpc.StatusCode.UNAVAILABLE, "the process ends"))
            raise
        finally:
            if alarm is not None:
                alarm.cancel()

    return serve


def _cancel_of_current() -> Callable[[], object]:
    """Cancels the task that runs now."""
    task = asyncio.current_task()
    assert task is not None
    return task.cancel


def _too_late(stream: Stream, cancel: Callable[[], object]) -> None:
    stream.end(Ended(grpc.StatusCode.DEADLINE_EXCEEDED, "the call's deadline has passed"))
    cancel()
