"""Whose deadline is past? Pure, and shared by the stages that keep works."""

import heapq
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

SLACK = 1024
"""Entries that are dead are forgotten when they outnumber the living by this many."""


class Kept(Protocol):
    """Something with an outcome."""

    @property
    def live(self) -> bool:
        """Whether its outcome is still awaited."""
        ...


K = TypeVar("K", bound=Kept)


class Deadlines(Generic[K]):
    """The deadlines of works, the nearest first. Bounded by twice the works that are alive, plus SLACK."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, K]] = []
        self._sequence = 0

    def add(self, deadline: float, kept: K) -> None:
        """Notes a deadline, in Unix seconds."""
        self._sequence += 1
        heapq.heappush(self._heap, (deadline, self._sequence, kept))

    def passed(self, now: float) -> Iterator[K]:
        """Takes out, and gives, the living whose deadline is reached at `now`. They may end while it runs."""
        while self._heap and self._heap[0][0] <= now:
            _, _, kept = heapq.heappop(self._heap)
            if kept.live:
                yield kept

    def prune(self, alive: int) -> None:
        """Forgets the dead if there are too many; `alive` is the number of the living."""
        if len(self._heap) > 2 * alive + SLACK:
            self._heap = [entry for entry in self._heap if entry[2].live]
            heapq.heapify(self._heap)

    def __len__(self) -> int:
        return len(self._heap)
