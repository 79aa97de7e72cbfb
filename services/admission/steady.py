"""Answers that need no more than their text: a step of the engine for all of them at once. Pure.

Answer by answer, a step touches a dozen objects for each token, and none of them is in a cache when steps come every
20 ms: 6 µs per token, where the same loop over warm objects takes 1.7. Here such answers are rows of arrays, and a step
is a few operations of numpy and a list of texts.

An answer is steady from when its first tokens have been taken, if text is all that is wanted of it, it has
no stop strings, and many tokens are to come. It leaves when it ends, begins anew, or gets a token that ends within a
character: then its Generation is told what passed here, and goes on as any other.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
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
MASK = ROWS - 1

Rows = NDArray[np.int64]
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
        self._marks: NDArray[np.int64] = np.zeros(ROWS, np.int64)
        """For whoever wants to see whether rows are all different."""

    def enter(self, number: int, member: int, generation: Generation, outlet: Outlet) -> None:
        """Makes an answer steady, if there is room.

        Args:
            member: The client's number of it.
        """
        row = number & MASK
        if not self._numbers[row]:
            self._works[row] = generation, outlet
            self._numbers[row], self._members[row], self._outlets[row] = number, member, id(outlet)
            generation.steady = True

    def leave(self, number: int, *, goes_on: bool) -> None:
        """An answer is steady no more, if it was.

        Args:
            goes_on: Whether it says more than its end.
        """
        row = number & MASK
        if self._numbers[row] == number:
            self._tell(row)
            generation, outlet = self._works.pop(row)
            self._numbers[row] = 0
            generation.steady = False
            if goes_on:
                outlet.left()

    def pass_on(self, frame: Frame) -> Sequence[Frame]:
        """Hands the tokens of steady answers to their outlets; returns what is left of the frame."""
        entries = len(frame)
        if min(len(self._works), entries) < LEAST:
            return (frame,)
        rows = frame.work_ids & MASK
        steady = self._numbers[rows] == frame.work_ids
        if (known := np.count_nonzero(steady)) < LEAST:
            return (frame,)
        some, others = (frame, ()) if known == entries else (frame.where(steady), (frame.where(~steady),))
        left = self._by_outlet(some.work_ids & MASK, some)
        return (frame,) if left is None else (*others, *left)

    def _by_outlet(self, rows: Rows, frame: Frame) -> Sequence[Frame] | None:
        """Hands entries to their outlets; returns what is left. None where it does nothing, for they are unusual:
        some are empty or long, two are of one answer, or outlets are many."""
        entries, outlets = len(frame), self._outlets[rows]
        keys, steps = set(outlets.tolist()), np.arange(entries)
        self._marks[rows] = steps  # where two are of one row, the last one stays
        if (
            np.count_nonzero(frame.counts) < entries
            or frame.counts.max() > WIDTH
            or self._marks[rows].tobytes() != steps.tobytes()
            or len(keys) * LEAST > entries
        ):
            return None
        if len(keys) == 1:
            return self._step(rows, frame)
        parts = [outlets == key for key in keys]
        return [left for part in parts for left in self._step(rows[part], frame.where(part))]

    def _step(self, rows: Rows, frame: Frame) -> Sequence[Frame]:
        """The entries of one outlet; returns those that end within a character."""
        _, outlet = self._works[int(rows[0])]
        counts, tokens = frame.counts, frame.token_ids
        pieces = outlet.table.texts(tokens.tolist())
        single = len(pieces) == len(frame)
        if None in pieces:
            owners = rows if single else rows.repeat(counts)
            broken = np.isin(rows, owners[[piece is None for piece in pieces]])
            left = [frame.where(broken)]
            return left if broken.all() else [*left, *self._step(rows[~broken], frame.where(~broken))]
        lengths = self._lengths[rows]
        ends = lengths + counts
        if ends.max() > WIDTH:
            for row in rows[ends > WIDTH].tolist():
                self._tell(row)
            lengths = self._lengths[rows]
            ends = lengths + counts
        texts = cast("list[str]", pieces)
        if single:
            self._tokens[rows, lengths] = tokens
        else:
            stops = counts.cumsum(dtype=np.int64)
            within = np.arange(len(tokens)) + (ends - stops).repeat(counts)
            self._tokens[rows.repeat(counts), within] = tokens
            texts = ["".join(texts[start:end]) for start, end in pairwise([0, *stops.tolist()])]
        self._lengths[rows] = ends
        outlet.put((self._members[rows].tolist(), counts.tolist(), texts))
        return ()

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
