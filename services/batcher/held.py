"""A work that the batcher holds, from its arrival to its outcome."""

from enum import Enum, auto
from typing import TYPE_CHECKING

from libs.lane.progress import Progress
from libs.lane.work import Work
from libs.telemetry.tracing import Span

if TYPE_CHECKING:
    from services.batcher.lanes import BatcherLane
    from services.batcher.pool import Executor


class Place(Enum):
    """Where a held work stands."""

    WAITING = auto()
    """In its pool's queue."""
    ASKING = auto()
    """A slot is taken for it; the KV-cache manager is being asked."""
    RUNNING = auto()
    """On an executor."""
    ENDED = auto()
    """Its outcome has passed."""


class Held:
    """A work, how far it has come, and where it stands. Times are monotonic seconds."""

    __slots__ = (
        "arrived", "attempts", "blocks", "cached_tokens", "cancelled", "dispatch_span", "down_id", "executor", "key",
        "lane", "place", "progress", "queue_span", "queued_s", "queued_since", "reservation", "sent_tokens",
    )  # fmt: skip

    def __init__(self, key: int, lane: "BatcherLane", down_id: int, work: Work, now: float, span: Span) -> None:
        self.key = key
        """Its number here: in the queue and on the executor's lane."""
        self.lane = lane
        self.down_id = down_id
        self.progress = Progress(work)
        self.place = Place.WAITING
        self.executor: Executor | None = None
        """Where it has a slot, from ASKING on; kept past its end until the slot is free."""
        self.cancelled = False
        """The caller has changed its mind: it is not dispatched again."""
        self.blocks = 0
        """Blocks reserved there."""
        self.reservation = 0
        """Number of the question that reserved them: a new one for each dispatch, so that a late answer to an
        earlier one is known for what it is."""
        self.arrived = now
        self.queued_since = now
        self.queued_s = 0.0
        self.attempts = 0
        """Dispatches without a new token."""
        self.sent_tokens = len(work.resumed)
        self.cached_tokens: int | None = None
        """Of the first dispatch: later ones find their own prefix."""
        self.queue_span = span
        self.dispatch_span: Span | None = None

    @property
    def live(self) -> bool:
        """Whether its outcome is still awaited."""
        return self.place is not Place.ENDED

    @property
    def streaming(self) -> bool:
        """Whether its tokens are still wanted."""
        return self.place is Place.RUNNING

    @property
    def work(self) -> Work:
        """As it came."""
        return self.progress.work

    @property
    def total_tokens(self) -> int:
        """Tokens that prompt and answer can come to."""
        return len(self.work.prompt) + self.work.sampling.max_tokens
