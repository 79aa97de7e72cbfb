"""Whose deadline is past? Pure, and shared by the stages that keep works."""

import heapq
from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar

SLACK = 1024
"""Deadlines of the dead are forgotten when they outnumber those of the living by this many."""

K = TypeVar("K")


class Deadlines(Generic[K]):
    """The deadlines of works, the nearest first. Bounded by twice the works that are alive, plus SLACK.

    It knows works by their numbers alone, so that what has ended goes at once: kept for a second, it would be cold in
    the processor's caches when it goes, and the garbage collector would have looked at it in vain.

    Args:
        living: The works whose outcome is awaited, by number. Numbers are never used again.
    """

    def __init__(self, living: Mapping[int, K]) -> None:
        self._living = living
        self._heap: list[tuple[float, int]] = []

    def add(self, deadline: float, number: int) -> None:
        """Notes the deadline of a work, in Unix seconds."""
        heapq.heappush(self._heap, (deadline, number))

    def passed(self, now: float) -> Iterator[K]:
        """Takes out, and gives, the living whose deadline is reached at `now`. They may end while it runs."""
        while self._heap and self._heap[0][0] <= now:
            _, number = heapq.heappop(self._heap)
            if number in self._living:
                yield self._living[number]

    def prune(self) -> None:
        """Forgets the dead if there are too many."""
        if len(self._heap) > 2 * len(self._living) + SLACK:
            self._heap = [entry for entry in self._heap if entry[1] in self._living]
            heapq.heapify(self._heap)

    def __len__(self) -> int:
        return len(self._heap)
