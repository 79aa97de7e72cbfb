"""The upstream face of a stage: a Stage that is another process."""

import asyncio
import random
from collections.abc import Callable, Sequence

import structlog
from grpc import aio

from headrace.lane.v1 import lane_pb2, lane_pb2_grpc
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
from libs.tasks import Tasks

log = structlog.get_logger()

REQUEST_TOKENS = 200_000
"""Tokens in one message up the lane, unless a single work has more: below 2 MB."""
ASK_TIMEOUT_S = 2.0
"""For Explain and ListQueues, which only read."""
_BACKOFF_S = (0.05, 1.0)
"""First and longest wait before a broken lane is connected again; grows by half, with jitter."""


class RemoteStage:
    """A stage behind a gRPC endpoint.

    Args:
        connect: Gives the channel to an endpoint.
        endpoint: host:port.
        tasks: Owns the lanes' tasks.
    """

    def __init__(self, connect: Callable[[str], aio.Channel], endpoint: str, tasks: Tasks) -> None:
        self.endpoint = endpoint
        self._stub: lane_pb2_grpc.LaneServiceAsyncStub = lane_pb2_grpc.LaneServiceStub(connect(endpoint))
        self._tasks = tasks

    def open(self, sink: Sink) -> "RemoteLane":
        """Opens a lane that connects by itself, now and after each break."""
        lane = RemoteLane(self._stub, self.endpoint, sink)
        lane.task = self._tasks.spawn(lane.run(), f"lane {self.endpoint}")
        return lane

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

    Works and cancels accumulate while a write is in flight, at most MAX_WORKS of the server.
    """

    def __init__(self, stub: "lane_pb2_grpc.LaneServiceAsyncStub", endpoint: str, sink: Sink) -> None:
        self.endpoint = endpoint
        self.ready = False
        self.task: asyncio.Task[None] | None = None
        self._stub = stub
        self._sink = sink
        self._works: dict[int, Work] = {}
        self._cancels: list[int] = []
        self._wake = asyncio.Event()
        self._closed = False

    def submit(self, work_id: int, work: Work) -> None:
        if not self.ready:
            raise LaneNotReady(self.endpoint)
        self._works[work_id] = work
        self._wake.set()

    def cancel(self, work_id: int) -> None:
        if self.ready:
            self._cancels.append(work_id)
            self._wake.set()

    def close(self) -> None:
        self._closed, self.ready = True, False
        if self.task is not None:
            self.task.cancel()

    async def run(self) -> None:
        """Keeps the stream up until the lane is closed."""
        backoff = _BACKOFF_S[0]
        while not self._closed:
            reason = await self._converse()
            if self.ready:
                backoff = _BACKOFF_S[0]
                self.ready = False
                self._works.clear()
                self._cancels.clear()
                log.info("lane broke", endpoint=self.endpoint, reason=reason)
                self._sink.on_broken(reason)
            await asyncio.sleep(backoff * random.uniform(0.8, 1.2))  # noqa: S311  jitter, not a secret
            backoff = min(backoff * 1.5, _BACKOFF_S[1])

    async def _converse(self) -> str:
        """One stream, from its start to its end; returns why it ended."""
        call = self._stub.Exchange()
        writer: asyncio.Task[None] | None = None
        try:
            await call.initial_metadata()
            if call.done():
                return f"{await call.code()}: {await call.details()}"
            self.ready = True
            log.info("lane ready", endpoint=self.endpoint)
            self._sink.on_ready()
            writer = asyncio.create_task(self._write(call), name=f"lane-writer {self.endpoint}")
            while isinstance(response := await call.read(), lane_pb2.ExchangeResponse):
                for note in response.notes:
                    self._sink.on_note(note.work_id, note_from_proto(note))
                if response.HasField("frame"):
                    self._sink.on_frame(frame_from_proto(response.frame))
                for message in response.outcomes:
                    if not self._closed:
                        self._sink.on_outcome(message.work_id, outcome_from_proto(message))
            return f"{await call.code()}: {await call.details()}"
        except aio.AioRpcError as error:
            return f"{error.code()}: {error.details()}"
        except asyncio.CancelledError:
            # grpc.aio says so, too, when the call was cancelled from this side: by the writer, or with its channel.
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            return "cancelled on this side"
        except Exception as error:  # a message that cannot be read: the lane breaks, it must not fall silent
            log.exception("lane reader failed", endpoint=self.endpoint)
            return f"the lane's reader failed: {type(error).__name__}"
        finally:
            call.cancel()
            if writer is not None:
                writer.cancel()
                await asyncio.gather(writer, return_exceptions=True)

    async def _write(self, call: "aio.StreamStreamCall[lane_pb2.ExchangeRequest, lane_pb2.ExchangeResponse]") -> None:
        while True:
            while not (self._works or self._cancels):
                self._wake.clear()
                await self._wake.wait()
            try:
                await call.write(self._take())
            except (aio.AioRpcError, asyncio.InvalidStateError):
                return  # the reader sees the same end and says why
            except Exception:  # a work that cannot be written: its lane breaks, it must not fall silent
                log.exception("lane writer failed", endpoint=self.endpoint)
                call.cancel()
                return

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
