"""The SDK against a real server that plays a script."""

import asyncio
import codecs
import subprocess
import sys
import zipfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import grpc
import pytest
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc import aio

from headrace.inference.v1 import inference_pb2 as pb
from headrace.inference.v1 import inference_pb2_grpc as rpc
from libs import client as sdk
from libs.client import GenerateOptions, HeadraceClient, RetryPolicy
from libs.tokens.stop import StopStrings

ANSWER = "naïve 世界 👩‍👩‍👧 e\u0301 <en <end> never shown"
SHOWN = "naïve 世界 👩‍👩‍👧 e\u0301 <en "
STOP = "<end>"
TOKENS = list(ANSWER.encode())  # a vocabulary of bytes: characters are split, as real ones are
QUICK = RetryPolicy(first_delay=0.01, longest_delay=0.3)

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


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    served = Served()
    await served.start()
    yield served
    await served.stop()


both_doors = pytest.mark.parametrize("multiplex", [False, True], ids=["stream", "session"])
WITH_STOP = GenerateOptions(stop=[STOP])


@both_doors
async def test_an_answer_comes_in_pieces_and_as_a_whole(served: Served, multiplex: bool) -> None:
    async with served.client(api_key="key", multiplex=multiplex, timeout=20.0) as client:
        chunks = [chunk async for chunk in client.generate("m", chat=[("user", "hi")], options=WITH_STOP)]
        assert "".join(chunk.text for chunk in chunks) == SHOWN
        end = chunks[-1].finish
        assert end is not None
        assert (end.reason, end.stop, end.model) == ("stop", STOP, "m")
        assert all(chunk.finish is None for chunk in chunks[:-1])

        options = GenerateOptions(log_probs=True, output="both", max_tokens=99, temperature=0.0, tags={"a": "b"})
        whole = await client.complete("m", prompt="hi", options=options)
        assert whole.text == ANSWER
        assert list(whole.token_ids) == TOKENS
        assert whole.log_probs == (-0.5,) * len(TOKENS)
        assert whole.usage == sdk.Usage(3, 2, len(TOKENS))
        assert whole.timings.first_token == 0.25
        assert whole.request_id == "made-by-mesh"
    sent = served.script.requests[-1]
    assert (sent.prompt, sent.sampling.max_tokens, sent.tags["a"]) == ("hi", 99, "b")
    assert sent.sampling.HasField("temperature")
    assert not sent.sampling.HasField("top_p")
    assert sent.HasField("timeout") == multiplex  # the call's own deadline says it otherwise
    if not multiplex:
        assert served.script.metadata[0]["authorization"] == "Bearer key"


async def test_32_answers_share_one_stream(served: Served) -> None:
    async with served.client() as client, client.session() as session:
        forms = ("text", "token_ids", "both")
        options = [GenerateOptions(log_probs=n % 2 == 0, output=forms[n % 3]) for n in range(32)]  # type: ignore[arg-type]
        answers = await asyncio.gather(*(session.complete("m", prompt="x", options=one) for one in options))
    assert served.script.sessions == 1
    assert len(served.script.requests) == 32
    for one, answer in zip(options, answers, strict=True):
        assert list(answer.token_ids) == TOKENS
        assert len(answer.log_probs) == (len(TOKENS) if one.log_probs else 0)
    assert {answers[0].text, answers[2].text} == {ANSWER}


async def test_no_more_answers_run_on_a_session_than_allowed(served: Served) -> None:
    served.script.pace = 0.002
    async with served.client(multiplex=True, max_running=2) as client:
        first = [client.generate("m", prompt="x") for _ in range(2)]
        for answer in first:
            await anext(answer)
        third = asyncio.create_task(client.complete("m", prompt="x"))
        await asyncio.sleep(0.03)
        assert len(served.script.requests) == 2
        first[0].cancel()
        assert (await third).text == ANSWER
        running = [client.generate("m", prompt="x") for _ in range(2)]
        for answer in running:
            await anext(answer)
        with pytest.raises(sdk.DeadlinePassed):
            await client.complete("m", prompt="x", options=GenerateOptions(timeout=0.02))


@both_doors
@pytest.mark.parametrize("at", [0, 1, 3, 8, 9, 20, 36, 40])
async def test_an_answer_that_breaks_goes_on_without_a_seam(served: Served, multiplex: bool, at: int) -> None:
    served.script.breaks = [at, 2, 1]
    async with served.client(multiplex=multiplex) as client:
        answer = client.generate("m", prompt="x", options=WITH_STOP)
        whole = await answer.complete()
    assert whole.text == SHOWN
    assert list(whole.token_ids) == TOKENS[: len(whole.token_ids)]
    assert answer.resent == 3
    assert [len(request.resumed_token_ids) for request in served.script.requests] == [0, at, at + 2, at + 3]
    if at:
        assert {request.request_id for request in served.script.requests[1:]} <= {"made-by-mesh", ""}


@both_doors
async def test_a_server_that_stops_cancels_calls_and_they_go_on_elsewhere(served: Served, multiplex: bool) -> None:
    """gRPC's servers end calls that are left when they stop as CANCELLED, without a reason of the mesh."""
    served.script.breaks, served.script.how = [3], grpc.StatusCode.CANCELLED
    async with served.client(multiplex=multiplex) as client:
        answer = client.generate("m", prompt="x", options=WITH_STOP)
        assert (await answer.complete()).text == SHOWN
    assert answer.resent == 1


@both_doors
async def test_a_server_that_dies_and_comes_back_leaves_no_mark(served: Served, multiplex: bool) -> None:
    served.script.pace = 0.002
    async with served.client(multiplex=multiplex, retry=RetryPolicy(first_delay=0.1, attempts=10)) as client:
        answer = client.generate("m", prompt="x")
        text = (await anext(answer)).text + (await anext(answer)).text
        await served.stop()
        await served.start()
        text += (await answer.complete()).text
    assert text == ANSWER
    assert answer.resent >= 1


@both_doors
async def test_without_resuming_a_broken_answer_raises(served: Served, multiplex: bool) -> None:
    served.script.breaks = [0, 3]
    policy = RetryPolicy(first_delay=0.01, resume=False)
    async with served.client(multiplex=multiplex, retry=policy) as client:
        answer = client.generate("m", prompt="x")
        with pytest.raises(sdk.StageUnavailable) as caught:
            await answer.complete()
    assert answer.resent == 1  # before its first token
    assert caught.value.code == 14
    assert served.script.requests[-1].output_form == pb.OUTPUT_FORM_TEXT


async def test_tries_without_progress_are_bounded(served: Served) -> None:
    served.script.breaks = [0] * 10
    async with served.client(retry=RetryPolicy(attempts=3, first_delay=0.001)) as client:
        with pytest.raises(sdk.StageUnavailable, match="draining"):
            await client.complete("m", prompt="x")
    assert len(served.script.breaks) == 7


@both_doors
async def test_errors_are_typed_and_carry_their_details(served: Served, multiplex: bool) -> None:
    bad = error_details_pb2.BadRequest(
        field_violations=[
            error_details_pb2.BadRequest.FieldViolation(field="sampling.temperature", description="is negative"),
            error_details_pb2.BadRequest.FieldViolation(field="model", description="is empty"),
        ]
    )
    quota = error_details_pb2.QuotaFailure(
        violations=[error_details_pb2.QuotaFailure.Violation(subject="tokens/min", description="used up")]
    )
    switch = error_details_pb2.PreconditionFailure(
        violations=[error_details_pb2.PreconditionFailure.Violation(subject="m", description="off")]
    )
    served.script.errors = [
        status(3, "ERROR_REASON_REQUEST_INVALID", bad),
        status(8, "ERROR_REASON_QUOTA_EXCEEDED", quota, retry_after=60.0),
        status(9, "ERROR_REASON_SWITCHED_OFF", switch),
        status(5, "ERROR_REASON_OF_THE_FUTURE"),
        status(13, "ERROR_REASON_INTERNAL"),
    ]
    kinds = [sdk.RequestInvalid, sdk.QuotaExceeded, sdk.SwitchedOff, sdk.ModelUnknown, sdk.InternalError]
    caught: list[sdk.HeadraceError] = []
    async with served.client(multiplex=multiplex) as client:
        for kind in kinds:
            with pytest.raises(kind) as info:
                await client.complete("m", prompt="x")
            caught.append(info.value)
    assert caught[0].violations == (
        sdk.Violation("sampling.temperature", "is negative"),
        sdk.Violation("model", "is empty"),
    )
    assert caught[0].metadata == {"k": "v"}
    assert (caught[1].violations[0].subject, caught[1].retry_after) == ("tokens/min", 60.0)
    assert caught[2].violations[0].subject == "m"
    assert caught[3].reason == "OF_THE_FUTURE"
    assert isinstance(caught[1], sdk.CapacityError)
    assert isinstance(caught[0], sdk.CallerError)


@both_doors
async def test_the_pause_that_the_mesh_asks_for_is_kept(served: Served, multiplex: bool) -> None:
    served.script.errors = [status(8, "ERROR_REASON_OVERLOADED", retry_after=0.15)]
    async with served.client(multiplex=multiplex) as client:
        begin = asyncio.get_running_loop().time()
        assert (await client.complete("m", prompt="x")).text == ANSWER
        assert asyncio.get_running_loop().time() - begin >= 0.15

        served.script.errors = [status(8, "ERROR_REASON_OVERLOADED", retry_after=0.2)]
        with pytest.raises(sdk.Overloaded):  # the pause does not fit into the time
            await client.complete("m", prompt="x", options=GenerateOptions(timeout=0.1))


@both_doors
async def test_leaving_the_loop_cancels_the_generation(served: Served, multiplex: bool) -> None:
    served.script.pace = 0.01
    async with served.client(multiplex=multiplex) as client:
        async for chunk in client.generate("m", prompt="x"):
            assert chunk.token_ids
            break
        await asyncio.wait_for(served.script.cancelled.wait(), 5)


@both_doors
async def test_cancelling_the_task_cancels_the_generation(served: Served, multiplex: bool) -> None:
    served.script.pace = 0.01
    async with served.client(multiplex=multiplex) as client:
        task = asyncio.create_task(client.complete("m", prompt="x"))
        await served.script.asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(served.script.cancelled.wait(), 5)


@both_doors
async def test_an_answer_is_its_own_context_and_ends_once(served: Served, multiplex: bool) -> None:
    served.script.pace = 0.01
    async with served.client(multiplex=multiplex) as client:
        async with client.generate("m", prompt="x") as answer:
            await anext(answer)
        assert [chunk async for chunk in answer] == []
        with pytest.raises(RuntimeError, match="read or cancelled"):
            await answer.complete()
        await asyncio.wait_for(served.script.cancelled.wait(), 5)


@both_doors
async def test_a_deadline_ends_an_answer(served: Served, multiplex: bool) -> None:
    served.script.pace = 0.5
    async with served.client(multiplex=multiplex) as client:
        begin = asyncio.get_running_loop().time()
        with pytest.raises(sdk.DeadlinePassed):
            await client.complete("m", prompt="x", options=GenerateOptions(timeout=0.1))
        assert asyncio.get_running_loop().time() - begin < 2.0


async def test_closing_a_session_ends_what_runs_on_it(served: Served) -> None:
    served.script.pace = 0.01
    async with served.client(retry=RetryPolicy(attempts=1)) as client:
        async with client.session() as session:
            task = asyncio.create_task(session.complete("m", prompt="x"))
            await served.script.asked.wait()
        with pytest.raises(sdk.StageUnavailable, match="session was closed"):
            await task
        await asyncio.wait_for(served.script.cancelled.wait(), 5)


async def test_tokens_are_counted_and_models_listed_page_by_page(served: Served) -> None:
    async with served.client() as client:
        served.script.errors = [status(14, "ERROR_REASON_STAGE_UNAVAILABLE", retry_after=0.01)]
        assert await client.count_tokens("m", chat=[("user", "four"), ("assistant", "!")]) == sdk.TokenCount(5, 100)
        models = [model async for model in client.list_models(page_size=2)]
    assert [model.name for model in models] == ["m0", "m1", "m2", "m3", "m4"]
    assert models[0].capabilities == {"chat"}


def tool(state: "pb.ToolState.ValueType", **fields: str) -> pb.GenerateResponse:
    step = pb.ToolStep(step=1, tool="clock", arguments="{}", state=state, **fields)
    return pb.GenerateResponse(tool_step=step)


UNDER = GenerateOptions(contract="c", requires=["vision"])


@both_doors
async def test_tools_and_their_results_come_in_order(served: Served, multiplex: bool) -> None:
    end = finish(3, None)
    end.degradation.level = 2
    end.degradation.rungs.extend(["short-answers", "defer"])
    end.tried.append("small")
    served.script.told = [
        pb.GenerateResponse(request_id="made-by-mesh", text="Let me look. "),
        tool(pb.TOOL_STATE_WAITING, approval_id="a.t"),
        tool(pb.TOOL_STATE_RUNNING),
        tool(pb.TOOL_STATE_DONE, result="noon"),
        pb.GenerateResponse(text="It is noon.", finish=end),
    ]
    async with served.client(multiplex=multiplex) as client:
        seen = [chunk async for chunk in client.generate("m", chat=[("user", "time?")], options=UNDER)]
        whole = await client.complete("m", chat=[("user", "time?")], options=UNDER)
    assert served.script.requests[0].contract == "c"
    assert list(served.script.requests[0].requires) == ["vision"]
    assert [chunk.text or (chunk.tool_step and chunk.tool_step.state) for chunk in seen] == [
        "Let me look. ", "waiting", "running", "done", "It is noon.",
    ]  # fmt: skip
    assert whole.text == "Let me look. It is noon."
    assert whole.tool_steps == (
        sdk.ToolStep(1, "clock", "{}", "waiting", approval_id="a.t"),
        sdk.ToolStep(1, "clock", "{}", "running"),
        sdk.ToolStep(1, "clock", "{}", "done", "noon"),
    )
    assert whole.finish.degradation == sdk.Degradation(2, ("short-answers", "defer"))
    assert whole.finish.tried == ("small",)


@both_doors
async def test_an_answer_that_begins_anew(served: Served, multiplex: bool) -> None:
    served.script.told = [
        pb.GenerateResponse(text="Perhaps", token_ids=[1, 2]),
        pb.GenerateResponse(restart=True),
        pb.GenerateResponse(text="Surely", token_ids=[3], finish=finish(3, None)),
    ]
    async with served.client(multiplex=multiplex) as client:
        whole = await client.complete("m", prompt="x", options=UNDER)
        seen = [chunk async for chunk in client.generate("m", prompt="x", options=UNDER)]
    assert (whole.text, whole.token_ids) == ("Surely", (3,))
    assert sdk.Chunk(restart=True) in seen
    assert seen[-1].text == "Surely"


@both_doors
@pytest.mark.parametrize(
    "told", [[tool(pb.TOOL_STATE_DONE)], [pb.GenerateResponse(text="no tokens")]], ids=["tool", "text"]
)
async def test_what_cannot_be_gone_on_from_is_not_sent_again(
    served: Served, multiplex: bool, told: list[pb.GenerateResponse]
) -> None:
    served.script.told = [*told, pb.GenerateResponse(text="never")]
    served.script.breaks = [len(told)]
    async with served.client(multiplex=multiplex) as client:
        with pytest.raises(sdk.StageUnavailable):
            await client.complete("m", prompt="x", options=UNDER)
    assert len(served.script.requests) == 1


@both_doors
async def test_a_break_behind_a_restart_forgets_what_was_void(served: Served, multiplex: bool) -> None:
    served.script.told = [
        pb.GenerateResponse(text="ab", token_ids=[1, 2], model_version="m@1"),
        pb.GenerateResponse(restart=True),
        pb.GenerateResponse(text="c", token_ids=[3], finish=finish(3, None)),
    ]
    served.script.breaks = [2]
    async with served.client(multiplex=multiplex) as client:
        whole = await client.complete("m", prompt="x", options=UNDER)
    assert whole.text == "c"
    again = served.script.requests[1]
    assert (list(again.resumed_token_ids), again.resumed_model_version) == ([], "")


async def test_a_decision_is_sent_once(served: Served) -> None:
    async with served.client() as client:
        await client.approve("a.t", approved=True, reason="fine")
        served.script.errors = [
            status(5, "ERROR_REASON_APPROVAL_UNKNOWN"),
            status(14, "ERROR_REASON_STAGE_UNAVAILABLE"),
        ]
        with pytest.raises(sdk.ApprovalUnknown):
            await client.approve("a.t", approved=False)
        with pytest.raises(sdk.StageUnavailable):
            await client.approve("a.t", approved=False)
    assert served.script.approvals[0] == pb.ApproveRequest(approval_id="a.t", approved=True, reason="fine")
    assert len(served.script.approvals) == 3


async def test_misuse_is_told_at_once() -> None:
    client = HeadraceClient("127.0.0.1:1")
    with pytest.raises(RuntimeError, match="async with"):
        await client.complete("m", prompt="x")
    with pytest.raises(ValueError, match="either chat or prompt"):
        client.generate("m")
    with pytest.raises(ValueError, match="no such role"):
        client.generate("m", chat=[("tool", "x")])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="one of json_schema"):
        GenerateOptions(regex="a", ebnf="b")


async def test_nobody_at_home_is_unavailable_within_the_bounds() -> None:
    async with HeadraceClient("127.0.0.1:1", retry=RetryPolicy(attempts=2, first_delay=0.01)) as client:
        with pytest.raises(sdk.StageUnavailable):
            await client.complete("m", prompt="x")


def test_the_public_names_are_these() -> None:
    assert sdk.__all__ == [
        "Answer", "ApprovalDenied", "ApprovalUnknown", "CallerError", "Cancelled", "CapacityError", "Chunk",
        "Completion", "ContractBroken", "ContractUnknown", "CredentialsInvalid", "DeadlinePassed", "Degradation",
        "Finish", "GenerateOptions", "HeadraceClient", "HeadraceError", "InternalError", "Model", "ModelUnknown",
        "NoExecutor", "NotAllowed", "NotSupported", "Overloaded", "QuotaExceeded", "RequestInvalid", "RetryPolicy",
        "Session", "StageUnavailable", "SwitchedOff", "Timings", "Tls", "TokenCount", "ToolFailed", "ToolStep",
        "Usage", "Violation",
    ]  # fmt: skip
    assert all(hasattr(sdk, name) for name in sdk.__all__)


def test_the_wheel_stands_on_its_own(tmp_path: Path) -> None:
    folder = Path(sdk.__file__).parent
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=folder, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("headrace_client-*.whl")
    # Unpacked, as an installer does: a namespace package (headrace) is not found inside of an archive.
    installed = tmp_path / "installed"
    zipfile.ZipFile(wheel).extractall(installed)
    assert {path.name for path in (installed / "headrace_client").iterdir()} == {
        path.name for path in folder.iterdir() if path.suffix == ".py" or path.name == "py.typed"
    }
    checkout = [str(folder.parents[1]), str(folder.parents[1] / "protos")]
    check = f"""
import sys, importlib.resources
# The checkout is installed in this environment; the wheel has to do without it.
sys.path[:] = [{str(installed)!r}] + [p for p in sys.path if p not in {checkout!r}]
import headrace_client
from headrace.inference.v1 import inference_pb2
assert headrace_client.HeadraceClient().generate('m', prompt='x').request_id == ''
assert inference_pb2.__file__.startswith({str(installed)!r}), inference_pb2.__file__
assert importlib.resources.files('headrace_client').joinpath('py.typed').is_file()
assert not [m for m in sys.modules if m.split('.')[0] in ('libs', 'services')]
"""
    ran = subprocess.run([sys.executable, "-I", "-c", check], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
