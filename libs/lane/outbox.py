"""What waits to go down a lane: the end of a lane that writes frames.

A writer never waits to fill a frame: while one write is in flight, what arrives accumulates here and goes
out whole when that write returns. So a token leaves at once under light load, and under heavy load frames
grow and the cost per token falls.
"""

import asyncio
from collections import deque

from headrace.lane.v1 import lane_pb2
from libs.lane.wire import frame_to_proto, outcome_to_proto
from libs.lane.work import Frame, Outcome

FRAME_TOKENS = 200_000
"""Tokens and outcomes in one message, at most: below 2 MB however large the token ids are."""


class Outbox:
    """A Sink that accumulates frames and outcomes until `take`.

    Bounded by its lane: works in flight × their `max_tokens`. A slow reader makes it grow to that and no
    further, and harms nobody else.
    """

    def __init__(self) -> None:
        self._messages: deque[tuple[Frame, list[tuple[int, Outcome]]]] = deque()
        self._wake = asyncio.Event()
        self.broken = ""
        """Why nothing more will come; empty while more may."""

    def on_ready(self) -> None:
        """Nothing to tell the other side: the stream stands."""

    def on_frame(self, frame: Frame) -> None:
        if not frame.work_ids:
            return
        pending, _ = self._room(len(frame.token_ids))
        if not pending.work_ids:
            pending.work_ids[:] = frame.work_ids
            pending.offsets[:] = frame.offsets
            pending.counts[:] = frame.counts
            pending.token_ids[:] = frame.token_ids
            pending.log_probs[:] = frame.log_probs
        else:
            append_frame(pending, frame)
        self._wake.set()

    def on_outcome(self, work_id: int, outcome: Outcome) -> None:
        _, outcomes = self._room(100)
        outcomes.append((work_id, outcome))
        self._wake.set()

    def on_broken(self, reason: str) -> None:
        self.broken = reason
        self._wake.set()

    async def wait(self) -> bool:
        """Waits until there is something to take; False when there is not and never will be."""
        while not self._messages:
            if self.broken:
                return False
            self._wake.clear()
            await self._wake.wait()
        return True

    def take(self) -> lane_pb2.ExchangeResponse:
        """The oldest message; everything that accumulated, unless that is too large for one."""
        frame, outcomes = self._messages.popleft()
        return lane_pb2.ExchangeResponse(
            frame=frame_to_proto(frame) if frame.work_ids else None,
            outcomes=[outcome_to_proto(work_id, outcome) for work_id, outcome in outcomes],
        )

    def _room(self, size: int) -> tuple[Frame, list[tuple[int, Outcome]]]:
        if self._messages:
            frame, outcomes = self._messages[-1]
            if len(frame.token_ids) + 100 * len(outcomes) + size <= FRAME_TOKENS:
                return frame, outcomes
        self._messages.append((Frame(), []))
        return self._messages[-1]


def append_frame(target: Frame, frame: Frame) -> None:
    """Appends all entries of one frame to another."""
    if frame.log_probs or target.log_probs:
        nan = float("nan")
        if not target.log_probs:
            target.log_probs.extend([nan] * len(target.token_ids))
        target.log_probs.extend(frame.log_probs or [nan] * len(frame.token_ids))
    target.work_ids += frame.work_ids
    target.offsets += frame.offsets
    target.counts += frame.counts
    target.token_ids += frame.token_ids
