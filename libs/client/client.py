"""The client: connection, credentials, and the calls of the inference API."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import NoReturn, Self, TypeVar

import grpc
from grpc import aio

from headrace.inference.v1 import inference_pb2 as pb
from headrace.inference.v1 import inference_pb2_grpc as rpc

from . import wire
from .answer import Answer
from .errors import NoExecutor, StageUnavailable, from_rpc_error
from .options import GenerateOptions, RetryPolicy, Tls
from .session import SessionTransport
from .transport import StreamTransport, Transport
from .values import Completion, Model, TokenCount

DEFAULTS = GenerateOptions()
CHANNEL_OPTIONS = [
    # A frozen or cut-off mesh is noticed within 20 s. Envoy and Headrace's own servers take pings this often.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    # Without these two a server runs a hundred thousand small messages ahead of a reader that stopped.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 65535),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
    # Sending again is decided here, where it is known what has been received.
    ("grpc.enable_retries", 0),
    # Each client its own connection: closing one leaves the others alone.
    ("grpc.use_local_subchannel_pool", 1),
]

Ask = TypeVar("Ask", pb.CountTokensRequest, pb.ListModelsRequest)
Reply = TypeVar("Reply", pb.CountTokensResponse, pb.ListModelsResponse)


class _Asks:
    """The two ways to ask for an answer, the same for a client and a session."""

    def __init__(self, transport: Transport, retry: RetryPolicy, timeout: float | None) -> None:
        self._transport = transport
        self._retry = retry
        self._timeout = timeout

    def generate(
        self,
        model: str,
        *,
        chat: wire.Chat | None = None,
        prompt: str | None = None,
        options: GenerateOptions = DEFAULTS,
    ) -> Answer:
        """The answer to a chat or to a raw prompt, to be read with `async for`; see Answer.

        Iterating raises HeadraceError. Raises ValueError unless exactly one of chat and prompt is given.
        """
        request = wire.generate_request(model, chat, prompt, options, resumable=self._retry.resume)
        timeout = options.timeout if options.timeout is not None else self._timeout
        return Answer(self._transport, request, self._retry, timeout)

    async def complete(
        self,
        model: str,
        *,
        chat: wire.Chat | None = None,
        prompt: str | None = None,
        options: GenerateOptions = DEFAULTS,
    ) -> Completion:
        """The same, in one piece."""
        return await self.generate(model, chat=chat, prompt=prompt, options=options).complete()


class Session(_Asks):
    """Answers that share one stream; made by `HeadraceClient.session`."""


class HeadraceClient(_Asks):
    """A connection to a mesh, to be used with `async with`, in one event loop, by any number of tasks.

    Args:
        target: host:port, or any name that gRPC resolves.
        api_key: Sent as a bearer token.
        tls: True for TLS with the system's certificates; plaintext without.
        multiplex: Let all answers share one stream: cheaper when many run at once. Else each has its own.
        max_running: Answers on a shared stream at once; more wait their turn.
        timeout: Seconds for an answer or a call, unless its options say otherwise; None for no limit.
        retry: When a request is sent again.
        interceptors: grpc.aio client interceptors, for traces.
    """

    def __init__(
        self,
        target: str = "localhost:8400",
        *,
        api_key: str | None = None,
        tls: Tls | bool = False,
        multiplex: bool = False,
        max_running: int = 256,
        timeout: float | None = None,
        retry: RetryPolicy | None = None,
        interceptors: Sequence[aio.ClientInterceptor] = (),
    ) -> None:
        self._target = target
        self._metadata = (("authorization", f"Bearer {api_key}"),) if api_key is not None else ()
        self._tls = Tls() if tls is True else tls or None
        self._multiplex = multiplex
        self._max_running = max_running
        self._interceptors = interceptors
        self._channel: aio.Channel | None = None
        super().__init__(_NotOpen(), retry or RetryPolicy(), timeout)

    async def __aenter__(self) -> Self:
        if self._channel is not None:
            raise RuntimeError("the client is open already")
        self._channel = self._connect()
        self._stub: rpc.InferenceServiceAsyncStub = rpc.InferenceServiceStub(self._channel)
        self._transport = self._shared() if self._multiplex else StreamTransport(self._stub, self._metadata)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        transport, channel, self._transport, self._channel = self._transport, self._channel, _NotOpen(), None
        if isinstance(transport, SessionTransport):
            await transport.close()
        if channel is not None:
            await channel.close()

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Session]:
        """A stream of its own that all answers asked for on it share; closing it cancels those that run."""
        self._open()
        transport = self._shared()
        try:
            yield Session(transport, self._retry, self._timeout)
        finally:
            await transport.close()

    async def count_tokens(self, model: str, *, chat: wire.Chat | None = None, prompt: str | None = None) -> TokenCount:
        """The length of a prompt. Runs nothing. Raises HeadraceError."""
        request = wire.with_input(pb.CountTokensRequest(model=model), chat, prompt)
        reply = await self._call(self._open().CountTokens, request)
        return TokenCount(reply.tokens, reply.context_tokens)

    async def list_models(self, *, page_size: int = 100) -> AsyncIterator[Model]:
        """The models that the caller may use, by name; asks for the next page when it is needed.

        Raises HeadraceError.
        """
        request = pb.ListModelsRequest(page_size=page_size)
        while True:
            reply = await self._call(self._open().ListModels, request)
            for message in reply.models:
                yield wire.model(message)
            if not reply.next_page_token:
                return
            request.page_token = reply.next_page_token

    async def approve(self, approval_id: str, approved: bool, reason: str = "") -> None:
        """Decides on a tool call that waits for a person (ToolStep.approval_id); `reason` is told to the model.

        Sent once: of two decisions the first counts. Raises HeadraceError.
        """
        request = pb.ApproveRequest(approval_id=approval_id, approved=approved, reason=reason)
        try:
            await self._open().Approve(request, timeout=self._timeout, metadata=self._metadata)
        except aio.AioRpcError as broken:
            raise from_rpc_error(broken) from broken

    async def _call(self, method: Callable[..., Awaitable[Reply]], request: Ask) -> Reply:
        """A call with one answer, sent again while the mesh is unavailable."""
        deadline = None if self._timeout is None else time.monotonic() + self._timeout
        failures = 0
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                return await method(request, timeout=left, metadata=self._metadata)
            except aio.AioRpcError as broken:
                error = from_rpc_error(broken)
            failures += 1
            delay = self._retry.delay(failures, error.retry_after, random.random())  # noqa: S311
            too_long = delay > 1.1 * self._retry.longest_delay or (left is not None and delay >= left)
            if not isinstance(error, NoExecutor | StageUnavailable) or failures >= self._retry.attempts or too_long:
                raise error
            await asyncio.sleep(delay)

    def _connect(self) -> aio.Channel:
        tls, options = self._tls, list(CHANNEL_OPTIONS)
        if tls is None:
            return aio.insecure_channel(self._target, options=options, interceptors=self._interceptors)
        if tls.server_name is not None:
            options.append(("grpc.ssl_target_name_override", tls.server_name))  # type: ignore[arg-type]
        credentials = grpc.ssl_channel_credentials(tls.ca, tls.key, tls.certificate)
        return aio.secure_channel(self._target, credentials, options=options, interceptors=self._interceptors)

    def _open(self) -> "rpc.InferenceServiceAsyncStub":
        if self._channel is None:
            raise RuntimeError("use the client with `async with`")
        return self._stub

    def _shared(self) -> SessionTransport:
        return SessionTransport(self._stub, self._metadata, self._max_running)


class _NotOpen:
    """The transport of a client outside of its `async with`."""

    async def start(self, request: pb.GenerateRequest, timeout: float | None) -> NoReturn:
        raise RuntimeError("use the client with `async with`")
