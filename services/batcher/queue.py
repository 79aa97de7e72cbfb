"""The order in which works of one pool run. Pure.

Interactive before async, each in order of arrival; async work that has waited AGE_S counts as interactive,
so it never starves. Work that was running and comes back goes to the front, in the order in which it came: it
has waited already.
"""

from bisect import insort
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
        self._tiers: dict[Tier, OrderedDict[int, Entry]] = {tier: OrderedDict() for tier in Tier}
        self._front: dict[Tier, list[int]] = {tier: [] for tier in Tier}
        """Keys of the entries that came back: they are the first of their tier, in this order, by key."""
        self._tokens: dict[Tier, int] = dict.fromkeys(Tier, 0)

    def refusal(self, tier: Tier, tokens: int, limits: Limits) -> str | None:
        """Why a new work does not fit, or None. Does not modify the queue."""
        waiting = len(self._tiers[tier])
        if waiting + 1 > limits.works:
            return f"{waiting} {tier.name.lower()} works wait; the limit is {limits.works}"
        if waiting and self._tokens[tier] + tokens > limits.tokens:
            return f"{self._tokens[tier]} prompt tokens wait; with {tokens} more the limit of {limits.tokens} is passed"
        return None

    def push(self, entry: Entry) -> None:
        """Appends a new work. Raises ValueError when it is here already."""
        self._add(entry)

    def push_front(self, entry: Entry) -> None:
        """Puts a work back that was running. Never refused: it was let in before.

        Raises ValueError when it is here already. Costs as much as there are works that came back.
        """
        self._add(entry)
        entries, front = self._tiers[entry.tier], self._front[entry.tier]
        insort(front, entry.key)
        for key in reversed(front):
            entries.move_to_end(key, last=False)

    def peek(self, now: float) -> Entry | None:
        """The work that runs next. Does not modify the queue."""
        interactive = _head(self._tiers[Tier.INTERACTIVE])
        patient = _head(self._tiers[Tier.ASYNC])
        if interactive is None or patient is None:
            return interactive or patient
        aged = now - patient.arrived >= AGE_S and patient.arrived < interactive.arrived
        return patient if aged else interactive

    def remove(self, key: int) -> Entry | None:
        """Takes a work out, wherever it stands; None if it is not here."""
        for tier, entries in self._tiers.items():
            if (entry := entries.pop(key, None)) is not None:
                self._tokens[tier] -= entry.tokens
                if key in self._front[tier]:
                    self._front[tier].remove(key)
                return entry
        return None

    def waiting(self, tier: Tier) -> int:
        """Works of a tier."""
        return len(self._tiers[tier])

    def waiting_tokens(self, tier: Tier) -> int:
        """Prompt tokens of a tier."""
        return self._tokens[tier]

    def oldest(self, tier: Tier) -> float | None:
        """When the work of a tier that runs next arrived, in monotonic seconds."""
        head = _head(self._tiers[tier])
        return None if head is None else head.arrived

    def __len__(self) -> int:
        return sum(len(entries) for entries in self._tiers.values())

    def __iter__(self) -> Iterator[Entry]:
        for entries in self._tiers.values():
            yield from entries.values()

    def check_integrity(self) -> None:
        """Raises AssertionError when counters and contents disagree."""
        for tier, entries in self._tiers.items():
            assert self._tokens[tier] == sum(entry.tokens for entry in entries.values())
            assert all(entry.tier == tier and entry.key == key for key, entry in entries.items())
            assert list(entries)[: len(self._front[tier])] == sorted(self._front[tier])

    def _add(self, entry: Entry) -> None:
        if any(entry.key in entries for entries in self._tiers.values()):
            raise ValueError(f"work {entry.key} is in the queue already")
        self._tiers[entry.tier][entry.key] = entry
        self._tokens[entry.tier] += entry.tokens


def _head(entries: "OrderedDict[int, Entry]") -> Entry | None:
    return next(iter(entries.values()), None)
