"""Which works of a queue are parked, for what, and until when. Pure."""

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from services.batcher.ordered import LazyHeap


class Parked(NamedTuple):
    """Until when a work lets others pass, and for what: an executor that remembers its prefix, another work that
    computes it, or an answer."""

    until: float
    """Monotonic seconds."""
    on: str


class Parking:
    """Keys of works that others may pass. Bounded by the queue whose works they are."""

    def __init__(self) -> None:
        self._for: dict[int, str] = {}
        self._by: dict[str, set[int]] = {}
        self._until: LazyHeap[int] = LazyHeap()
        self._tokens: dict[int, int] = {}
        self._sums: Counter[str] = Counter()

    def add(self, key: int, until: float, on: str, tokens: int = 0) -> None:
        """Parks a work; again, if it is parked already. `tokens`: what it will have to compute there."""
        self.discard(key)
        self._for[key] = on
        self._tokens[key] = tokens
        self._sums[on] += tokens
        self._by.setdefault(on, set()).add(key)
        self._until.set(key, until)

    def discard(self, key: int) -> bool:
        """Forgets a work; whether it was parked."""
        on = self._for.pop(key, None)
        if on is None:
            return False
        keys = self._by[on]
        keys.discard(key)
        self._sums[on] -= self._tokens.pop(key)
        if not keys:
            del self._by[on], self._sums[on]
        self._until.discard(key)
        return True

    def waiting_for(self, on: str) -> list[int]:
        """The works that are parked for something, in order of arrival."""
        return sorted(self._by.get(on, ()))

    def waits_for(self, on: str) -> bool:
        """Whether works are parked for something."""
        return on in self._by

    def tokens_for(self, on: str) -> int:
        """What the works that are parked for something have to compute there."""
        return self._sums.get(on, 0)

    def next_due(self, now: float) -> int | None:
        """A work whose time has come."""
        top = self._until.top()
        return top[1] if top is not None and top[0] <= now else None

    def __contains__(self, key: int) -> bool:
        return key in self._for

    def __len__(self) -> int:
        return len(self._for)

    def __iter__(self) -> Iterator[int]:
        return iter(self._for)

    def check_integrity(self) -> None:
        """Raises AssertionError when the three views disagree."""
        assert {key: on for on, keys in self._by.items() for key in keys} == self._for
        assert all(self._by.values())
        assert {on: sum(self._tokens[key] for key in keys) for on, keys in self._by.items()} == self._sums
        assert set(self._tokens) == set(self._for)
        assert set(self._until) == set(self._for)
        self._until.check_integrity()
