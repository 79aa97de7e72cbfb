"""The downstream face of a stage: serves `headrace.lane.v1` in front of any Stage."""

from collections.abc import Callable, Mapping
from typing import cast

import structlog
from grpc import StatusCode

from headrace.lane.v1 import lane_pb2, lane_pb2_grpc
from libs.errors import Overloaded
from libs.lane.outbox import Outbox
from libs.lane.stage import BreakerState, HasBreakers, Stage
from libs.lane.wire import decision_to_proto, queue_to_proto, work_from_proto
from libs.lane.work import Outcome
from libs.rpc.paging import page
from libs.rpc.server import Service
from libs.streams.call import Ended
from libs.streams.server import Handler
from libs.streams.stream import Stream

log = structlog.get_logger()

MAX_WORKS = 16_384
"""Works in flight on one lane, at most; one more is answered Overloaded. Bounds the lane's memory."""
EXCHANGE = "/headrace.lane.v1.LaneService/Exchange"


class LaneServer:
    """Gives each Exchange stream a lane of the stage behind it.

    The number of open lanes is the number of processes in front, so it needs no bound of its own.
    """

    def __init__(self, stage: Stage, stirred: Callable[[], None]) -> None:
        self._stage = stage
        self._stirred = stirred

    async def exchange(self, stream: Stream) -> None:
        """Works up, frames and outcomes down, until either side ends the stream."""
        stream.begin()
        served = _ServedLane(self._stage, stream, self._stirred)
        try:
            await stream.ended()
            served.say()
        finally:
            served.lane.close()


class _ServedLane:
    """One lane, and the stream that it is served on."""

    def __init__(self, stage: Stage, stream: Stream, stirred: Callable[[], None]) -> None:
        self._stream = stream
        self._stirred = stirred
        self._sink = _CountedSink(Outbox(stream.wake))
        self.lane = stage.open(self._sink)
        stream.listen(self._hear, self.say)

    def say(self) -> None:
        """Writes what has accumulated, as far as there is room."""
        outbox, stream = self._sink.outbox, self._stream
        while stream.room and (message := outbox.take()) is not None:
            stream.write(message.SerializeToString())
        if outbox.broken and not outbox:
            stream.end(Ended(StatusCode.UNAVAILABLE, outbox.broken))

    def _hear(self, data: bytes) -> None:
        sink = self._sink
        try:
            request = lane_pb2.ExchangeRequest.FromString(data)
            for message in request.works:
                if sink.running >= MAX_WORKS:
                    sink.refuse(message.work_id, f"{MAX_WORKS} works are in flight on this lane")
                    continue
                sink.running += 1
                self.lane.submit(message.work_id, work_from_proto(message))
            for work_id in request.cancels:
                self.lane.cancel(work_id)
            self._stirred()
        except Exception:  # whatever it is, the neighbour must see the lane break, not hang
            log.exception("lane reader failed")
            sink.on_broken("the lane's reader failed")


class _CountedSink:
    """The outbox, counting the works in flight."""

    def __init__(self, outbox: Outbox) -> None:
        self.outbox = outbox
        self.running = 0
        self.on_ready = outbox.on_ready
        self.on_frame = outbox.on_frame
        self.on_note = outbox.on_note
        self.on_broken = outbox.on_broken

    def on_outcome(self, work_id: int, outcome: Outcome) -> None:
        self.running -= 1
        self.outbox.on_outcome(work_id, outcome)

    def refuse(self, work_id: int, why: str) -> None:
        self.outbox.on_outcome(work_id, Outcome(error=Overloaded(why, retry_after_s=1.0)))


class StageServicer(lane_pb2_grpc.StageServiceServicer):
    """Answers questions about a stage."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    async def Explain(self, request: lane_pb2.ExplainRequest, context: object) -> lane_pb2.ExplainResponse:
        """The decisions of this stage and of those behind it."""
        decisions = await self._stage.explain(work_from_proto(request.work))
        return lane_pb2.ExplainResponse(decisions=map(decision_to_proto, decisions))

    async def ListQueues(self, request: lane_pb2.ListQueuesRequest, context: object) -> lane_pb2.ListQueuesResponse:
        """What this stage holds."""
        states = sorted(await self._stage.queues(), key=lambda q: (q.pool, q.tier))
        queues, token = page([queue_to_proto(q) for q in states], request.page_size, request.page_token)
        return lane_pb2.ListQueuesResponse(queues=queues, next_page_token=token)

    async def ListBreakers(
        self, request: lane_pb2.ListBreakersRequest, context: object
    ) -> lane_pb2.ListBreakersResponse:
        """The breakers of this stage; none, where it has none."""
        states = await self._stage.breakers() if isinstance(self._stage, HasBreakers) else ()
        return lane_pb2.ListBreakersResponse(breakers=map(_breaker_to_proto, states))


def _breaker_to_proto(state: BreakerState) -> lane_pb2.BreakerState:
    return lane_pb2.BreakerState(
        instance=state.instance,
        pool=state.pool,
        position=cast("lane_pb2.BreakerPosition.ValueType", state.position),
        works=state.works,
        failed=state.failed,
        probes_in_s=state.probes_in_s,
    )


def lane_streams(stage: Stage, stirred: Callable[[], None] = lambda: None) -> Mapping[str, Handler]:
    """The stage's lanes, ready to be served as streams.

    Args:
        stirred: Called when works or cancels have come.
    """
    return {EXCHANGE: LaneServer(stage, stirred).exchange}


def stage_service(stage: Stage) -> Service:
    """What is asked about the stage, ready to be served."""
    return Service(
        "headrace.lane.v1.StageService", lane_pb2_grpc.add_StageServiceServicer_to_server, StageServicer(stage)
    )
