"""The upstream face of a stage: a Stage that is another process."""

from collections.abc import Callable, Sequence

from grpc import aio

from headrace.lane.v1 import lane_pb2, lane_pb2_grpc
from libs.lane.server import EXCHANGE
from libs.lane.stage import LaneNotReady, Sink
from libs.lane.wire import (
    decision_from_proto,
    frame_from_proto,
    note_from_proto,
    outcome_from_proto,
    queue_from_proto,
    work_to_proto,
)
from libs.lane.work import Decision, QueueState, Work
from libs.streams.client import Dialer
from libs.streams.standing import StandingStream
from libs.tasks import Tasks

REQUEST_TOKENS = 200_000
"""Tokens in one message up the lane, unless a single work has more: below 2 MB."""
ASK_TIMEOUT_S = 2.0
"""For Explain and ListQueues, which only read."""


class RemoteStage:
    """A stage in another process.

    Args:
        endpoint: host:port.
        connect: Gives the channel to an endpoint, for questions.
        dialer: Opens the lanes.
        tasks: Owns the lanes' tasks.
    """

    def __init__(self, endpoint: str, connect: Callable[[str], aio.Channel], dialer: Dialer, tasks: Tasks) -> None:
        self.endpoint = endpoint
        self._stub: lane_pb2_grpc.StageServiceAsyncStub = lane_pb2_grpc.StageServiceStub(connect(endpoint))
        self._dialer = dialer
        self._tasks = tasks

    def open(self, sink: Sink) -> "RemoteLane":
        """Opens a lane that connects by itself, now and after each break."""
        return RemoteLane(self.endpoint, sink, self._dialer, self._tasks)

    async def explain(self, work: Work) -> Sequence[Decision]:
        """Asks the other process. Raises grpc.aio.AioRpcError."""
        request = lane_pb2.ExplainRequest(work=work_to_proto(0, work))
        response = await self._stub.Explain(request, timeout=ASK_TIMEOUT_S)
        return [decision_from_proto(decision) for decision in response.decisions]

    async def queues(self) -> Sequence[QueueState]:
        """Asks the other process. Raises grpc.aio.AioRpcError."""
        request = lane_pb2.ListQueuesRequest(page_size=1000)
        response = await self._stub.ListQueues(request, timeout=ASK_TIMEOUT_S)
        return [queue_from_proto(queue) for queue in response.queues]


class RemoteLane:
    """A lane over an Exchange stream; see libs.lane.stage.Lane.

    Works and cancels accumulate while the stream takes no more, at most MAX_WORKS of the server.
    """

    def __init__(self, endpoint: str, sink: Sink, dialer: Dialer, tasks: Tasks) -> None:
        self.endpoint = endpoint
        self.ready = False
        self._sink = sink
        self._works: dict[int, Work] = {}
        self._cancels: list[int] = []
        self._closed = False
        self._stream = StandingStream(f"lane {endpoint}", self, EXCHANGE, dialer, lambda: endpoint, tasks, follow=False)

    def submit(self, work_id: int, work: Work) -> None:
        if not self.ready:
            raise LaneNotReady(self.endpoint)
        self._works[work_id] = work
        self._stream.wake()

    def cancel(self, work_id: int) -> None:
        if self.ready:
            self._cancels.append(work_id)
            self._stream.wake()

    def close(self) -> None:
        self._closed, self.ready = True, False
        self._stream.close()

    def on_up(self) -> None:
        self.ready = True
        self._sink.on_ready()

    def on_message(self, data: bytes) -> None:
        if self._closed:
            return
        response = lane_pb2.ExchangeResponse.FromString(data)
        for note in response.notes:
            self._sink.on_note(note.work_id, note_from_proto(note))
        if response.HasField("frame"):
            self._sink.on_frame(frame_from_proto(response.frame))
        for message in response.outcomes:
            if not self._closed:
                self._sink.on_outcome(message.work_id, outcome_from_proto(message))

    def on_down(self, reason: str) -> None:
        if self._closed:
            return
        self.ready = False
        self._works.clear()
        self._cancels.clear()
        self._sink.on_broken(reason)

    def take(self) -> bytes | None:
        if not (self._works or self._cancels):
            return None
        return self._take().SerializeToString()

    def _take(self) -> lane_pb2.ExchangeRequest:
        request = lane_pb2.ExchangeRequest()
        tokens = 0
        for work_id in list(self._works):
            work = self._works[work_id]
            tokens += len(work.prompt) + len(work.resumed)
            if request.works and tokens > REQUEST_TOKENS:
                break
            request.works.append(work_to_proto(work_id, work))
            del self._works[work_id]
        # A cancel never overtakes its work: those whose work has to wait for the next message wait too.
        request.cancels.extend(i for i in self._cancels if i not in self._works)
        self._cancels = [i for i in self._cancels if i in self._works]
        return request
