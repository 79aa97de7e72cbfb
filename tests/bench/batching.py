"""Ways to feed an engine: continuously, or in static batches; and the lengths of requests. Pure.

All ways drive the same engine; they differ in when a request may enter it, and in how long it stays. Load is closed (N
clients with one request in flight each: a client sends its next one when it has the last token of the one before), or
open (requests come at given times, whatever has become of those before).
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import inf

import numpy as np


class Way(StrEnum):
    """How requests enter."""

    CONTINUOUS = "continuous"
    """As soon as a slot is free."""
    LENIENT = "lenient"
    """In batches. A row that is done drops out; the next batch starts when all are done."""
    PADDED = "padded"
    """In batches. Every row decodes to the end of the longest one; only what was wanted counts."""
    RECTANGULAR = "rectangular"
    """As PADDED, and every prompt is as long as the longest, too: a batch is one rectangular tensor."""


@dataclass(frozen=True, slots=True)
class Request:
    """Lengths in tokens."""

    prompt: int
    output: int


@dataclass(frozen=True, slots=True)
class Room:
    """What an engine can hold. A row enters only where all its blocks fit, so that it preempts nothing."""

    context_tokens: int
    blocks: int
    block_tokens: int

    def fits(self, rows: Sequence[Request]) -> bool:
        """Whether these can run together."""
        return sum(-(-(row.prompt + row.output) // self.block_tokens) for row in rows) <= self.blocks


class Feed:
    """What enters when, and what came of it. Times are seconds.

    Args:
        requests: Taken in turn, from the start again when all were taken.
        flight: Clients, and rows at most.
        count: The measurement ends when so many requests, the first ones, are answered. Others go on behind them,
            so that there is load to the end.
        arrivals: When requests come, without end; None for `flight` clients.
    """

    def __init__(
        self,
        requests: Sequence[Request],
        way: Way,
        flight: int,
        room: Room,
        count: int,
        arrivals: Iterator[float] | None = None,
    ) -> None:
        self._requests = requests
        self._way = way
        self.flight = flight
        self._room = room
        self._count = count
        self._issued: deque[tuple[int, float]] = deque()
        self._next = 0
        self.rows: dict[int, Request] = {}
        """As the engine sees them, padding included, by number."""
        self._since: dict[int, float] = {}
        self._made: dict[int, int] = {}
        self._done = 0
        self.tokens = 0
        """Wanted tokens that were made."""
        self.spans: list[tuple[float, float]] = []
        """Of the first `count`: from the request to its last wanted token."""
        self._arrivals = arrivals
        self.next_arrival = inf
        """When the next request comes."""
        if arrivals is not None:
            self.next_arrival = next(arrivals)
        else:
            for _ in range(flight):
                self._issue(0.0)

    @property
    def over(self) -> bool:
        """Whether enough was measured."""
        return self._done >= self._count

    @property
    def spread(self) -> float:
        """The longest answer of a batch over the mean one: steps of a padded batch over those that it needs."""
        outputs = [self._request(number).output for number in range(self._count)]
        batches = [outputs[first : first + self.flight] for first in range(0, self._count, self.flight)]
        return round(float(np.mean([max(batch) for batch in batches]) / np.mean(outputs)), 2)

    def arrive(self, now: float) -> None:
        """Takes the requests in that have come by now. Under open load only."""
        while self._arrivals is not None and self.next_arrival <= now:
            self._issue(self.next_arrival)
            self.next_arrival = next(self._arrivals)

    def enter(self) -> Iterator[tuple[int, Request]]:
        """The rows that enter now."""
        entering: list[int] = []
        if self._way is Way.CONTINUOUS or not self.rows:
            while self._issued and len(self.rows) + len(entering) < self.flight:
                further = [*entering, self._issued[0][0]]
                if not self._room.fits([*self.rows.values(), *self._as_rows(further)]):
                    break
                number, self._since[number] = self._issued.popleft()
                entering = further
        rows = self._as_rows(entering)
        self.rows.update(zip(entering, rows, strict=True))
        yield from zip(entering, rows, strict=True)

    def made(self, number: int, tokens: int, now: float) -> None:
        """A row made tokens."""
        wanted, before = self._request(number).output, self._made.get(number, 0)
        after = self._made[number] = before + tokens
        self.tokens += min(after, wanted) - min(before, wanted)
        if before < wanted <= after:
            if number < self._count:
                self._done += 1
                self.spans.append((self._since[number], now))
            if self._arrivals is None:
                self._issue(now)

    def ended(self, number: int) -> None:
        """A row has left the engine."""
        del self.rows[number]

    def _issue(self, now: float) -> None:
        self._issued.append((self._next, now))
        self._next += 1

    def _request(self, number: int) -> Request:
        return self._requests[number % len(self._requests)]

    def _as_rows(self, numbers: Sequence[int]) -> list[Request]:
        """Requests that enter together, as the engine is to see them."""
        requests = [self._request(number) for number in numbers]
        if self._way in (Way.CONTINUOUS, Way.LENIENT) or not requests:
            return requests
        prompt = max(request.prompt for request in requests) if self._way is Way.RECTANGULAR else 0
        output = max(request.output for request in requests)
        prompts = [max(request.prompt, prompt) for request in requests]
        return [Request(tokens, min(output, self._room.context_tokens - tokens)) for tokens in prompts]


def scaled(
    requests: Sequence[Request], context_tokens: int, prompt_mean: float = 0, output_mean: float = 0
) -> tuple[list[Request], float, float]:
    """Lengths with other means and the same shape, and both factors; 0 leaves lengths as they are.

    What does not fit in the context then is clipped: an answer to a quarter of it, a prompt to what is left.
    """
    prompts = np.array([request.prompt for request in requests])
    outputs = np.array([request.output for request in requests])
    by = prompt_mean / prompts.mean() if prompt_mean else 1.0, output_mean / outputs.mean() if output_mean else 1.0
    answers = np.clip(np.rint(outputs * by[1]), 1, context_tokens // 4).astype(int)
    fitting = np.clip(np.rint(prompts * by[0]), 1, context_tokens - answers).astype(int)
    return [Request(int(p), int(o)) for p, o in zip(fitting, answers, strict=True)], float(by[0]), float(by[1])
