"""How many requests a process may have in flight, while its share moves. Pure."""

from math import inf

RIPE_S = 0.75
"""A share of the requests in flight grows this late: until then it is known what others still hold that theirs have
shrunk below. Enough for announcements every quarter of a second that take as long to arrive."""


class Slots:
    """A number that falls at once and rises RIPE_S late, then to the least that it was to be meanwhile."""

    __slots__ = ("_next", "_now", "_ripe", "_target")

    def __init__(self) -> None:
        self._now: int | None = None
        self._target = 0
        self._next = 0
        self._ripe = inf

    def set(self, target: int, now: float) -> None:
        """What it is to be."""
        before = self.at(now) if self._now is not None else target
        self._target = target
        self._now = min(before, target)
        self._next = target if self._ripe == inf else min(self._next, target)
        self._ripe = inf if target <= self._now else min(self._ripe, now + RIPE_S)

    def at(self, now: float) -> int:
        """What it is."""
        if now >= self._ripe:
            self._now, self._next = max(self._next, self._now or 0), self._target
            self._ripe = now + RIPE_S if self._target > self._now else inf
        return self._now or 0
