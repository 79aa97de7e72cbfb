"""The order in which works of one pool run. Pure.

Interactive before async, each in order of arrival; async work that has waited AGE_S counts as interactive,
so it never starves. Work that was running and comes back goes to the front, in the order in which it came: it
has waited already.
"""

from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from libs.lane.work import Tier

AGE_S = 30.0
"""After this long in the queue, async work is ordered as if it were interactive."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What may wait in one pool's queue, per tier."""

    works: int = 4096
    tokens: int = 4_000_000
    """Prompt tokens."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A work in the queue."""

    key: int
    """Grows with each arrival."""
    tier: Tier
    tokens: int
    """Prompt tokens."""
    arrived: float
    """Monotonic seconds."""


class WaitQueue:
    """The queue of one pool. Bounded by `limits`; what does not fit is refused by `refusal`."""

    def __init__(self) -> None:
        self._tiers: dict[Tier, _Line] = {tier: _Line() for tier in Tier}

    def refusal(self, tier: Tier, tokens: int, limits: Limits) -> str | None:
        """Why a new work does not fit, or None. Does not modify the queue."""
        waiting, waiting_tokens = len(self._tiers[tier]), self._tiers[tier].tokens
        if waiting + 1 > limits.works:
            return f"{waiting} {tier.name.lower()} works wait; the limit is {limits.works}"
        if waiting and waiting_tokens + tokens > limits.tokens:
            return f"{waiting_tokens} prompt tokens wait; with {tokens} more the limit of {limits.tokens} is passed"
        return None

    def push(self, entry: Entry) -> None:
        """Appends a new work. Raises ValueError when it is here already."""
        self._room(entry).new[entry.key] = entry

    def push_front(self, entry: Entry) -> None:
        """Puts a work back that was running. Never refused: it was let in before.

        Raises ValueError when it is here already.
        """
        insort(self._room(entry).returned, entry, key=_key)

    def peek(self, now: float) -> Entry | None:
        """The work that runs next. Does not modify the queue."""
        interactive, patient = self._tiers[Tier.INTERACTIVE].head(), self._tiers[Tier.ASYNC].head()
        if interactive is None or patient is None:
            return interactive or patient
        aged = now - patient.arrived >= AGE_S and patient.arrived < interactive.arrived
        return patient if aged else interactive

    def remove(self, key: int) -> Entry | None:
        """Takes a work out, wherever it stands; None if it is not here."""
        for line in self._tiers.values():
            if (entry := line.remove(key)) is not None:
                return entry
        return None

    def waiting(self, tier: Tier) -> int:
        """Works of a tier."""
        return len(self._tiers[tier])

    def waiting_tokens(self, tier: Tier) -> int:
        """Prompt tokens of a tier."""
        return self._tiers[tier].tokens

    def oldest(self, tier: Tier) -> float | None:
        """When the work of a tier that runs next arrived, in monotonic seconds."""
        head = self._tiers[tier].head()
        return None if head is None else head.arrived

    def __len__(self) -> int:
        return sum(map(len, self._tiers.values()))

    def __iter__(self) -> Iterator[Entry]:
        for line in self._tiers.values():
            yield from line

    def check_integrity(self) -> None:
        """Raises AssertionError when counters and contents disagree."""
        keys = [entry.key for entry in self]
        assert len(keys) == len(set(keys)) == len(self), "a work is here twice"
        for tier, line in self._tiers.items():
            assert line.tokens == sum(entry.tokens for entry in line)
            assert all(entry.tier == tier for entry in line)
            assert line.returned == sorted(line.returned, key=_key)
            assert all(entry.key == key for key, entry in line.new.items())

    def _room(self, entry: Entry) -> "_Line":
        if any(entry.key in line for line in self._tiers.values()):
            raise ValueError(f"work {entry.key} is in the queue already")
        line = self._tiers[entry.tier]
        line.tokens += entry.tokens
        return line


class _Line:
    """The works of one tier: those that came back, by key, in front of the new ones."""

    __slots__ = ("new", "returned", "tokens")

    def __init__(self) -> None:
        self.returned: list[Entry] = []
        self.new: OrderedDict[int, Entry] = OrderedDict()  # a dict slows down when it is emptied from the front
        self.tokens = 0

    def head(self) -> Entry | None:
        return self.returned[0] if self.returned else next(iter(self.new.values()), None)

    def remove(self, key: int) -> Entry | None:
        entry = self.new.pop(key, None)
        if entry is None and (index := self._index(key)) is not None:
            entry = self.returned.pop(index)
        if entry is not None:
            self.tokens -= entry.tokens
        return entry

    def __contains__(self, key: int) -> bool:
        return key in self.new or self._index(key) is not None

    def __len__(self) -> int:
        return len(self.returned) + len(self.new)

    def __iter__(self) -> Iterator[Entry]:
        yield from self.returned
        yield from self.new.values()

    def _index(self, key: int) -> int | None:
        index = bisect_left(self.returned, key, key=_key)
        return index if index < len(self.returned) and self.returned[index].key == key else None


def _key(entry: Entry) -> int:
    return entry.key
