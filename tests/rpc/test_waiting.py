"""What a caller hears while a model is loaded, and where a resumed answer goes on: SDK, wire and admission in one."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from headrace.inference.v1 import inference_pb2 as pb
from headrace.inference.v1 import inference_pb2_grpc
from libs.client import Answer, Chunk, GenerateOptions, HeadraceClient, NoExecutor, RequestInvalid, RetryPolicy
from libs.clock import SystemClock
from libs.errors import NoExecutor as PoolGone
from libs.errors import StageUnavailable
from libs.lane.draft import Draft
from libs.lane.forwarder import Forwarder
from libs.lane.frame import Frame
from libs.lane.work import FinishReason, Note, Outcome, Work
from libs.models.tokenizers import Tokenizers
from libs.rpc.interceptors import deadline, errors, identity
from libs.rpc.server import RpcServer, Service
from libs.tasks import Tasks
from libs.telemetry.metrics import Metrics
from libs.telemetry.tracing import untraced
from services.admission.observe import Observer
from services.admission.service import InferenceServicer
from tests.unit.fronts import front
from tests.unit.lanes import HandLane, HandStage
from tests.unit.letters import POLICY, SPEC, TENANT, tokenizer, tokens

LORA = replace(SPEC, name="lora", base="letters", version="1")
MODELS = replace(POLICY, models={**POLICY.models, "lora": LORA})
ANSWER = "a whole answer"


class Letters(HandStage):
    """A router whose works say what the test says."""

    def new_lane(self, sink):  # type: ignore[no-untyped-def]
        lane = super().new_lane(sink)
        lane.submit = self._submit  # type: ignore[method-assign]  # tests look at what a resumed work brings
        return lane

    def _submit(self, work_id: int, work: Work) -> None:
        self.lane.works[work_id] = work
        self.lane.made[work_id] = len(work.resumed)
        self.lane.sent.append(work)


class Door:
    """Admission behind a port, in front of a router by hand."""

    def __init__(self, router: Letters, port: int) -> None:
        self.router = router
        self.port = port

    @property
    def lane(self) -> HandLane:
        return self.router.lane

    def client(self, multiplex: bool) -> HeadraceClient:
        retry = RetryPolicy(first_delay=0.01, longest_delay=2.0)
        return HeadraceClient(f"127.0.0.1:{self.port}", multiplex=multiplex, retry=retry, timeout=20.0)

    async def sent(self, count: int) -> Work:
        """The last of so many works."""
        async with asyncio.timeout(5):
            while len(self.lane.sent) < count:
                await asyncio.sleep(0.002)
        return self.lane.sent[-1]

    def note(self, note: Note) -> None:
        (work_id,) = self.lane.works
        self.lane.sink.on_note(work_id, note)

    def say(self, text: str) -> None:
        (work_id,) = self.lane.works
        frame = Draft()
        frame.add(work_id, self.lane.made[work_id], tokens(text))
        self.lane.made[work_id] += len(text)
        self.lane.sink.on_frame(Frame.of(frame))

    def end(self, outcome: Outcome | None = None) -> None:
        (work_id,) = self.lane.works
        self.lane.end(work_id, outcome)


@asynccontextmanager
async def door() -> AsyncIterator[Door]:
    router, clock, tasks = Letters(), SystemClock(), Tasks()
    forwarder = Forwarder("admission", lambda work, ready: ready[0], clock)
    forwarder.set_neighbours({"router-0": router})
    tokenizers = Tokenizers(lambda source, folder: tokenizer(), None, tasks)  # type: ignore[arg-type]
    tokenizers.want(dict(MODELS.models))
    await tokenizers.loaded()
    observer = Observer(Metrics("admission", "admission-0", "0"))
    entry = front(forwarder, lambda: MODELS, tokenizers, clock, tasks, Path("nowhere"))
    servicer = InferenceServicer(entry, None, untraced(), observer)  # type: ignore[arg-type]  # nobody lists models here
    add = inference_pb2_grpc.add_InferenceServiceServicer_to_server
    server = RpcServer(
        "127.0.0.1:0",
        [Service("headrace.inference.v1.InferenceService", add, servicer)],
        [errors, deadline(clock), identity(lambda call: TENANT)],
        None,
    )
    await server.start()
    try:
        yield Door(router, server.port)
    finally:
        await server.stop()
        await tasks.close()


async def heard(answer: Answer, count: int) -> list[Chunk]:
    """The next so many chunks."""
    async with asyncio.timeout(5):
        return [await anext(answer) for _ in range(count)]


both_doors = pytest.mark.parametrize("multiplex", [False, True], ids=["stream", "session"])


@both_doors
async def test_a_caller_hears_what_its_request_waits_for(multiplex: bool) -> None:
    async with door() as it, it.client(multiplex) as client:
        answer = client.generate("letters", prompt="x")
        first = asyncio.create_task(heard(answer, 1))
        await it.sent(1)
        it.note(Note("letters@0", "letters is loaded on demand"))
        assert await first == [Chunk(waiting="letters is loaded on demand")]
        it.note(Note(waiting="letters is being loaded on executor-0"))
        assert await heard(answer, 1) == [Chunk(waiting="letters is being loaded on executor-0")]
        it.say(ANSWER)
        it.end()
        whole = await answer.complete()
        assert whole.text == ANSWER
        assert whole.finish.model == "letters"
        assert answer.resent == 0


@both_doors
async def test_who_waits_for_the_whole_answer_is_not_bothered(multiplex: bool) -> None:
    async with door() as it, it.client(multiplex) as client:
        whole = asyncio.create_task(client.complete("letters", prompt="x"))
        await it.sent(1)
        it.note(Note("letters@0", "letters is being loaded"))
        await asyncio.sleep(0.02)
        it.say(ANSWER)
        it.end()
        assert (await whole).text == ANSWER


@both_doors
@pytest.mark.parametrize(("model", "pinned"), [("letters", "letters@0"), ("lora", "letters@0+lora@1")])
async def test_an_answer_that_breaks_goes_on_with_the_version_that_began_it(
    multiplex: bool, model: str, pinned: str
) -> None:
    async with door() as it, it.client(multiplex) as client:
        answer = client.generate(model, prompt="x")
        first = asyncio.create_task(heard(answer, 1))
        assert (await it.sent(1)).pool == ""
        it.note(Note(pinned))
        it.say("a whole")
        assert (await first)[0].text == "a whole"
        it.end(Outcome(error=StageUnavailable("the engine died", retry_after_s=0.01), output_tokens=7))
        rest = asyncio.create_task(answer.complete())
        resumed = await it.sent(2)
        assert (bytes(resumed.resumed), resumed.pool, resumed.model) == (b"a whole", pinned, model)
        it.note(Note(pinned, f"{model} is being loaded"))
        it.say(" answer")
        it.end(Outcome(FinishReason.STOP, output_tokens=14))
        assert (await rest).text == " answer"
        assert answer.resent == 1


@both_doors
async def test_a_request_that_has_not_begun_is_sent_again_without_a_version(multiplex: bool) -> None:
    async with door() as it, it.client(multiplex) as client:
        whole = asyncio.create_task(client.complete("letters", prompt="x"))
        await it.sent(1)
        it.note(Note("letters@0", "letters is being loaded"))
        it.end(Outcome(error=PoolGone("no executor can answer", retry_after_s=0.01)))
        again = await it.sent(2)
        assert (again.pool, len(again.resumed)) == ("", 0)
        it.note(Note("letters@1"))
        it.say(ANSWER)
        it.end()
        assert (await whole).text == ANSWER


@both_doors
async def test_why_it_cannot_run_is_told_at_last(multiplex: bool) -> None:
    async with door() as it, it.client(multiplex) as client:
        whole = asyncio.create_task(client.complete("letters", prompt="x"))
        await it.sent(1)
        it.note(Note("letters@0", "letters is being loaded"))
        it.end(Outcome(error=PoolGone("letters: no executor is large enough", retry_after_s=60.0)))
        with pytest.raises(NoExecutor, match="no executor is large enough"):
            await whole


async def test_a_version_is_no_way_to_another_model_on_the_wire() -> None:
    async with door() as it, it.client(False) as client:
        answer = client.generate("letters", prompt="x", options=GenerateOptions(output="token_ids"))
        answer._request.resumed_token_ids.append(65)
        answer._request.resumed_model_version = "bare@0"
        with pytest.raises(RequestInvalid) as raised:
            await answer.complete()
        assert [violation.subject for violation in raised.value.violations] == ["resumed_model_version"]
        assert not it.lane.sent


async def test_the_version_is_on_the_first_message_with_tokens_and_on_no_other() -> None:
    async with door() as it, it.client(False) as client:
        async with client.generate("letters", prompt="x"):
            pass
        call = client._stub.Generate(pb.GenerateRequest(model="letters", prompt="x"))
        messages: list[Any] = []
        await it.sent(1)
        it.note(Note("letters@0", "letters is being loaded"))
        messages.append(await call.read())
        for text in ("a", "b"):
            it.say(text)
            messages.append(await call.read())
        it.end()
        messages.append(await call.read())
        assert [message.model_version for message in messages] == ["", "letters@0", "", ""]
        assert [message.waiting for message in messages] == ["letters is being loaded", "", "", ""]
        assert [bool(message.request_id) for message in messages] == [True, False, False, False]
