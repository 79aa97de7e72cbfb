"""A stage in this process as a neighbor: works, frames and outcomes go over as they are; nothing is written or read.

What goes over waits for the end of the loop's turn, as on a stream. So a stage is never entered while it is in the
middle of telling something to the one in front, and what comes in one turn goes through all stages together.
"""

import asyncio
from collections.abc import Callable, Sequence

import structlog

from libs import tick
from libs.lane.outbox import Outbox
from libs.lane.served import ServedLane
from libs.lane.stage import LaneNotReady, Sink, Stage
from libs.lane.work import Decision, QueueState, Work
from libs.tick import TELL

log = structlog.get_logger()

REOPEN_S = 0.05
"""After a lane broke, by a bug in either stage."""


class NearStage:
    """A stage that this process serves.

    Args:
        endpoint: host:port at which others reach it.
        stirred: Called when works or cancels have come.
    """

    def __init__(self, endpoint: str, stage: Stage, stirred: Callable[[], None]) -> None:
        self.endpoint = endpoint
        self.stage = stage
        self.stirred = stirred

    def open(self, sink: Sink) -> "NearLane":
        """A lane that is ready at once."""
        return NearLane(self, sink)

    async def explain(self, work: Work) -> Sequence[Decision]:
        """See libs.lane.stage.Stage."""
        return await self.stage.explain(work)

    async def queues(self) -> Sequence[QueueState]:
        """See libs.lane.stage.Stage."""
        return await self.stage.queues()


class NearLane:
    """A lane without a stream; see libs.lane.stage.Lane.

    A bug in one stage does not become one in the other: the lane breaks, as it would between two processes, and is
    opened anew. Bounded as a RemoteLane is.
    """

    def __init__(self, near: NearStage, sink: Sink) -> None:
        self._near = near
        self._sink = sink
        self._works: dict[int, Work] = {}
        self._cancels: list[int] = []
        self._due = self._closed = False
        self._tick = tick.of_loop()
        self._open()

    def _open(self) -> None:
        self._outbox = Outbox(self._wake)
        self._behind = ServedLane(self._near.stage, self._outbox)
        self.ready = True
        self._sink.on_ready()

    def submit(self, work_id: int, work: Work) -> None:
        if not self.ready:
            raise LaneNotReady(self._near.endpoint)
        self._works[work_id] = work
        self._wake()

    def cancel(self, work_id: int) -> None:
        if self.ready:
            self._cancels.append(work_id)
            self._wake()

    def close(self) -> None:
        if not self._closed:
            self._closed, self.ready = True, False
            self._tick.add(TELL, self._behind.close)

    def _wake(self) -> None:
        if not self._due:
            self._due = True
            self._tick.add(TELL, self._deliver)

    def _deliver(self) -> None:
        self._due = False
        try:
            if self._works or self._cancels:
                self._up()
            self._down()
        except Exception as error:
            log.exception("lane failed", endpoint=self._near.endpoint)
            self._break(f"a stage failed: {type(error).__name__}")

    def _up(self) -> None:
        works, self._works = self._works, {}
        cancels, self._cancels = self._cancels, []
        if self.ready:
            for work_id, work in works.items():
                self._behind.submit(work_id, work)
            for work_id in cancels:
                self._behind.cancel(work_id)
            self._near.stirred()

    def _down(self) -> None:
        sink = self._sink
        while self.ready and (message := self._outbox.take()) is not None:
            for work_id, note in message.notes:
                sink.on_note(work_id, note)
            if (frame := message.frame) is not None:
                sink.on_frame(frame)
            for work_id, outcome in message.outcomes:
                if self.ready:
                    sink.on_outcome(work_id, outcome)
        if self.ready and self._outbox.broken:
            self._break(self._outbox.broken)

    def _break(self, reason: str) -> None:
        self.ready = False
        self._works.clear()
        self._cancels.clear()
        self._behind.close()
        if not self._closed:  # else whoever failed has closed it before, and hears of it no more
            self._sink.on_broken(reason)
            asyncio.get_running_loop().call_later(REOPEN_S, self._reopen)

    def _reopen(self) -> None:
        if not self._closed:
            self._open()
