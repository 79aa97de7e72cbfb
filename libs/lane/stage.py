"""The interface between two neighbouring stages, the same in one process and over gRPC.

A stage in front opens a Lane to the stage behind and gives it a Sink. Works and cancels go up the lane,
frames and outcomes come down into the sink. All calls are synchronous and never block: what has to wait
accumulates behind them, within stated bounds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from libs.lane.frame import Frame
from libs.lane.work import Decision, Note, Outcome, QueueState, Work


class Sink(Protocol):
    """Receives what comes down a lane. Its methods must not raise."""

    def on_ready(self) -> None:
        """The lane carries works now: after it was opened, and again after each break."""
        ...

    def on_frame(self, frame: Frame) -> None:
        """New tokens."""
        ...

    def on_note(self, work_id: int, note: Note) -> None:
        """Something about a work that goes on."""
        ...

    def on_outcome(self, work_id: int, outcome: Outcome) -> None:
        """A work ended; all its tokens have come. The id is free again."""
        ...

    def on_broken(self, reason: str) -> None:
        """The lane broke: no work on it will get an outcome. Their owner sends them again, elsewhere or
        after `on_ready`, with the tokens so far as `resumed`."""
        ...


class Lane(Protocol):
    """Carries works to the stage behind."""

    @property
    def ready(self) -> bool:
        """Whether `submit` may be called."""
        ...

    def submit(self, work_id: int, work: Work) -> None:
        """Starts a work under an id that no running work of this lane has.

        Raises LaneNotReady when the lane is not ready.
        """
        ...

    def cancel(self, work_id: int) -> None:
        """Asks for a work to stop. It still gets an outcome. Unknown ids are ignored."""
        ...

    def close(self) -> None:
        """Cancels every work and ends the lane; nothing more comes down. Idempotent."""
        ...


class Stage(Protocol):
    """Something that runs works: the next process, or this one."""

    def open(self, sink: Sink) -> Lane:
        """Opens a lane. Calls `sink.on_ready` once it carries works, at the earliest before returning."""
        ...

    async def explain(self, work: Work) -> Sequence[Decision]:
        """What this stage, and those behind it, would decide now. Runs nothing."""
        ...

    async def queues(self) -> Sequence[QueueState]:
        """What this stage holds."""
        ...


@dataclass(frozen=True, slots=True)
class BreakerState:
    """One breaker, for an operator; the message is headrace.lane.v1.BreakerState."""

    instance: str
    pool: str
    position: int
    """1 closed, 2 open, 3 half-open."""
    works: int
    """That ended within the window."""
    failed: int
    """Of these, those that failed."""
    probes_in_s: float
    """Until it lets probes through; 0 unless it is open."""


@runtime_checkable
class HasBreakers(Protocol):
    """What a Stage with breakers has beyond a Stage. Those without any need not say so."""

    async def breakers(self) -> Sequence[BreakerState]:
        """The breakers of this stage, by pool."""
        ...


class LaneNotReady(Exception):
    """A work was submitted to a lane that is not connected."""
