"""The works that pass through a stage, as columns: where each comes from, where it runs, and how far it has come.

A work's number decides its row, so that the numbers of a whole frame become rows in one operation.
"""

from collections.abc import Hashable
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from libs.lane.frame import COUNT, NUMBER, Counts, Frame, Numbers
from libs.lane.progress import Progress
from libs.lane.stage import Sink

ROWS = 1024
"""To begin with. Doubled when half of them are taken."""
LOG_FRAMES, LOG_TOKENS = 256, 64
"""Frames whose tokens have not been handed to their works yet, at most; and tokens in them, for each work in flight."""
LEAST_TOKENS = 32_768
"""Of these, at least."""


class FrontLane(Hashable, Protocol):
    """The lane in front that a work came from."""

    @property
    def sink(self) -> Sink:
        """Where its tokens go."""
        ...


class Passage(Hashable, Protocol):
    """A work on its way through a stage."""

    @property
    def lane(self) -> FrontLane:
        """Where it came from."""
        ...

    @property
    def down_id(self) -> int:
        """Its number there."""
        ...

    @property
    def progress(self) -> Progress:
        """Its tokens so far."""
        ...


P = TypeVar("P", bound=Passage)


class Passages(Generic[P]):
    """The works of one stage. Bounded by the most works that were in flight at once: at most four rows of 44 bytes for
    each, and LOG_TOKENS tokens.

    A number's row is its last bits, and numbers are never used again: the row says which number it is of, so what comes
    for one that has left finds nobody.

    Lanes stand in their columns by identity. That is safe as long as a work refers to them: a row is cleared before.
    """

    def __init__(self) -> None:
        self.works: dict[int, P] = {}
        """By number."""
        self._sequence = 0
        self._log: list[tuple[Numbers, Counts, Counts]] = []  # numbers, counts and tokens of what has passed
        self._logged = 0
        self._clear(ROWS)

    def _clear(self, rows: int) -> None:
        self.mask = rows - 1
        self.numbers: Numbers = np.zeros(rows, NUMBER)
        """0 where there is none."""
        self.counts: Counts = np.zeros(rows, COUNT)
        """Tokens so far: the offset of the next one."""
        self.fronts: Numbers = np.zeros(rows, NUMBER)
        """Numbers in front."""
        self.lanes: Numbers = np.zeros(rows, NUMBER)
        """Lanes in front."""
        self.behind: Numbers = np.zeros(rows, NUMBER)
        """Where their tokens come from; 0 where none are wanted."""
        self.marks: NDArray[np.uint32] = np.zeros(rows, COUNT)
        """For whoever wants to see whether rows are all different."""
        self.steps: NDArray[np.uint32] = np.arange(rows, dtype=COUNT)
        """0, 1, 2 …"""
        # The same memory, for single rows: three times as fast as through numpy.
        self._numbers, self._counts, self._behind = self.numbers.data, self.counts.data, self.behind.data
        self._fronts, self._lanes = self.fronts.data, self.lanes.data

    # --- works -------------------------------------------------------------------------------------

    def next(self) -> int:
        """A number that was never used, and whose row is free. It need not be entered."""
        self._sequence += 1
        while self._numbers[self._sequence & self.mask]:
            self._sequence += 1
        return self._sequence

    def enter(self, number: int, passage: P) -> None:
        """A work is in flight from now on. No tokens come from anywhere before `stream`."""
        while 2 * len(self.works) >= self.mask or self._numbers[number & self.mask]:
            self._grow()
        self.works[number] = passage
        row = number & self.mask
        self._numbers[row], self._counts[row], self._behind[row] = number, passage.progress.count, 0
        self._fronts[row], self._lanes[row] = passage.down_id, id(passage.lane)
        passage.progress.enter(self, number)

    def stream(self, number: int, behind: object | None) -> None:
        """Its tokens come from there from now on; None: from nowhere. Ignored for a work that has left."""
        if number in self.works:
            self._behind[number & self.mask] = 0 if behind is None else id(behind)

    def renumber(self, old: int) -> int:
        """Gives a work another number, so that what comes for the old one finds nobody."""
        passage = self.works[old]
        self.settle()
        self.leave(old)
        number = self.next()
        self.enter(number, passage)
        return number

    def leave(self, number: int) -> None:
        """A work is in flight no more. Its count stays known, its tokens do not."""
        self.works.pop(number).progress.leave()
        self._numbers[number & self.mask] = 0

    def check_integrity(self) -> None:
        """Raises AssertionError when rows and works disagree."""
        assert sorted(self.numbers[self.numbers.nonzero()].tolist()) == sorted(self.works)
        for number, passage in self.works.items():
            row = number & self.mask
            assert self.numbers[row] == number
            assert (self.fronts[row], self.lanes[row]) == (passage.down_id, id(passage.lane))

    def _grow(self) -> None:
        """Twice as many rows: numbers that differ in some last bits differ in one more."""
        taken = np.flatnonzero(self.numbers)
        numbers, counts, behind = self.numbers[taken], self.counts[taken], self.behind[taken]
        fronts, lanes = self.fronts[taken], self.lanes[taken]
        self._clear(2 * len(self.numbers))
        rows = numbers & self.mask
        self.numbers[rows], self.counts[rows], self.behind[rows] = numbers, counts, behind
        self.fronts[rows], self.lanes[rows] = fronts, lanes

    # --- their tokens ------------------------------------------------------------------------------

    def count(self, number: int) -> int:
        """See progress.Home."""
        return self._counts[number & self.mask]

    def streams(self, number: int, behind: object) -> bool:
        """Whether the tokens of a work in flight come from there."""
        return self._behind[number & self.mask] == id(behind)

    def advance(self, number: int, tokens: int) -> None:
        """Counts tokens; they are to be logged."""
        self._counts[number & self.mask] += tokens

    def reset(self, number: int) -> None:
        """See progress.Home."""
        self._counts[number & self.mask] = 0

    def log(self, frame: Frame) -> None:
        """Keeps tokens that were counted already, all of them new."""
        self._log.append((frame.work_ids, frame.counts, frame.token_ids))
        self._logged += len(frame.token_ids)
        if len(self._log) >= LOG_FRAMES or self._logged > max(LEAST_TOKENS, LOG_TOKENS * len(self.works)):
            self.settle()

    def settle(self) -> None:
        """See progress.Home. Sorts the log by row, so that each work is handed all its tokens at once; those of works
        that have left are dropped."""
        if not self._log:
            return
        numbers, counts, tokens = (np.concatenate(column) for column in zip(*self._log, strict=True))
        self._log.clear()
        self._logged = 0
        if len(numbers) != len(tokens):  # no entry is empty, so some have several
            numbers = numbers.repeat(counts)
        rows = numbers & self.mask
        known = self.numbers[rows] == numbers
        rows, tokens = rows[known], tokens[known]
        if self.mask < 1 << 16:
            rows = rows.astype(np.uint16)  # which numpy sorts in linear time
        order = rows.argsort(kind="stable")
        rows, in_bytes = rows[order], tokens[order].tobytes()
        starts = np.flatnonzero(np.append(True, rows[1:] != rows[:-1])[: len(rows)])
        numbers = self.numbers[rows[starts]]
        ends = [*starts[1:].tolist(), len(rows)]
        for number, start, end in zip(numbers.tolist(), starts.tolist(), ends, strict=False):
            self.works[number].progress.keep(in_bytes[4 * start : 4 * end])
