"""A lane as the stage that serves it sees it."""

from libs.errors import Overloaded
from libs.lane.stage import Sink, Stage
from libs.lane.work import Outcome, Work

MAX_WORKS = 16_384
"""Works in flight on one lane, at most; one more is answered Overloaded. Bounds the lane's memory."""


class ServedLane:
    """A lane of the stage, with its bound on works in flight; between the stage and what waits to go down.

    Args:
        sink: Gets what comes down.
    """

    def __init__(self, stage: Stage, sink: Sink) -> None:
        self._sink = sink
        self._running = 0
        self.on_ready = sink.on_ready
        self.on_frame = sink.on_frame
        self.on_note = sink.on_note
        self.on_broken = sink.on_broken
        self._lane = stage.open(self)
        self.cancel = self._lane.cancel
        self.close = self._lane.close

    def submit(self, work_id: int, work: Work) -> None:
        """See libs.lane.stage.Lane."""
        if self._running >= MAX_WORKS:
            why = f"{MAX_WORKS} works are in flight on this lane"
            self._sink.on_outcome(work_id, Outcome(error=Overloaded(why, retry_after_s=1.0)))
            return
        self._running += 1
        self._lane.submit(work_id, work)

    def on_outcome(self, work_id: int, outcome: Outcome) -> None:
        self._running -= 1
        self._sink.on_outcome(work_id, outcome)
