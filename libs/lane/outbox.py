"""What waits to go down a lane: the end of a lane that writes frames.

A writer never waits to fill a frame: what arrives in one turn of the loop, or while the stream takes no more,
accumulates here and goes out whole. So a token leaves at once under light load, and under heavy load frames
grow and the cost per token falls.
"""

from collections import deque
from collections.abc import Callable

from headrace.lane.v1 import lane_pb2
from libs.lane.wire import frame_to_proto, note_to_proto, outcome_to_proto
from libs.lane.work import NAN, Frame, Note, Outcome

FRAME_TOKENS = 200_000
"""Tokens in one message, at most: below 2 MB however large the token ids are."""
OUTCOME_TOKENS = 300
"""What an outcome counts as: an error with many details has 3 kB."""
NOTE_TOKENS = 30
"""What a note counts as."""


class Outbox:
    """A Sink that accumulates frames and outcomes until `take`.

    Bounded by its lane: works in flight × their `max_tokens`. A slow reader makes it grow to that and no
    further, and harms nobody else.

    Args:
        wake: Called when there is something to take, or nothing more will come.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._messages: deque[_Message] = deque()
        self._wake = wake
        self.broken = ""
        """Why nothing more will come; empty while more may."""

    def on_ready(self) -> None:
        """Nothing to tell the other side: the stream stands."""

    def on_frame(self, frame: Frame) -> None:
        if frame.work_ids:
            message = self._room(len(frame.token_ids))
            append_frame(message.frame, frame)
            message.frames += 1
            self._wake()

    def on_note(self, work_id: int, note: Note) -> None:
        if note.restart and self._messages and self._messages[-1].frame.work_ids:
            # Notes come first in their message: in this one it would make the new answer of the old one's tokens.
            self._messages.append(_Message())
        self._room(NOTE_TOKENS).notes.append((work_id, note))
        if note.waiting or note.restart:
            self._wake()
        # else it goes with what comes next: a pool matters once there are tokens, and each work has such a note.

    def on_outcome(self, work_id: int, outcome: Outcome) -> None:
        self._room(OUTCOME_TOKENS).outcomes.append((work_id, outcome))
        self._wake()

    def on_broken(self, reason: str) -> None:
        self.broken = reason
        self._wake()

    def __bool__(self) -> bool:
        return bool(self._messages)

    def take(self) -> lane_pb2.ExchangeResponse | None:
        """The oldest message; everything that accumulated, unless that is too large for one. None when there is
        nothing."""
        if not self._messages:
            return None
        message = self._messages.popleft()
        frame = message.frame if message.frames < 2 else joined(message.frame)
        return lane_pb2.ExchangeResponse(
            frame=frame_to_proto(frame) if frame.work_ids else None,
            outcomes=[outcome_to_proto(work_id, outcome) for work_id, outcome in message.outcomes],
            notes=[note_to_proto(work_id, note) for work_id, note in message.notes],
        )

    def _room(self, size: int) -> "_Message":
        if self._messages:
            last = self._messages[-1]
            if last.size + size <= FRAME_TOKENS:
                return last
        self._messages.append(_Message())
        return self._messages[-1]


class _Message:
    """What will be one message."""

    __slots__ = ("frame", "frames", "notes", "outcomes")

    def __init__(self) -> None:
        self.frame = Frame()
        self.frames = 0
        """Frames that accumulated in `frame`."""
        self.outcomes: list[tuple[int, Outcome]] = []
        self.notes: list[tuple[int, Note]] = []

    @property
    def size(self) -> int:
        """In tokens."""
        return len(self.frame.token_ids) + OUTCOME_TOKENS * len(self.outcomes) + NOTE_TOKENS * len(self.notes)


def append_frame(target: Frame, frame: Frame) -> None:
    """Appends all entries of one frame to another."""
    if frame.log_probs or target.log_probs:
        if not target.log_probs:
            target.log_probs += [NAN] * len(target.token_ids)
        target.log_probs += frame.log_probs or [NAN] * len(frame.token_ids)
    target.work_ids += frame.work_ids
    target.offsets += frame.offsets
    target.counts += frame.counts
    target.token_ids += frame.token_ids


def joined(frame: Frame) -> Frame:
    """The same tokens with one entry per work.

    Every stage behind pays per entry, so several steps of one work are joined here, once, before they leave.
    """
    tokens, log_probs = frame.token_ids, frame.log_probs
    merged: dict[int, tuple[int, list[int], list[float]]] = {}
    rest = Frame()
    end = 0
    for work_id, offset, count in zip(frame.work_ids, frame.offsets, frame.counts, strict=True):
        start, end = end, end + count
        known = merged.get(work_id)
        if known is None:
            merged[work_id] = offset, tokens[start:end], log_probs[start:end]
        elif known[0] + len(known[1]) == offset:
            known[1].extend(tokens[start:end])
            known[2].extend(log_probs[start:end])
        else:  # a repeat or a gap: the receiver sees to it
            rest.add(work_id, offset, tokens[start:end], log_probs[start:end])
    result = Frame()
    for work_id, (offset, its_tokens, its_log_probs) in merged.items():
        result.add(work_id, offset, its_tokens, its_log_probs)
    append_frame(result, rest)
    return result
