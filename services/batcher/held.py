"""A work that the batcher holds, from its arrival to its outcome."""

from collections.abc import Hashable, Mapping
from enum import Enum, auto
from typing import TYPE_CHECKING, Protocol

from msgspec.structs import replace

from libs.lane.progress import Progress
from libs.lane.stage import Sink
from libs.lane.work import Tier, Work
from libs.telemetry.tracing import Span
from services.batcher.policies.policy import Match

if TYPE_CHECKING:
    from services.batcher.executors import Executor

NOTHING: Mapping[str, Match] = {}


class Place(Enum):
    """Where a held work stands."""

    WAITING = auto()
    """In its pool's queue."""
    ASKING = auto()
    """A slot is taken for it; the KV-cache manager is being asked."""
    RUNNING = auto()
    """On an executor."""
    LEAVING = auto()
    """Still there, but pushed out: back in the queue when the executor says so."""
    ENDED = auto()
    """Its outcome has passed."""


class Front(Hashable, Protocol):
    """The lane that a work came from."""

    @property
    def sink(self) -> Sink:
        """Where its tokens go."""
        ...

    @property
    def held(self) -> "dict[int, Held]":
        """Its works without an outcome, by their number there."""
        ...


class Held:
    """A work, how far it has come, and where it stands. Times are monotonic seconds."""

    __slots__ = (
        "_own_tokens", "aged", "arrived", "attempts", "blocks", "cached_tokens", "cancelled", "charged", "compute",
        "context", "dispatch_span", "down_id", "due", "executor", "given_tokens", "growing", "hold_until", "key",
        "lane", "looked", "looked_at", "matches", "once", "place", "prefill_s", "progress", "pushes", "queue_span",
        "queued_s", "queued_since", "ran", "reservation", "sent_at", "sent_tokens", "told", "total_tokens", "work",
    )  # fmt: skip

    def __init__(self, key: int, lane: Front, down_id: int, work: Work, now: float, span: Span) -> None:
        self.key = key
        """Its number here: in the queue and on the executor's lane."""
        self.lane = lane
        self.down_id = down_id
        self.work = work
        """As it came."""
        self._own_tokens = len(work.prompt)
        self.total_tokens = len(work.prompt) + work.sampling.max_tokens
        """Tokens that prompt and answer can come to."""
        self.progress = Progress(work)
        self.place = Place.WAITING
        self.executor: Executor | None = None
        """Where it has a slot, from ASKING on; kept past its end until the slot is free."""
        self.cancelled = False
        """The caller has changed its mind: it is not dispatched again."""
        self.once = False
        """It is worth one dispatch, and not another one."""
        self.matches = NOTHING
        """What executors remember of its prompt, as far as is known."""
        self.told = NOTHING
        """What executors will have found to remember of it when the manager hears of it: another work computed that."""
        self.looked = False
        """Whether the manager was asked for that."""
        self.looked_at = now
        """When it answered."""
        self.aged = False
        """It was dispatched as an interactive one, since it had waited so long."""
        self.due = now
        """When its first token is due."""
        self.hold_until: float | None = None
        """Up to when it may be held back for a better place; None until it is held the first time."""
        self.blocks = 0
        """Blocks reserved where it runs."""
        self.given_tokens = 0
        """Tokens that these are for."""
        self.growing = False
        """Whether more blocks were asked for."""
        self.compute = 0
        """Tokens that it has to compute before its next token comes; 0 once that has come."""
        self.prefill_s = 0.0
        """How long that was foreseen to take."""
        self.sent_at = now
        """When it was sent to the engine last."""
        self.context = 0
        """Tokens in front of its first token on the executor; 0 before that has come."""
        self.reservation = 0
        """Number of the question that reserved them: a new one for each dispatch, so that a late answer to an
        earlier one is known for what it is."""
        self.charged = 0
        """Answer tokens that its tenant was charged in advance; 0 before its first dispatch."""
        self.ran = False
        """Whether an engine has had it."""
        self.arrived = now
        self.queued_since = now
        self.queued_s = 0.0
        self.attempts = 0
        """Dispatches without a new token."""
        self.pushes = 0
        """How often it was pushed out."""
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
        return self.place is Place.RUNNING or self.place is Place.LEAVING

    @property
    def patient(self) -> bool:
        """Whether it may be pushed out for interactive works."""
        return self.work.tier is Tier.ASYNC and not self.aged

    def missing(self, executor: str) -> int:
        """Tokens that it would have to compute on an executor; the last one in any case."""
        match = self.matches.get(executor) if self.matches else None
        return max(self.prompt_tokens - match.tokens, 1) if match is not None else max(self.prompt_tokens, 1)

    @property
    def remembered(self) -> int:
        """Tokens of its prompt that some executor remembers, as far as is known."""
        return max([match.tokens for match in self.matches.values()], default=0)

    @property
    def remembered_blocks(self) -> int:
        """The same, in blocks."""
        return self.remembered // self.work.block_tokens if self.work.block_tokens else 0

    @property
    def partial(self) -> bool:
        """Whether it has blocks for less than it can come to."""
        return self.blocks > 0 and self.given_tokens < self.total_tokens

    def as_sent(self, traceparent: str) -> Work:
        """The work as it goes to an engine: behind the tokens that it has, below this span."""
        if not self.progress.count and traceparent == self.work.traceparent:  # nearly always, where few are traced
            return self.work
        return replace(self.work, resumed=tuple(self.progress.tokens), traceparent=traceparent)

    @property
    def prompt_tokens(self) -> int:
        """Tokens that an engine takes as its prompt now."""
        return self._own_tokens + (self.progress.count if self.ran else self.sent_tokens)
