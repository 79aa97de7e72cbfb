"""What the journeys of one router share."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
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

    __slots__ = ("_number", "_ringing", "ring")

    def __init__(self, ring: Callable[[], None], number: int, ringing: "dict[int, Alarm]") -> None:
        self.ring = ring
        self._number = number
        self._ringing = ringing
        ringing[number] = self

    def stop(self) -> None:
        """It is not wanted any more."""
        self._ringing.pop(self._number, None)


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
    ringing: dict[int, Alarm] = field(default_factory=dict)
    """Alarms that are wanted, by number; at most two of each work in flight."""
    alarms: Deadlines[Alarm] = field(init=False)
    """When they ring, in monotonic seconds."""
    parked: dict[Parked, None] = field(default_factory=dict)
    """At most MOST_PARKED."""
    draining: bool = False
    stirred: Callable[[], None] = lambda: None
    """Called when there is something to look after soon: an alarm, or a parked work."""

    _numbers: Iterator[int] = field(default_factory=count)

    def __post_init__(self) -> None:
        self.alarms = Deadlines(self.ringing)

    def hedging(self, alias: str) -> Hedging:
        """Of a route."""
        if (hedging := self.hedges.get(alias)) is None:
            hedging = self.hedges[alias] = Hedging()
        return hedging

    def alarm(self, when: float, ring: Callable[[], None]) -> Alarm:
        """Calls `ring` at `when`, in monotonic seconds, unless it is not wanted any more by then."""
        number = next(self._numbers)
        self.alarms.add(when, number)
        alarm = Alarm(ring, number, self.ringing)
        self.stirred()
        return alarm
