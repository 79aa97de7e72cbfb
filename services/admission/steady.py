"""Answers that need no more than their text: a step of the engine for all of them at once. Pure.

Answer by answer, a step touches a dozen objects for each token, and none of them is in a cache when steps come every
20 ms: 6 µs per token, where the same loop over warm objects takes 1.7. Here such answers are rows of arrays, and a step
is a few operations of numpy and a list of texts.

An answer is steady from when its first tokens have been taken, if text is all that is wanted of it, it has
no stop strings, and many tokens are to come. It leaves when it ends, begins anew, or gets a token that ends within a
character: then its Generation is told what passed here, and goes on as any other.
"""

from collections.abc import Callable
from typing import Protocol, cast

import numpy as np
from numpy.typing import NDArray

from libs.lane.frame import Frame
from libs.tokens.byte_table import ByteTable
from services.admission.generation import Generation

ROWS = 8192
"""Answers that can be steady at once. A number's row is its last bits; where another one has it, an answer is not."""
WIDTH = 64
"""Tokens of an answer after which its Generation is told of them."""
LEAST = 8
"""Steady answers, and entries of a frame for each session, from which this is worth it."""
MOST_STEPS = 4
"""That wait in an outlet as they came; more are joined."""
NOTHING = Frame()

Places = NDArray[np.int64]
Step = tuple[list[int], list[int], list[str]]
"""The client's numbers, each once; how many tokens each has got; and their text."""


class Outlet(Protocol):
    """Where the texts of several answers go, of models with the same vocabulary."""

    @property
    def table(self) -> ByteTable:
        """Of that vocabulary."""
        ...

    def put(self, step: Step) -> None:
        """Takes in what a step brought."""
        ...

    def left(self) -> None:
        """One of the answers goes on elsewhere: what it says next comes behind what it has said here."""
        ...


class SessionOutlet:
    """Where the texts of one session go, of models with the same vocabulary. What waits here is joined answer by
    answer, so it is bounded by what these may say.

    Args:
        table: Of that vocabulary.
        filled: Called when there is something to take.
    """

    __slots__ = ("_steps", "apart", "filled", "table")

    def __init__(self, table: ByteTable, filled: Callable[[], None]) -> None:
        self.table = table
        self.filled = filled
        self.apart = False
        """Whether one of those in it has got more since, which must not go into the same message."""
        self._steps: list[Step] = []

    def __bool__(self) -> bool:
        return bool(self._steps)

    def put(self, step: Step) -> None:
        """Takes in what a step brought."""
        self._steps.append(step)
        if len(self._steps) > MOST_STEPS:
            self._steps = [_joined(self._steps)]
        self.filled()

    def left(self) -> None:
        """See Outlet."""
        self.apart = self.apart or bool(self._steps)

    def take(self, most_bytes: int) -> tuple[Step, bool]:
        """What waits, of about so many bytes at most; and whether it has to go apart from what else there is."""
        if not self._steps:
            return ([], [], []), False
        members, counts, texts = self._steps[0] if len(self._steps) == 1 else _joined(self._steps)
        self._steps, apart, self.apart = [], self.apart, False
        if 20 * len(members) + 4 * sum(map(len, texts)) <= most_bytes:
            return (members, counts, texts), apart
        end, size = 0, 0
        while end < len(members) and size < most_bytes:
            size += 20 + 4 * len(texts[end])
            end += 1
        if end < len(members):
            self._steps, self.apart = [(members[end:], counts[end:], texts[end:])], apart
        return (members[:end], counts[:end], texts[:end]), True


class Steady:
    """The steady answers of one process, by their numbers on the lane."""

    def __init__(self) -> None:
        self._works: dict[int, tuple[Generation, Outlet]] = {}
        """By row."""
        self._numbers: NDArray[np.int64] = np.zeros(ROWS, np.int64)
        """0 where there is none."""
        self._members: NDArray[np.uint64] = np.zeros(ROWS, np.uint64)
        self._outlets: NDArray[np.int64] = np.zeros(ROWS, np.int64)
        """By identity: safe, since `_works` refers to them."""
        self._tokens: NDArray[np.uint32] = np.zeros((ROWS, WIDTH), np.uint32)
        """That their generations do not know of yet."""
        self._lengths: NDArray[np.int64] = np.zeros(ROWS, np.int64)
        self._places: NDArray[np.int64] = np.zeros(ROWS, np.int64)

    def enter(self, number: int, member: int, generation: Generation, outlet: Outlet) -> None:
        """Makes an answer steady, if there is room.

        Args:
            member: The client's number of it.
        """
        row = number % ROWS
        if not self._numbers[row]:
            self._works[row] = generation, outlet
            self._numbers[row], self._members[row], self._outlets[row] = number, member, id(outlet)
            generation.steady = True

    def leave(self, number: int, *, goes_on: bool) -> None:
        """An answer is steady no more, if it was.

        Args:
            goes_on: Whether it says more than its end.
        """
        row = number % ROWS
        if self._numbers[row] == number:
            self._tell(row)
            generation, outlet = self._works.pop(row)
            self._numbers[row] = 0
            generation.steady = False
            if goes_on:
                outlet.left()

    def pass_on(self, frame: Frame) -> Frame:
        """Hands the tokens of steady answers to their outlets; returns the rest of the frame."""
        entries = len(frame)
        if min(len(self._works), entries) < LEAST:
            return frame
        numbers, counts = frame.work_ids, frame.counts.astype(np.int64)
        rows = numbers % ROWS
        steady = (self._numbers[rows] == numbers) & (counts <= WIDTH) & (counts > 0)
        outlets, places = self._outlets[rows], np.flatnonzero(steady)
        keys = np.unique(outlets[steady])
        self._places[rows[steady]] = places
        if len(keys) * LEAST > entries or (self._places[rows[steady]] != places).any():  # one stands in it twice
            return frame
        rest, starts = ~steady, np.cumsum(counts) - counts
        for key in keys:
            self._step(frame, rows, starts, np.flatnonzero(steady & (outlets == key)), rest)
        if not rest.any():
            return NOTHING
        kept = np.repeat(rest, counts)
        log_probs = frame.log_probs[kept] if len(frame.log_probs) else frame.log_probs
        return Frame(numbers[rest], frame.offsets[rest], frame.counts[rest], frame.token_ids[kept], log_probs)

    def _step(self, frame: Frame, rows: Places, starts: Places, places: Places, rest: NDArray[np.bool_]) -> None:
        """The entries of one outlet, at these places of a frame; sets in `rest` which of them are left over."""
        at, counts = rows[places], frame.counts[places].astype(np.int64)
        begins = np.cumsum(counts) - counts
        if counts.max() == 1:
            within, owners, source = 0 * places, at, starts[places]
        else:
            within = np.arange(counts.sum()) - np.repeat(begins, counts)
            owners, source = np.repeat(at, counts), np.repeat(starts[places], counts) + within
        tokens = frame.token_ids[source]
        _, outlet = self._works[int(at[0])]
        pieces = outlet.table.texts(tokens.tolist())
        if None in pieces:
            broken = np.isin(at, owners[[piece is None for piece in pieces]])
            rest[places[broken]] = True
            if not broken.all():
                self._step(frame, rows, starts, places[~broken], rest)
            return
        for row in at[self._lengths[at] + counts > WIDTH].tolist():
            self._tell(row)
        self._tokens[owners, self._lengths[owners] + within] = tokens
        self._lengths[at] += counts
        texts = cast("list[str]", pieces)
        if len(texts) > len(places):
            ends = (begins + counts).tolist()
            texts = ["".join(texts[start:end]) for start, end in zip(begins.tolist(), ends, strict=True)]
        outlet.put((self._members[at].tolist(), counts.tolist(), texts))

    def _tell(self, row: int) -> None:
        generation, outlet = self._works[row]
        if tokens := self._tokens[row, : self._lengths[row]].tolist():
            generation.passed(len(tokens), outlet.table.text(tokens) or "")
            self._lengths[row] = 0


def _joined(steps: list[Step]) -> Step:
    """Several steps as one."""
    counts: dict[int, int] = {}
    texts: dict[int, list[str]] = {}
    for step in steps:
        for member, count, text in zip(*step, strict=True):
            counts[member] = counts.get(member, 0) + count
            texts.setdefault(member, []).append(text)
    return list(counts), list(counts.values()), ["".join(pieces) for pieces in texts.values()]
