"""An admission process that ends while it is asked: over the wire, with the SDK and with plain stubs."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc import StatusCode, aio

from headrace.inference.v1 import inference_pb2 as pb
from headrace.inference.v1 import inference_pb2_grpc
from libs.client import Completion, HeadraceClient, RetryPolicy
from libs.clock import SystemClock
from libs.lane.draft import Draft
from libs.lane.forwarder import DRAINING, Forwarder
from libs.lane.frame import Frame
from libs.lane.stage import Sink
from libs.lane.work import FinishReason, Outcome, Work
from libs.models.tokenizers import Tokenizers
from libs.rpc.interceptors import deadline, errors, identity
from libs.rpc.server import RpcServer, Service
from libs.tasks import Tasks
from libs.telemetry.metrics import Metrics
from libs.telemetry.tracing import untraced
from services.admission.front import Front
from services.admission.leaving import leave
from services.admission.observe import Observer
from services.admission.service import InferenceServicer
from tests.system.client import details
from tests.unit.fronts import front
from tests.unit.lanes import HandLane, HandStage
from tests.unit.letters import POLICY, TENANT, tokenizer, tokens

NAME = "headrace.inference.v1.InferenceService"
HANDED_BACK = ("headrace-handed-back", "true")


class LetterLane(HandLane):
    """Works say what the test says."""

    def submit(self, work_id: int, work: Work) -> None:
        self.works[work_id] = work
        self.made[work_id] = len(work.resumed)
        self.sent.append(work)

    def say(self, work_id: int, text: str) -> None:
        frame = Draft()
        frame.add(work_id, self.made[work_id], tokens(text))
        self.made[work_id] += len(text)
        self.sink.on_frame(Frame.of(frame))


class Letters(HandStage):
    """A router of such lanes."""

    def new_lane(self, sink: Sink) -> LetterLane:
        return LetterLane(sink, self.opens_ready)


@dataclass
class Process:
    """Admission behind a port, in front of a router by hand."""

    front: Front
    inference: InferenceServicer
    router: Letters
    server: RpcServer
    target: str

    async def leave(self, notice_s: float, drain_s: float) -> None:
        """As it does when it is told to end."""
        await leave(self.front, self.inference, self.server.retire, notice_s, drain_s)

    @property
    def lane(self) -> LetterLane:
        lane = self.router.lane
        assert isinstance(lane, LetterLane)
        return lane

    async def runs(self, count: int) -> list[int]:
        """The works in flight, when there are so many."""
        async with asyncio.timeout(5):
            while len(self.lane.works) != count:
                await asyncio.sleep(0.002)
        return list(self.lane.works)

    def say(self, work_id: int, text: str) -> None:
        self.lane.say(work_id, text)

    def end(self, work_id: int) -> None:
        self.lane.end(work_id, Outcome(finish=FinishReason.STOP))


@asynccontextmanager
async def process() -> AsyncIterator[Process]:
    router, clock, tasks = Letters(), SystemClock(), Tasks()
    forwarder = Forwarder("admission", lambda work, ready: ready[0], clock)
    forwarder.set_neighbours({"router-0": router})
    tokenizers = Tokenizers(lambda source, folder: tokenizer(), None, tasks)  # type: ignore[arg-type]
    tokenizers.want(dict(POLICY.models))
    await tokenizers.loaded()
    entry = front(forwarder, lambda: POLICY, tokenizers, clock, tasks, Path("nowhere"))
    observer = Observer(Metrics("admission", "admission-0", "0"))
    servicer = InferenceServicer(entry, None, untraced(), observer)  # type: ignore[arg-type]  # nobody lists models here
    add = inference_pb2_grpc.add_InferenceServiceServicer_to_server
    layers = [errors, deadline(clock), identity(lambda call: TENANT)]
    server = RpcServer("127.0.0.1:0", [Service(NAME, add, servicer)], layers, None)
    await server.start()
    try:
        yield Process(entry, servicer, router, server, f"127.0.0.1:{server.port}")
    finally:
        await server.stop()
        await tasks.close()


def sdk(target: str, *, multiplex: bool) -> HeadraceClient:
    return HeadraceClient(target, multiplex=multiplex, retry=RetryPolicy(first_delay=0.01), timeout=20.0)


async def ended(asking: "asyncio.Task[Completion]") -> str:
    async with asyncio.timeout(5):
        return (await asking).text


async def test_what_is_new_on_a_session_goes_to_another_stream_and_what_runs_ends_where_it_is() -> None:
    async with process() as it, sdk(it.target, multiplex=True) as client:
        first = asyncio.create_task(client.complete("letters", prompt="x"))
        (old,) = await it.runs(1)
        it.say(old, "one ")
        it.front.draining = True
        second = asyncio.create_task(client.complete("letters", prompt="y"))
        await asyncio.sleep(0.1)
        assert it.inference.in_flight == 1, "a process that ends opens no session"
        it.front.draining = False  # as if another process stood behind the same target
        new = next(iter(set(await it.runs(2)) - {old}))
        assert it.inference.in_flight == 2
        it.inference.leave()
        for work_id, text in ((old, "answer"), (new, "another")):
            it.say(work_id, text)
            it.end(work_id)
        assert (await ended(first), await ended(second)) == ("one answer", "another")
        async with asyncio.timeout(5):
            while it.inference.in_flight:
                await asyncio.sleep(0.002)


@pytest.mark.parametrize("multiplex", [False, True], ids=["generate", "session"])
async def test_what_still_runs_at_the_end_goes_on_elsewhere(multiplex: bool) -> None:
    async with (
        process() as it,
        process() as other,
        sdk(f"ipv4:{it.target},{other.target}", multiplex=multiplex) as client,
    ):
        asking = asyncio.create_task(client.complete("letters", prompt="x"))
        (old,) = await it.runs(1)
        it.say(old, "half an ")
        await asyncio.sleep(0.05)
        async with asyncio.timeout(5):
            await it.leave(0.0, 0.05)
        assert not it.inference.in_flight
        assert not it.front.in_flight
        assert it.front.usage.tenants["t"].output_tokens == len("half an "), "what was made is counted, here"
        assert it.lane.cancels == [old]
        (new,) = await other.runs(1)
        assert other.lane.sent[-1].resumed == tuple(tokens("half an "))
        other.say(new, "answer")
        other.end(new)
        assert await ended(asking) == "half an answer"


def refused(target: str) -> Any:
    """A call that ended before it had a token. By gRPC's other Python client: grpc.aio's forgets headers that the end
    of the call comes right behind."""
    with grpc.insecure_channel(target) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        call: Any = stub.Generate(pb.GenerateRequest(model="letters", prompt="x"), timeout=5)
        with pytest.raises(grpc.RpcError):
            next(iter(call))
        call.initial_metadata()
    return call


async def test_a_plain_call_is_told_that_another_process_may_take_it() -> None:
    async with process() as it:
        running = asyncio.create_task(asyncio.to_thread(refused, it.target))
        await it.runs(1)
        # Before it has a token. The port stays, for one that comes all the same.
        await leave(it.front, it.inference, lambda: None, 0.0, 0.05)
        for call in (await running, await asyncio.to_thread(refused, it.target)):
            assert call.code() is StatusCode.UNAVAILABLE
            assert HANDED_BACK in list(call.initial_metadata())
            info = details(call)["ErrorInfo"]
            assert isinstance(info, error_details_pb2.ErrorInfo)
            assert info.metadata[DRAINING] == "true"


@pytest.mark.parametrize("multiplex", [False, True])
async def test_who_is_connected_goes_elsewhere_while_a_long_answer_has_its_drain(multiplex: bool) -> None:
    async with process() as it, process() as other:
        target = f"ipv4:{it.target},{other.target}"
        once = RetryPolicy(first_delay=0.01, attempts=2)
        async with HeadraceClient(target, multiplex=multiplex, retry=once, timeout=20.0) as client:
            long = asyncio.create_task(client.complete("letters", prompt="x"))
            (work_id,) = await it.runs(1)
            leaving = asyncio.create_task(it.leave(0.0, 20.0))
            for _ in range(20):
                asking = asyncio.create_task(client.complete("letters", prompt="y"))
                (elsewhere,) = await other.runs(1)
                other.say(elsewhere, "there")
                other.end(elsewhere)
                assert await ended(asking) == "there"
            assert not leaving.done()
            it.say(work_id, "whole")
            it.end(work_id)
            assert await ended(long) == "whole"
            async with asyncio.timeout(5):
                await leaving


async def test_an_answer_that_has_begun_is_not_marked_to_be_sent_elsewhere() -> None:
    """It would begin anew there, behind tokens that its caller has."""
    async with process() as it, aio.insecure_channel(it.target) as channel:
        stub: Any = inference_pb2_grpc.InferenceServiceStub(channel)
        call = stub.Generate(pb.GenerateRequest(model="letters", prompt="x"), timeout=5)
        (work_id,) = await it.runs(1)
        it.say(work_id, "one")
        assert (await call.read()).text == "one"
        await it.leave(0.0, 0.05)
        with pytest.raises(aio.AioRpcError) as raised:
            await call.read()
        assert raised.value.code() is StatusCode.UNAVAILABLE
        assert HANDED_BACK not in list(await call.initial_metadata())


async def test_idle_sessions_end_well_and_requests_are_taken_while_others_notice() -> None:
    async with process() as it, aio.insecure_channel(it.target) as channel:
        stub: Any = inference_pb2_grpc.InferenceServiceStub(channel)
        session = stub.Session(timeout=5)
        await session.initial_metadata()
        leaving = asyncio.create_task(it.leave(0.3, 5.0))
        call = stub.Generate(pb.GenerateRequest(model="letters", prompt="x"), timeout=5)
        (work_id,) = await it.runs(1)
        assert await session.read() is aio.EOF
        assert await session.code() is StatusCode.OK
        assert not leaving.done()
        it.say(work_id, "whole")
        it.end(work_id)
        assert "".join([message.text async for message in call]) == "whole"
        async with asyncio.timeout(5):
            await leaving
