"""The batcher's two faces as plain objects: the lane to a router, and the sink for what an executor says."""

from typing import TYPE_CHECKING

from libs.lane.frame import Frame
from libs.lane.passing import pass_on
from libs.lane.stage import Sink
from libs.lane.work import Note, Outcome, Work
from services.batcher.executors import Executor
from services.batcher.held import Held

if TYPE_CHECKING:
    from services.batcher.stage import Batcher


class BatcherLane:
    """A router's lane; see libs.lane.stage.Lane."""

    ready = True

    def __init__(self, batcher: "Batcher", sink: Sink) -> None:
        self.sink = sink
        self.held: dict[int, Held] = {}
        self._batcher = batcher

    def submit(self, work_id: int, work: Work) -> None:
        self._batcher.arrive(self, work_id, work)

    def cancel(self, work_id: int) -> None:
        if (held := self.held.get(work_id)) is not None:
            self._batcher.cancel(held)

    def close(self) -> None:
        works, self.held = list(self.held.values()), {}
        self._batcher.abandon(works)


class ExecutorSink:
    """What comes down from one executor."""

    def __init__(self, batcher: "Batcher", executor: Executor) -> None:
        self._batcher = batcher
        self._executor = executor

    def on_ready(self) -> None:
        self._batcher.ready(self._executor)

    def on_frame(self, frame: Frame) -> None:
        executor = self._executor
        for held, gap in pass_on(frame, self._batcher.passages, executor).items():
            self._batcher.broke_promise(held, executor, gap)
        if executor.prefilling:  # else every token is one of many, and nobody need know
            self._batcher.came(executor, frame.work_ids.tolist())

    def on_note(self, work_id: int, note: Note) -> None:
        """Executors have none."""

    def on_outcome(self, work_id: int, outcome: Outcome) -> None:
        self._batcher.returned(self._executor, work_id, outcome)

    def on_broken(self, reason: str) -> None:
        self._batcher.lost(self._executor, reason)
