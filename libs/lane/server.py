"""The downstream face of a stage: serves `headrace.lane.v1` in front of any Stage."""

from collections.abc import Callable, Mapping
from typing import cast

import structlog
from grpc import StatusCode

from headrace.lane.v1 import lane_pb2, lane_pb2_grpc
from libs.lane.outbox import Outbox
from libs.lane.served import ServedLane
from libs.lane.stage import BreakerState, HasBreakers, Stage
from libs.lane.wire import decision_to_proto, message_to_proto, queue_to_proto, work_from_proto
from libs.rpc.paging import page
from libs.rpc.server import Service
from libs.streams.call import Ended
from libs.streams.server import Handler
from libs.streams.stream import Stream

log = structlog.get_logger()

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
        served = _Exchange(self._stage, stream, self._stirred)
        try:
            await stream.ended()
            served.say()
        finally:
            served.lane.close()


class _Exchange:
    """One lane, and the stream that it is served on."""

    def __init__(self, stage: Stage, stream: Stream, stirred: Callable[[], None]) -> None:
        self._stream = stream
        self._stirred = stirred
        self._outbox = Outbox(stream.wake)
        self.lane = ServedLane(stage, self._outbox)
        stream.listen(self._hear, self.say)

    def say(self) -> None:
        """Writes what has accumulated, as far as there is room."""
        outbox, stream = self._outbox, self._stream
        while stream.room and (message := outbox.take()) is not None:
            stream.write(message_to_proto(message).SerializeToString())
        if outbox.broken and not outbox:
            stream.end(Ended(StatusCode.UNAVAILABLE, outbox.broken))

    def _hear(self, data: bytes) -> None:
        try:
            request = lane_pb2.ExchangeRequest.FromString(data)
            for message in request.works:
                self.lane.submit(message.work_id, work_from_proto(message))
            for work_id in request.cancels:
                self.lane.cancel(work_id)
            self._stirred()
        except Exception:  # whatever it is, the neighbour must see the lane break, not hang
            log.exception("lane reader failed")
            self._outbox.on_broken("the lane's reader failed")


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
