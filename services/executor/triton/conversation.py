"""One bidirectional stream to a Triton server that carries all requests of a loaded model, and their stops."""

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple
from uuid import uuid4

from grpc import aio
from tritonclient.grpc import service_pb2

from services.executor.triton.tensors import Tensor

_TYPES = {"INT32", "UINT64", "FP32", "BOOL", "BYTES"}


class Response(NamedTuple):
    """What came for a request."""

    outputs: Mapping[str, Tensor]
    final: bool
    """Nothing comes behind it."""
    error: str = ""
    """The server's text; then `final` holds."""


class StreamBroken(Exception):
    """The stream is gone, and with it every request on it. The text says why."""


class Asked:
    """A request that was sent.

    Its responses wait here until they are read; they are no more than the answer has tokens.
    """

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.dropped = False
        """Nobody reads it any more: what comes is only counted."""
        self._finals = 1
        self._responses: deque[Response] = deque()
        self._broken = ""
        self._changed = asyncio.Event()

    @property
    def over(self) -> bool:
        """Whether the server has said all that it has to say under this id, or never will."""
        return self._finals == 0 or bool(self._broken)

    async def next(self) -> Response:
        """The next response. Raises StreamBroken."""
        while not self._responses:
            if self._broken:
                raise StreamBroken(self._broken)
            self._changed.clear()
            await self._changed.wait()
        return self._responses.popleft()

    async def end(self) -> None:
        """Waits until it is over; drops what comes."""
        self.dropped = True
        while not self.over:
            self._changed.clear()
            await self._changed.wait()

    def expect_one_more(self) -> None:
        """A stop goes out under the same id; the server answers that, too."""
        self._finals += 1

    def take(self, response: Response) -> None:
        """A response arrived."""
        if response.final or response.error:
            self._finals -= 1
        if not self.dropped:
            self._responses.append(response)
        self._changed.set()

    def break_off(self, reason: str) -> None:
        """The stream broke."""
        self._broken = reason
        self._changed.set()


class Conversation:
    """See the module. Its ids are unlike those of any other: a stop names its request by nothing else.

    What is to be written waits in a queue: one entry per request and one per stop, so that it is bounded by the
    works that the runner holds.
    """

    def __init__(self, stub: Any) -> None:
        self._stub = stub
        self._prefix = uuid4().hex[:12]
        self._number = 0
        self._asked: dict[str, Asked] = {}
        self._outbox: deque[Any] = deque()
        self._waiting = asyncio.Event()
        self._reason = ""

    def ask(self, model: str, tensors: Sequence[Tensor]) -> Asked:
        """Sends a request. Raises StreamBroken."""
        if self._reason:
            raise StreamBroken(self._reason)
        self._number += 1
        asked = Asked(f"{self._prefix}-{self._number}")
        self._asked[asked.request_id] = asked
        self._send(model, asked.request_id, tensors)
        return asked

    def stop(self, asked: Asked, model: str, tensors: Sequence[Tensor]) -> None:
        """Sends a stop for a request, to the model that runs it: the same one, or a step of an ensemble."""
        if not asked.over:
            asked.expect_one_more()
            self._send(model, asked.request_id, tensors)

    async def run(self) -> str:
        """Carries requests and responses until the stream breaks; returns why. To be called once."""
        call = self._stub.ModelStreamInfer()
        writer = asyncio.create_task(self._write(call), name="triton writer")
        reason = "cancelled"
        try:
            async for message in call:
                self._take(message)
            reason = "the server ended the stream"
        except aio.AioRpcError as error:
            reason = error.details() or error.code().name
        finally:
            self._reason = reason
            call.cancel()
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)
            for asked in self._asked.values():
                asked.break_off(reason)
            self._asked.clear()
        return reason

    async def _write(self, call: Any) -> None:
        with suppress(aio.AioRpcError, asyncio.InvalidStateError):  # the reader hears of it, and says why
            while True:
                while self._outbox:
                    await call.write(self._outbox.popleft())
                self._waiting.clear()
                await self._waiting.wait()

    def _send(self, model: str, request_id: str, tensors: Sequence[Tensor]) -> None:
        request = service_pb2.ModelInferRequest(model_name=model, id=request_id)
        # Without it the end of a stream shows only where the last response has tensors.
        request.parameters["triton_enable_empty_final_response"].bool_param = True
        for tensor in tensors:
            request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
            request.raw_input_contents.append(tensor.data)
        self._outbox.append(request)
        self._waiting.set()

    def _take(self, message: Any) -> None:
        """Runs once per response of every request."""
        answer = message.infer_response
        if (asked := self._asked.get(answer.id)) is None:
            return
        if message.error_message:
            asked.take(Response({}, True, message.error_message))
        else:
            final = answer.parameters["triton_final_response"].bool_param if answer.parameters else False
            raw = answer.raw_output_contents
            outputs = {
                output.name: Tensor(output.name, output.datatype, tuple(output.shape), data)
                for output, data in zip(answer.outputs, raw, strict=False)
                if output.datatype in _TYPES
            }
            asked.take(Response(outputs, final))
        if asked.over:
            del self._asked[answer.id]
