"""Two ordered collections that the queue is made of: keys by a priority that changes, and items with sums. Pure."""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from typing import Generic, TypeVar

K = TypeVar("K", int, str)

Item = tuple[float, int, int]
"""Where a work stands among those of its tenant: its order, its key, which is unique, and its prompt tokens."""

SLACK = 64
"""Stale entries of a heap that are not worth clearing away."""
CHUNK = 512
"""Items in a chunk at most; then it is cut in half."""


class LazyHeap(Generic[K]):
    """Keys by priority, the lowest first, equal ones by key. `set` and `discard` are O(log n), amortized.

    What was replaced or discarded stays in the heap until it comes to its top, and is cleared away when it is more
    than half of the heap.
    """

    __slots__ = ("_heap", "_priorities")

    def __init__(self) -> None:
        self._heap: list[tuple[float, K]] = []
        self._priorities: dict[K, float] = {}

    def set(self, key: K, priority: float) -> None:
        """Adds a key, or moves it."""
        if self._priorities.get(key) == priority:
            return
        self._priorities[key] = priority
        heappush(self._heap, (priority, key))
        if len(self._heap) > 2 * len(self._priorities) + SLACK:
            self._heap = [(priority, key) for key, priority in self._priorities.items()]
            heapify(self._heap)

    def discard(self, key: K) -> None:
        """Takes a key out, if it is here."""
        self._priorities.pop(key, None)

    def top(self) -> tuple[float, K] | None:
        """The lowest priority and its key."""
        heap, priorities = self._heap, self._priorities
        while heap:
            priority, key = heap[0]
            if priorities.get(key) == priority:
                return heap[0]
            heappop(heap)
        return None

    def get(self, key: K) -> float | None:
        """The priority of a key."""
        return self._priorities.get(key)

    def __len__(self) -> int:
        return len(self._priorities)

    def __iter__(self) -> Iterator[K]:
        return iter(self._priorities)

    def check_integrity(self) -> None:
        """Raises AssertionError when the heap has lost a key, or keeps too much."""
        there = set(self._heap)
        assert all((priority, key) in there for key, priority in self._priorities.items())
        assert all(self._heap[(index - 1) // 2] <= self._heap[index] for index in range(1, len(self._heap)))


class Row:
    """Items in order, in chunks, with the sum of each chunk's tokens.

    `add` and `remove` are O(log n) comparisons and the move of at most CHUNK pointers; `tokens_before` adds up the
    chunks and one part of a chunk.
    """

    __slots__ = ("_chunks", "_lasts", "_sums", "tokens")

    def __init__(self) -> None:
        self._chunks: list[list[Item]] = []
        self._lasts: list[Item] = []
        self._sums: list[int] = []
        self.tokens = 0
        """Of all items."""

    def add(self, item: Item) -> None:
        """Puts an item into its place."""
        self.tokens += item[2]
        if not self._chunks:
            self._chunks, self._lasts, self._sums = [[item]], [item], [item[2]]
            return
        at = min(bisect_left(self._lasts, item), len(self._lasts) - 1)
        chunk = self._chunks[at]
        insort(chunk, item)
        self._lasts[at] = chunk[-1]
        self._sums[at] += item[2]
        if len(chunk) > CHUNK:
            front, back = chunk[: CHUNK // 2], chunk[CHUNK // 2 :]
            self._chunks[at : at + 1] = front, back
            self._lasts[at : at + 1] = front[-1], back[-1]
            self._sums[at : at + 1] = sum(one[2] for one in front), sum(one[2] for one in back)

    def remove(self, item: Item) -> None:
        """Takes out an item that is here."""
        at = bisect_left(self._lasts, item)
        chunk = self._chunks[at]
        del chunk[bisect_left(chunk, item)]
        self.tokens -= item[2]
        if chunk:
            self._lasts[at] = chunk[-1]
            self._sums[at] -= item[2]
        else:
            del self._chunks[at], self._lasts[at], self._sums[at]

    def first(self) -> Item | None:
        """The first item."""
        return self._chunks[0][0] if self._chunks else None

    def after(self, order: float) -> Item | None:
        """The first item whose order is above this."""
        at = bisect_right(self._lasts, order, key=_order)
        if at == len(self._lasts):
            return None
        chunk = self._chunks[at]
        return chunk[bisect_right(chunk, order, key=_order)]

    def tokens_before(self, item: tuple[float, float]) -> int:
        """Tokens of the items in front of a place, which is given as order and key."""
        at = bisect_left(self._lasts, item)
        if at == len(self._lasts):
            return self.tokens
        chunk = self._chunks[at]
        return sum(self._sums[:at]) + sum(one[2] for one in chunk[: bisect_left(chunk, item)])

    def __bool__(self) -> bool:
        return bool(self._chunks)

    def __iter__(self) -> Iterator[Item]:
        for chunk in self._chunks:
            yield from chunk

    def check_integrity(self) -> None:
        """Raises AssertionError when order or sums are wrong."""
        items = list(self)
        assert items == sorted(items)
        assert self._lasts == [chunk[-1] for chunk in self._chunks]
        assert self._sums == [sum(one[2] for one in chunk) for chunk in self._chunks]
        assert self.tokens == sum(self._sums)


def _order(item: Item) -> float:
    return item[0]
