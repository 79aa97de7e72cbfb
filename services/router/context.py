"""What the journeys of one router share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from libs.clock import Clock
from libs.lane.deadlines import Deadlines
from libs.lane.forwarder import Forwarder
from libs.telemetry.tracing import Tracing
from services.router.breaker import Breakers
from services.router.cascade import judge
from services.router.doubt import Judge
from services.router.hedge import Hedging
from services.router.observe import Observer
from services.router.route import Catalogue
from services.router.shadow import Shadows

MOST_PARKED = 1024
"""Works of one router that wait for a model to come back, at most; a further one goes on to its next fallback."""


class Intents(Protocol):
    """Says what a text is about."""

    def ask(self, text: str, done: Callable[[str], None]) -> None:
        """Calls `done` with the intent, "" when it cannot be told; at once if it must."""
        ...

    async def of(self, text: str) -> str:
        """The same, for who can wait."""
        ...


class Texts(Protocol):
    """Tokens as text, of the models of cascades."""

    def text(self, model: str, tokens: Sequence[int]) -> str | None:
        """None while the model's tokenizer is not there."""
        ...


class NoIntents:
    """Where nothing was trained: every intent is unknown."""

    def ask(self, text: str, done: Callable[[str], None]) -> None:
        """Says so."""
        done("")

    async def of(self, text: str) -> str:
        """Says so."""
        return ""


class NoTexts:
    """Where there are no tokenizers."""

    def text(self, model: str, tokens: Sequence[int]) -> str | None:
        """Says so."""
        return None


class Alarm:
    """Something that a journey wants to be called for at a time."""

    __slots__ = ("live", "ring")

    def __init__(self, ring: Callable[[], None]) -> None:
        self.ring = ring
        self.live = True
        """Whether it is still wanted."""


class Parked(Protocol):
    """A journey without an attempt, that waits for a model to come back."""

    def look(self, now: float) -> None:
        """Sees whether one is there, or the wait is over."""
        ...


@dataclass(slots=True)
class Context:
    """State and connections of one router."""

    forwarder: Forwarder
    catalogue: Callable[[], Catalogue]
    tracing: Tracing
    observer: Observer
    clock: Clock
    breakers: Breakers
    intents: Intents = field(default_factory=NoIntents)
    texts: Texts = field(default_factory=NoTexts)
    judge: Judge = judge
    shadows: Shadows = field(default_factory=Shadows)
    hedges: dict[str, Hedging] = field(default_factory=dict)
    """By alias; forgotten with its route."""
    alarms: Deadlines[Alarm] = field(default_factory=Deadlines)
    """In monotonic seconds; at most two of each work in flight."""
    parked: dict[Parked, None] = field(default_factory=dict)
    """At most MOST_PARKED."""
    draining: bool = False
    stirred: Callable[[], None] = lambda: None
    """Called when there is something to look after soon: an alarm, or a parked work."""

    def hedging(self, alias: str) -> Hedging:
        """Of a route."""
        if (hedging := self.hedges.get(alias)) is None:
            hedging = self.hedges[alias] = Hedging()
        return hedging

    def alarm(self, when: float, ring: Callable[[], None]) -> Alarm:
        """Calls `ring` at `when`, in monotonic seconds, unless it is not wanted any more by then."""
        alarm = Alarm(ring)
        self.alarms.add(when, alarm)
        self.stirred()
        return alarm
