"""A real server of the public API that plays a script: what tests of the SDK ask."""

import asyncio
import codecs
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeAlias

import grpc
import pytest
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc import aio

from headrace.inference.v1 import inference_pb2 as pb
from headrace.inference.v1 import inference_pb2_grpc as rpc
from libs.client import GenerateOptions, HeadraceClient, RetryPolicy
from libs.tokens.stop import StopStrings

ANSWER = "naïve 世界 👩‍👩‍👧 e\u0301 <en <end> never shown"
SHOWN = "naïve 世界 👩‍👩‍👧 e\u0301 <en "
STOP = "<end>"
TOKENS = list(ANSWER.encode())  # a vocabulary of bytes: characters are split, as real ones are
QUICK = RetryPolicy(first_delay=0.01, longest_delay=0.3)
WITH_STOP = GenerateOptions(stop=[STOP])
UNDER = GenerateOptions(contract="c", requires=["vision"])

both_doors = pytest.mark.parametrize("multiplex", [False, True], ids=["stream", "session"])

Context: TypeAlias = "aio.ServicerContext[object, object]"


class Text:
    """The text of an answer, made as the mesh makes it: whole characters, and no beginning of a stop string."""

    def __init__(self, request: pb.GenerateRequest) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")().decode
        self._stops = StopStrings(request.sampling.stop)
        self.push(request.resumed_token_ids)

    def push(self, tokens: Sequence[int]) -> tuple[str, str | None]:
        return self._stops.push(self._decode(bytes(tokens)))


@dataclass
class Script(rpc.InferenceServiceServicer):
    """Answers every request with ANSWER, a byte per token, and fails where it is told to."""

    breaks: list[int] = field(default_factory=list)
    """The nth call ends as `how` when this many of its tokens have been sent."""
    how: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE
    errors: list[status_pb2.Status] = field(default_factory=list)
    """The nth call is answered with this."""
    told: list[pb.GenerateResponse] = field(default_factory=list)
    """What a request under a contract is answered with, instead."""
    approvals: list[pb.ApproveRequest] = field(default_factory=list)
    pace: float = 0.0
    """Seconds between tokens."""
    requests: list[pb.GenerateRequest] = field(default_factory=list)
    metadata: list[dict[str, str | bytes]] = field(default_factory=list)
    sessions: int = 0
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)

    async def answer(self, request: pb.GenerateRequest) -> AsyncIterator[pb.GenerateResponse]:
        self.requests.append(request)
        self.asked.set()
        have = list(request.resumed_token_ids)
        if request.contract:
            for response in self.told:
                yield response
            return
        assert have == TOKENS[: len(have)]
        text = Text(request)
        for n, token in enumerate(TOKENS[len(have) :]):
            await asyncio.sleep(self.pace)
            shown, stop = text.push([token])
            last = stop is not None or len(have) + n + 1 == len(TOKENS)
            yield pb.GenerateResponse(
                request_id="made-by-mesh" if n == 0 else "",
                text=shown,
                token_ids=[token] if request.output_form != pb.OUTPUT_FORM_TEXT else [],
                log_probs=[-0.5] if request.log_probs else [],
                finish=finish(len(have) + n + 1, stop) if last else None,
            )
            if last:
                return

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> AsyncIterator[pb.GenerateResponse]:
        self.metadata.append(dict(context.invocation_metadata() or ()))
        if self.errors:
            await abort(context, self.errors.pop(0))
        left = self.breaks.pop(0) if self.breaks else -1
        try:
            async for response in self.answer(request):
                if left == 0:
                    await context.abort(self.how, "draining")
                left -= 1
                yield response
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    async def Session(
        self, requests: AsyncIterator[pb.SessionRequest], context: Context
    ) -> AsyncIterator[pb.SessionResponse]:
        self.sessions += 1
        out: asyncio.Queue[pb.SessionResponse | None] = asyncio.Queue(100)
        left = self.breaks.pop(0) if self.breaks else -1

        async def run(generate: pb.SessionGenerate) -> None:
            if self.errors:
                status = self.errors.pop(0)
                failure = pb.Failure(code=status.code, message=status.message, details=status.details)
                await out.put(pb.SessionResponse(ends=[pb.SessionEnd(id=generate.id, failure=failure)]))
                return
            try:
                async for one in self.answer(generate.request):
                    message = pb.SessionResponse(
                        ids=[generate.id],
                        counts=[len(one.token_ids) if request_has_ids(generate.request) else 1],
                        texts=[one.text],
                        token_ids=one.token_ids,
                        log_probs=one.log_probs,
                    )
                    if one.restart or one.HasField("tool_step"):
                        note = pb.SessionNote(id=generate.id, restart=one.restart)
                        if one.HasField("tool_step"):
                            note.tool_step.CopyFrom(one.tool_step)
                        message = pb.SessionResponse(notes=[note])
                    if one.HasField("finish"):
                        message.ends.add(id=generate.id, request_id="made-by-mesh", finish=one.finish)
                    await out.put(message)
            except asyncio.CancelledError:
                self.cancelled.set()
                end = pb.SessionEnd(id=generate.id, failure=pb.Failure(code=1, message="cancelled"))
                out.put_nowait(pb.SessionResponse(ends=[end]))

        running: dict[int, asyncio.Task[None]] = {}

        async def read() -> None:
            async for message in requests:
                for generate in message.generates:
                    running[generate.id] = asyncio.create_task(run(generate))
                for cancel in message.cancels:
                    running[cancel].cancel()
            await out.put(None)

        reader = asyncio.create_task(read())
        try:
            while (response := await out.get()) is not None:
                if left == 0:
                    await context.abort(self.how, "draining")
                left -= 1
                yield response
        finally:
            for task in (reader, *running.values()):
                task.cancel()
            await asyncio.gather(reader, *running.values(), return_exceptions=True)

    async def Approve(self, request: pb.ApproveRequest, context: Context) -> pb.ApproveResponse:
        self.approvals.append(request)
        if self.errors:
            await abort(context, self.errors.pop(0))
        return pb.ApproveResponse()

    async def CountTokens(self, request: pb.CountTokensRequest, context: Context) -> pb.CountTokensResponse:
        if self.errors:
            await abort(context, self.errors.pop(0))
        length = len(request.prompt) + sum(len(turn.content) for turn in request.chat.messages)
        return pb.CountTokensResponse(tokens=length, context_tokens=100)

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        first = int(request.page_token or 0)
        last = min(first + request.page_size, 5)
        models = [pb.ModelInfo(name=f"m{n}", ready=True, capabilities=["chat"]) for n in range(first, last)]
        return pb.ListModelsResponse(models=models, next_page_token=str(last) if last < 5 else "")


def request_has_ids(request: pb.GenerateRequest) -> bool:
    return request.output_form in (pb.OUTPUT_FORM_TOKEN_IDS, pb.OUTPUT_FORM_TEXT_AND_TOKEN_IDS)


def finish(tokens: int, stop: str | None) -> pb.Finish:
    return pb.Finish(
        reason=pb.FINISH_REASON_STOP if stop else pb.FINISH_REASON_LENGTH,
        stop=stop or "",
        usage=pb.Usage(prompt_tokens=3, cached_tokens=2, output_tokens=tokens),
        timings=pb.Timings(first_token=duration_pb2.Duration(nanos=250_000_000)),
        model="m",
    )


async def abort(context: Context, status: status_pb2.Status) -> None:
    codes = {code.value[0]: code for code in grpc.StatusCode}
    details = (("grpc-status-details-bin", status.SerializeToString()),)
    await context.abort(codes[status.code], status.message, trailing_metadata=details)


def status(code: int, reason: str, *details: Message, retry_after: float | None = None) -> status_pb2.Status:
    found = status_pb2.Status(code=code, message=f"{reason} happened")
    info = error_details_pb2.ErrorInfo(reason=reason, domain="headrace", metadata={"k": "v"})
    every: list[Message] = [info, *details]
    if retry_after is not None:
        delay = duration_pb2.Duration()
        delay.FromMicroseconds(int(retry_after * 1e6))
        every.append(error_details_pb2.RetryInfo(retry_delay=delay))
    for detail in every:
        packed = any_pb2.Any()
        packed.Pack(detail)
        found.details.append(packed)
    return found


class Served:
    """A script on a port; can be killed and come back there."""

    def __init__(self) -> None:
        self.script = Script()
        self.port = 0
        self._server: aio.Server | None = None

    async def start(self) -> None:
        self._server = aio.server(options=[("grpc.so_reuseport", 0)])
        rpc.add_InferenceServiceServicer_to_server(self.script, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(0)

    def client(self, **settings: object) -> HeadraceClient:
        return HeadraceClient(f"127.0.0.1:{self.port}", **({"retry": QUICK} | settings))  # type: ignore[arg-type]


@asynccontextmanager
async def serving() -> AsyncIterator[Served]:
    """A script that is served."""
    served = Served()
    await served.start()
    try:
        yield served
    finally:
        await served.stop()


def tool(state: "pb.ToolState.ValueType", **fields: str) -> pb.GenerateResponse:
    step = pb.ToolStep(step=1, tool="clock", arguments="{}", state=state, **fields)
    return pb.GenerateResponse(tool_step=step)
