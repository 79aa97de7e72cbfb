"""Lanes over real connections, and within a process: what both sides promise each other."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from grpc import StatusCode, aio
from msgspec.structs import replace
from structlog.testing import capture_logs

from headrace.inference.v1 import inference_pb2
from headrace.lane.v1 import lane_pb2, lane_pb2_grpc
from libs.errors import Cancelled, Overloaded
from libs.lane import client, server
from libs.lane import served as served_lane
from libs.lane.client import RemoteStage
from libs.lane.draft import Draft
from libs.lane.frame import Frame
from libs.lane.near import REOPEN_S, NearStage
from libs.lane.stage import Lane, LaneNotReady, Sink
from libs.lane.wire import frame_from_proto, work_to_proto
from libs.lane.work import FinishReason, Note, Outcome, QueueState, Tier, Work
from libs.rpc.channels import Channels
from libs.streams.client import Dialer
from libs.streams.server import StreamServer
from libs.streams.stream import Stream
from libs.tasks import Tasks
from tests.rpc.chain import Served, served
from tests.unit.lanes import Answers, HandLane, HandStage, answer, work


class Log(Answers):
    """A sink that notes when its lane is ready, and when it breaks."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[str] = []

    def on_ready(self) -> None:
        self.events.append("ready")

    def on_broken(self, reason: str) -> None:
        self.events.append("broken")


async def until(condition: Callable[[], Any], timeout_s: float = 10.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.002)


class Pair:
    """A stage behind its ports, and a process in front of it."""

    def __init__(self, stage: HandStage, served: Served, remote: RemoteStage, channels: Channels) -> None:
        self.stage, self.served, self.remote, self.channels = stage, served, remote, channels
        channel = channels.connect(served.endpoint)
        self.lanes: Any = lane_pb2_grpc.LaneServiceStub(channel)
        """By grpc.aio: the streams' wire is gRPC's."""
        self.sink = Log()

    async def open(self, near: bool = False) -> Lane:
        """Args:
        near: As from a service in the same process.
        """
        nearby = NearStage(self.served.endpoint, self.stage, lambda: None)
        lane: Lane = (nearby if near else self.remote).open(self.sink)
        await until(lambda: lane.ready)
        return lane

    @property
    def behind(self) -> HandLane:
        return self.stage.lane


@asynccontextmanager
async def pair(stage: HandStage | None = None) -> AsyncIterator[Pair]:
    stage, tasks, channels = stage or HandStage(), Tasks(), Channels()
    async with AsyncExitStack() as stack:
        stack.push_async_callback(channels.close)
        stack.push_async_callback(tasks.close)
        behind = await served(stage)
        stack.push_async_callback(behind.cut)
        remote = RemoteStage(behind.endpoint, channels.connect, Dialer(), tasks)
        yield Pair(stage, behind, remote, channels)


@pytest.mark.parametrize("near", [False, True])
async def test_works_go_up_and_tokens_and_outcomes_come_down(near: bool) -> None:
    async with pair() as it:
        lane = await it.open(near)
        for index in range(20):
            lane.submit(index, work(index, log_probs=True))
        await until(lambda: len(it.behind.works) == 20)
        seen = it.behind.works[7]
        assert not seen.resumed
        assert not seen.block_hashes
        assert seen == replace(work(7, log_probs=True), resumed=seen.resumed, block_hashes=seen.block_hashes)
        it.behind.run()
        await until(lambda: len(it.sink.outcomes) == 20)
        assert it.sink.tokens == {index: answer(work(index)) for index in range(20)}
        assert it.sink.events == ["ready"]


@pytest.mark.parametrize("near", [False, True])
async def test_notes_come_down_in_front_of_the_tokens(near: bool) -> None:
    order: list[str] = []

    class Ordered(Log):
        def on_note(self, work_id: int, note: Note) -> None:
            super().on_note(work_id, note)
            order.append("note")

        def on_frame(self, frame: Frame) -> None:
            super().on_frame(frame)
            order.append("frame")

    async with pair() as it:
        it.sink = Ordered()
        lane = await it.open(near)
        lane.submit(7, work(7, adapter="a@1", salt="a@1", chat=(("user", "hi"),)))
        await until(lambda: it.behind.works)
        seen = it.behind.works[7]
        assert (seen.adapter, seen.salt, seen.chat) == ("a@1", "a@1", (("user", "hi"),))
        notes = [Note("m@1", "m is loaded on demand"), Note(waiting="m is being loaded on a")]
        for note in notes:
            it.behind.sink.on_note(7, note)
        it.behind.run()
        await until(lambda: it.sink.outcomes)
        assert it.sink.notes == {7: notes}
        assert order.index("frame") > max(index for index, what in enumerate(order) if what == "note")


async def test_a_lane_mends_itself_when_its_server_is_back() -> None:
    async with pair() as it:
        lane = await it.open()
        lane.submit(1, work(1))
        await until(lambda: it.behind.works)
        first = it.behind
        await it.served.cut()
        await until(lambda: it.sink.events == ["ready", "broken"])
        assert first.closed, "the works of a stream end with it"
        with pytest.raises(LaneNotReady):
            lane.submit(2, work(2))
        lane.cancel(1)  # ignored
        await it.served.mend()
        await until(lambda: it.sink.events == ["ready", "broken", "ready"])
        lane.submit(1, work(1, resumed=answer(work(1))[:3]))
        await until(lambda: it.behind is not first and it.behind.works)
        assert list(it.behind.works[1].resumed) == answer(work(1))[:3]
        assert not it.behind.cancels


async def test_nobody_at_the_endpoint() -> None:
    async with pair() as it:
        await it.served.cut()
        lane = it.remote.open(it.sink)
        await asyncio.sleep(0.3)
        with pytest.raises(LaneNotReady):
            lane.submit(1, work(1))
        assert it.sink.events == []
        await it.served.mend()
        await until(lambda: it.sink.events == ["ready"])


@pytest.mark.parametrize("near", [False, True])
async def test_a_lane_that_is_closed_cancels_its_works_and_says_nothing_more(near: bool) -> None:
    async with pair() as it:
        lane = await it.open(near)
        lane.submit(1, work(1))
        await until(lambda: it.behind.works)
        lane.close()
        lane.close()
        await until(lambda: it.behind.closed)
        await asyncio.sleep(0.1)
        assert it.sink.events == ["ready"]
        assert not it.sink.outcomes


@pytest.mark.parametrize("near", [False, True])
async def test_a_cancel_has_its_outcome(near: bool) -> None:
    async with pair() as it:
        lane = await it.open(near)
        lane.submit(1, work(1))
        lane.cancel(1)
        lane.cancel(99)
        await until(lambda: set(it.behind.cancels) == {1, 99})
        it.behind.end(1, Outcome(error=Cancelled("as asked"), output_tokens=2))
        await until(lambda: it.sink.outcomes)
        assert isinstance(it.sink.outcomes[1].error, Cancelled)


@pytest.mark.parametrize("near", [False, True])
async def test_a_cancel_never_overtakes_its_work(monkeypatch: pytest.MonkeyPatch, near: bool) -> None:
    monkeypatch.setattr(client, "REQUEST_TOKENS", 100)
    seen: list[tuple[str, int]] = []

    class NotingLane(HandLane):
        def submit(self, work_id: int, work: Work) -> None:
            seen.append(("work", work_id))
            super().submit(work_id, work)

        def cancel(self, work_id: int) -> None:
            seen.append(("cancel", work_id))

    class Noting(HandStage):
        def new_lane(self, sink: Sink) -> HandLane:
            return NotingLane(sink, True)

    async with pair(Noting()) as it:
        lane = await it.open(near)
        for index in range(30):
            lane.submit(index, work(index, prompt=60))
            lane.cancel(index)
        await until(lambda: len(seen) == 60)
        assert all(seen.index(("work", index)) < seen.index(("cancel", index)) for index in range(30))


@pytest.mark.parametrize("near", [False, True])
async def test_too_many_works_on_one_lane_are_refused(monkeypatch: pytest.MonkeyPatch, near: bool) -> None:
    monkeypatch.setattr(served_lane, "MAX_WORKS", 3)
    async with pair() as it:
        lane = await it.open(near)
        for index in range(5):
            lane.submit(index, work(index))
        await until(lambda: len(it.sink.outcomes) == 2)
        assert set(it.behind.works) == {0, 1, 2}
        assert all(isinstance(outcome.error, Overloaded) for outcome in it.sink.outcomes.values())
        it.behind.end(0)
        await until(lambda: 0 in it.sink.outcomes)
        lane.submit(9, work(9))
        await until(lambda: 9 in it.behind.works)


async def test_a_front_that_closes_its_half_ends_the_stream_well() -> None:
    async with pair() as it:
        call = it.lanes.Exchange()
        await call.write(lane_pb2.ExchangeRequest(works=[work_to_proto(1, work(1))]))
        await until(lambda: it.stage.lanes and it.behind.works)
        await call.done_writing()
        assert await call.read() is aio.EOF
        assert await call.code() is StatusCode.OK
        assert it.behind.closed


async def test_a_reader_that_stops_makes_frames_grow_and_disturbs_nobody() -> None:
    steps = 12_000
    async with pair() as it:
        lane = await it.open()
        stopped = it.lanes.Exchange()
        big = work(1, tokens=steps)
        await stopped.write(lane_pb2.ExchangeRequest(works=[work_to_proto(1, big)]))
        await until(lambda: len(it.stage.lanes) == 2 and it.behind.works)
        slow = it.behind
        for position in range(steps):
            draft = Draft()
            draft.add(1, position, [position])
            slow.sink.on_frame(Frame.of(draft))
            await asyncio.sleep(0)
        lane.submit(2, work(2))
        other = it.stage.lanes[0]
        await until(lambda: other.works)
        other.run()
        await until(lambda: 2 in it.sink.outcomes)
        slow.sink.on_outcome(1, Outcome(FinishReason.LENGTH))
        tokens: list[int] = []
        messages = 0
        ended = False
        while not ended:
            response = await stopped.read()
            messages += 1
            frame = frame_from_proto(response.frame)
            assert frame.work_ids.tolist() in ([1], [])
            tokens += frame.token_ids.tolist()
            ended = bool(response.outcomes)
        stopped.cancel()
        assert tokens == list(range(steps))
        assert messages < steps / 2, f"{messages} messages ran ahead of a reader that had stopped"


async def test_a_work_that_cannot_be_read_breaks_its_lane() -> None:
    async with pair() as it:
        call = it.lanes.Exchange()
        with capture_logs() as logs:
            bad = work_to_proto(1, work(1))
            bad.tier = inference_pb2.TIER_UNSPECIFIED
            await call.write(lane_pb2.ExchangeRequest(works=[bad]))
            async with asyncio.timeout(5):
                with pytest.raises(aio.AioRpcError) as raised:
                    await call.read()
        assert raised.value.code() is StatusCode.UNAVAILABLE
        assert [entry["event"] for entry in logs] == ["lane reader failed"]
        assert it.behind.closed


async def test_a_work_that_cannot_be_written_breaks_its_lane() -> None:
    async with pair() as it:
        lane = await it.open()
        with capture_logs() as logs:
            lane.submit(1, work(1, prompt=0, resumed=[], block_hashes=[-1]))
            await until(lambda: it.sink.events[:2] == ["ready", "broken"])
        assert "stream writer failed" in [entry["event"] for entry in logs]
        await until(lambda: it.sink.events == ["ready", "broken", "ready"])


@pytest.mark.parametrize(
    "said",
    [
        lane_pb2.ExchangeResponse(outcomes=[lane_pb2.Outcome(work_id=1)]),
        lane_pb2.ExchangeResponse(frame=lane_pb2.Frame(work_ids=bytes(8), offsets=bytes(4))),
    ],
    ids=["outcome", "frame"],
)
async def test_what_cannot_be_read_breaks_its_lane(said: lane_pb2.ExchangeResponse) -> None:
    async def strange(stream: Stream) -> None:
        stream.write(said.SerializeToString())
        await stream.ended()

    streams = StreamServer({server.EXCHANGE: strange})
    await streams.start("127.0.0.1:0")
    tasks, channels, sink = Tasks(), Channels(), Log()
    try:
        with capture_logs() as logs:
            RemoteStage(f"127.0.0.1:{streams.port}", channels.connect, Dialer(), tasks).open(sink)
            await until(lambda: sink.events[:2] == ["ready", "broken"])
        assert "stream reader failed" in [entry["event"] for entry in logs]
    finally:
        await tasks.close()
        await channels.close()
        await streams.stop()


@pytest.mark.parametrize("failing", ["in front", "behind"])
async def test_a_bug_in_one_stage_breaks_its_lane_and_nothing_else_of_the_process(failing: str) -> None:
    class Faulty(Log):
        def on_frame(self, frame: Frame) -> None:
            if failing == "in front" and "broken" not in self.events:
                raise ZeroDivisionError
            super().on_frame(frame)

    class FaultyLane(HandLane):
        def submit(self, work_id: int, work: Work) -> None:
            if work.request_id == "request-13":
                raise ZeroDivisionError
            super().submit(work_id, work)

    class FaultyStage(HandStage):
        def new_lane(self, sink: Sink) -> HandLane:
            return FaultyLane(sink, True)

    async with pair(FaultyStage()) as it:
        it.sink = Faulty()
        lane = await it.open(near=True)
        first = it.behind
        with capture_logs() as logs:
            lane.submit(1, work(13 if failing == "behind" else 1))
            if failing == "in front":
                await until(lambda: first.works)
                first.run()
            await until(lambda: it.sink.events == ["ready", "broken", "ready"])
        assert [entry["event"] for entry in logs] == ["lane failed"]
        assert first.closed
        assert not it.sink.outcomes, "what was on the lane has no outcome: it is sent again"
        lane.submit(2, work(2))
        await until(lambda: it.behind is not first and it.behind.works)
        it.behind.run()
        await until(lambda: it.sink.tokens == {2: answer(work(2))})


async def test_a_stage_that_closes_its_lane_and_fails_hears_of_it_no_more() -> None:
    class Closing(Log):
        def on_frame(self, frame: Frame) -> None:
            lane.close()
            raise ZeroDivisionError

    async with pair() as it:
        it.sink = Closing()
        lane = await it.open(near=True)
        lane.submit(1, work(1))
        await until(lambda: it.behind.works)
        with capture_logs() as logs:
            it.behind.run()
            await until(lambda: it.behind.closed)
        assert [entry["event"] for entry in logs] == ["lane failed"]
        await asyncio.sleep(2 * REOPEN_S)
        assert it.sink.events == ["ready"]
        assert len(it.stage.lanes) == 1


async def test_a_stage_is_not_entered_while_it_tells_something() -> None:
    """Whoever is told of an end and sends the next work finds the stage done with the first."""
    inside: list[int] = []

    class Entered(HandStage):
        def new_lane(self, sink: Sink) -> HandLane:
            return Watched(sink, True)

    class Watched(HandLane):
        def end(self, work_id: int, outcome: Outcome | None = None) -> None:
            inside.append(work_id)
            super().end(work_id, outcome)
            inside.remove(work_id)

        def submit(self, work_id: int, work: Work) -> None:
            assert not inside
            super().submit(work_id, work)

    class Busy(Log):
        def on_outcome(self, work_id: int, outcome: Outcome) -> None:
            super().on_outcome(work_id, outcome)
            if work_id < 5:
                lane.submit(work_id + 1, work(work_id + 1))

    async with pair(Entered()) as it:
        it.sink = Busy()
        lane = await it.open(near=True)
        lane.submit(1, work(1))
        for number in range(1, 6):
            await until(lambda: it.behind.works)
            assert list(it.behind.works) == [number]
            it.behind.run()
        await until(lambda: len(it.sink.outcomes) == 5)


async def test_questions_are_answered_over_the_wire() -> None:
    class Full(HandStage):
        async def queues(self) -> list[QueueState]:
            return [QueueState("b", f"pool-{n:03}", Tier.ASYNC, n, 0, 0, 0) for n in reversed(range(250))]

    async with pair(Full()) as it:
        assert [d.reason for d in await it.remote.explain(work(5))] == ["request-5"]
        assert [q.waiting for q in await it.remote.queues()] == list(range(250))
        stub: Any = lane_pb2_grpc.StageServiceStub(it.channels.connect(it.served.endpoint))
        page = await stub.ListQueues(lane_pb2.ListQueuesRequest(page_size=200), timeout=5)
        assert len(page.queues) == 200
        rest = await stub.ListQueues(lane_pb2.ListQueuesRequest(page_token=page.next_page_token), timeout=5)
        assert [queue.pool for queue in rest.queues][-1] == "pool-249"
        with pytest.raises(aio.AioRpcError) as raised:
            await stub.ListQueues(lane_pb2.ListQueuesRequest(page_size=-1, page_token="x"), timeout=5)
        assert raised.value.code() is StatusCode.INVALID_ARGUMENT
