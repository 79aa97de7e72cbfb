"""What a StreamRunner reads: one stream of pieces per work. Pure."""

from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple, Protocol

from libs.lane.work import FinishReason, Work


class Piece(NamedTuple):
    """What a stream brought at once. An empty one says that the work has started.

    A tuple, for one is made per token: a frozen dataclass takes three times as long.
    """

    tokens: Sequence[int] = ()
    log_probs: Sequence[float] = ()
    """Empty, or one per token."""
    cached_tokens: int | None = None
    """Prompt tokens that were found in a cache; None while that is not known."""
    finish: FinishReason | None = None
    """Set in the last piece: nothing comes behind it."""


class Source(Protocol):
    """Opens streams at an engine."""

    def open(self, work_id: int, work: Work) -> AsyncIterator[Piece]:
        """Starts a work; best an async generator.

        The pieces are new tokens: none of those that were resumed. Raises, while it is read, a HeadraceError:
        StageUnavailable where the work may be tried elsewhere. Closing it cancels the work at the engine:
        where the work was cancelled or ran out of time, CancelledError comes out of an await in it; where the
        answer is complete, because it has `max_tokens`, GeneratorExit comes out of a yield. It then has
        `CLOSE_S` seconds to clean up, and keeps its slot as long.
        """
        ...


CLOSE_S = 5.0
"""Seconds that a stream may take to end after its work has; then it is cancelled (again)."""
