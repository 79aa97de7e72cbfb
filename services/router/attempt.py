"""One try of a work: a model that was asked, under a number of its own on the way to the batchers. Pure."""

from collections.abc import Sequence
from math import isnan
from typing import Literal, Protocol

from libs.lane.stage import Sink
from libs.lane.work import Note, Outcome, Tokens, Work
from services.router.breaker import Breaker
from services.router.fallback import Try

Kind = Literal["first", "copy", "shadow"]


class Owner(Protocol):
    """Whoever made an attempt, and hears of it."""

    def tokens(self, attempt: "Attempt", tokens: Tokens, log_probs: Sequence[float]) -> int | None:
        """Tokens of an attempt that is `watched`. Returns the number in front under which they pass; None: not."""
        ...

    def noted(self, attempt: "Attempt", note: Note) -> None:
        """Something about it that goes on."""
        ...

    def over(self, attempt: "Attempt", outcome: Outcome) -> None:
        """It has ended; its number is free."""
        ...

    def closed(self, attempt: "Attempt") -> None:
        """The lane in front closed; nothing more comes."""
        ...


class Way(Protocol):
    """The lane that a work came up, with its way on to the batchers."""

    @property
    def sink(self) -> Sink:
        """The stage in front."""
        ...

    def send(self, attempt: "Attempt", number: int | None, *, watched: bool) -> None:
        """Sends an attempt to its batcher: under this number if that is free, so that its frames can pass as they
        are, else under one of its own. It may be over before this returns."""
        ...

    def stop(self, attempt: "Attempt") -> None:
        """Cancels it; it is still to end."""
        ...

    def drop(self, attempt: "Attempt") -> None:
        """Cancels it; nothing more is heard of it."""
        ...

    def passed(self, attempt: "Attempt") -> int:
        """Tokens of it that have come here, those that the work came with included."""
        ...

    def unwatch(self, attempt: "Attempt") -> None:
        """Lets its tokens pass with their frames from now on."""
        ...

    def done(self, number: int) -> None:
        """The work under this number in front has its outcome."""
        ...


class Attempt:
    """Bounded: keeps the tokens of an answer that is judged, at most its max_tokens."""

    __slots__ = (
        "answer", "begun", "breaker", "going", "kind", "log_probs", "note", "number", "owner", "started", "step",
        "ticket", "watched",
    )  # fmt: skip

    def __init__(
        self, owner: Owner, kind: Kind, step: Try, going: Work, breaker: Breaker | None, note: Note, started: float
    ) -> None:
        self.owner = owner
        self.kind: Kind = kind
        self.step = step
        self.going = going
        self.note: Note | None = note
        """To be told with its first token; None once it was."""
        self.started = started
        self.number = 0
        """On the way to the batchers."""
        self.watched = False
        """Whether each of its tokens is to be looked at, instead of passing with its frame."""
        self.begun = False
        """Whether a token of it was seen; only of those that are watched."""
        self.answer: list[int] = []
        self.log_probs: list[float] = []
        self.breaker = breaker
        self.ticket = breaker.enter() if breaker is not None else 0

    @property
    def probes(self) -> bool:
        """Whether its first token is waited for by a breaker."""
        return self.breaker is not None and self.breaker.probes(self.ticket)

    def settle(self, well: bool | None, now: float) -> None:
        """Tells the breaker, once."""
        breaker, self.breaker = self.breaker, None
        if breaker is not None:
            breaker.leave(self.ticket, well, now)

    @property
    def mean_log_prob(self) -> float | None:
        """Of the tokens that were kept; None when the engine told none."""
        known = [value for value in self.log_probs if not isnan(value)]
        return sum(known) / len(known) if known else None
