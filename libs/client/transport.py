"""How one try at an answer is carried: here by a stream of its own; in session.py by a shared one."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Protocol

from grpc import aio

from headrace.inference.v1 import inference_pb2 as pb
from headrace.inference.v1 import inference_pb2_grpc as rpc

from . import wire
from .errors import DeadlinePassed, StageUnavailable, from_rpc_error
from .values import Chunk

CallMetadata = Sequence[tuple[str, str]]

# The stub of asynchronous channels exists for type checkers only; hence the quotes.


class Attempt(Protocol):
    """One try at an answer."""

    request_id: str
    """What the mesh calls it; "" until it has said so."""
    model_version: str
    """What answers; "" until the mesh has said so."""

    async def next(self) -> Chunk:
        """The next piece; the one with `finish` is the last. Raises HeadraceError when the try is over."""
        ...

    def cancel(self) -> None:
        """Gives the try up, on both ends. Does not wait, does nothing after the end."""
        ...


class Transport(Protocol):
    """Starts tries."""

    async def start(self, request: pb.GenerateRequest, timeout: float | None) -> Attempt:
        """Sends the request off; `timeout` is in seconds. The request is not kept."""
        ...


class StreamTransport:
    """One Generate call per try. Reads no further ahead than HTTP/2's window for one stream (64 KiB)."""

    def __init__(self, stub: "rpc.InferenceServiceAsyncStub", metadata: CallMetadata) -> None:
        self._stub = stub
        self._metadata = metadata

    async def start(self, request: pb.GenerateRequest, timeout: float | None) -> Attempt:
        return _StreamAttempt(self._stub.Generate(request, timeout=timeout, metadata=self._metadata))


class _StreamAttempt:
    def __init__(self, call: "aio.UnaryStreamCall[pb.GenerateRequest, pb.GenerateResponse]") -> None:
        self._call = call
        self.request_id = ""
        self.model_version = ""

    async def next(self) -> Chunk:
        try:
            message = await self._call.read()
        except aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        except asyncio.CancelledError:
            refuse_foreign_cancel()
            raise
        if not isinstance(message, pb.GenerateResponse):  # aio.EOF
            raise StageUnavailable("the stream ended before the answer did", code=14)
        self.request_id = message.request_id or self.request_id
        self.model_version = message.model_version or self.model_version
        finish = None
        if message.HasField("finish"):
            finish = wire.finish(message.finish)
            with suppress(aio.AioRpcError):  # the status, else it would look cancelled to those in between
                await self._call.read()
        return Chunk(
            message.text,
            tuple(message.token_ids),
            tuple(message.log_probs),
            finish,
            message.waiting,
            message.restart,
            wire.tool_step(message.tool_step) if message.HasField("tool_step") else None,
        )

    def cancel(self) -> None:
        self._call.cancel()


def refuse_foreign_cancel() -> None:
    """grpc.aio raises CancelledError also when the *server* ended a call as cancelled: then nobody here wants to stop.

    Raises StageUnavailable in that case.
    """
    task = asyncio.current_task()
    if task is not None and not task.cancelling():
        raise StageUnavailable("the other end cancelled the call", code=14) from None


def deadline_passed(timeout: float) -> DeadlinePassed:
    """The error for a timeout that the SDK itself sees."""
    return DeadlinePassed(f"no answer within {timeout:g} s", code=4, metadata={"stage": "client"})
