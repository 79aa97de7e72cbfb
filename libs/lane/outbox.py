"""What waits to go down a lane: the end of a lane that writes frames.

A writer never waits to fill a frame: what arrives in one turn of the loop, or while the stream takes no more,
accumulates here and goes out whole. So a token leaves at once under light load, and under heavy load frames
grow and the cost per token falls.
"""

from collections import deque
from collections.abc import Callable

from libs.lane.frame import Frame
from libs.lane.joined import joined
from libs.lane.work import Note, Outcome

FRAME_TOKENS = 80_000
"""Tokens in one message, at most: below 2 MB, even if each is an entry of its own with a log-probability."""
OUTCOME_TOKENS = 150
"""What an outcome counts as: an error with many details has 3 kB."""
NOTE_TOKENS = 15
"""What a note counts as."""


class Outbox:
    """A Sink that accumulates frames and outcomes until `take`.

    Bounded by its lane: works in flight × their `max_tokens`. A slow reader makes it grow to that and no
    further, and harms nobody else.

    Args:
        wake: Called when there is something to take, or nothing more will come.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._messages: deque[Message] = deque()
        self._wake = wake
        self.broken = ""
        """Why nothing more will come; empty while more may."""

    def on_ready(self) -> None:
        """Nothing to tell the other side: the stream stands."""

    def on_frame(self, frame: Frame) -> None:
        if frame:
            size = len(frame.token_ids)
            message = self._room(size)
            message.frames.append(frame)
            message.size += size
            self._wake()

    def on_note(self, work_id: int, note: Note) -> None:
        if note.restart and self._messages and self._messages[-1].frames:
            # Notes come first in their message: in this one it would make the new answer of the old one's tokens.
            self._messages.append(Message())
        message = self._room(NOTE_TOKENS)
        message.notes.append((work_id, note))
        message.size += NOTE_TOKENS
        if note.waiting or note.restart:
            self._wake()
        # else it goes with what comes next: a pool matters once there are tokens, and each work has such a note.

    def on_outcome(self, work_id: int, outcome: Outcome) -> None:
        message = self._room(OUTCOME_TOKENS)
        message.outcomes.append((work_id, outcome))
        message.size += OUTCOME_TOKENS
        self._wake()

    def on_broken(self, reason: str) -> None:
        self.broken = reason
        self._wake()

    def __bool__(self) -> bool:
        return bool(self._messages)

    def take(self) -> "Message | None":
        """The oldest message; everything that accumulated, unless that is too large for one. None when there is
        nothing."""
        return self._messages.popleft() if self._messages else None

    def _room(self, size: int) -> "Message":
        if self._messages:
            last = self._messages[-1]
            if last.size + size <= FRAME_TOKENS:
                return last
        self._messages.append(Message())
        return self._messages[-1]


class Message:
    """What goes down at once: first the notes, then the frame, then the outcomes."""

    __slots__ = ("frames", "notes", "outcomes", "size")

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        """That accumulated: nobody changes them."""
        self.outcomes: list[tuple[int, Outcome]] = []
        self.notes: list[tuple[int, Note]] = []
        self.size = 0
        """In tokens."""

    @property
    def frame(self) -> Frame | None:
        """All frames as one."""
        return joined(self.frames) if self.frames else None
