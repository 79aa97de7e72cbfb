"""The block ledger: what running works may still need, so that no executor ever runs out of blocks.

A reservation belongs to a batcher, and is a lease: it lasts as long as the batcher's stream, and a grace
period longer. Two kinds of entry differ. A reservation that is asked for is granted only within the capacity,
and so is its growth. A claim says what runs already, granted by this ledger or by its forerunner before a
restart: it is a fact and always taken in, even where it leaves less than nothing.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

MAX_HELD = 1 << 16
"""Reservations of one batcher, at most; one more is refused."""

Account = tuple[str, str]
"""An executor and a pool."""


@dataclass(frozen=True, slots=True)
class Held:
    """Blocks on one pool of one executor."""

    executor: str
    pool: str
    blocks: int


class Ledger:
    """Who has reserved how much where.

    Bounded by MAX_HELD per batcher; whoever calls bounds the number of batchers, and of pools with an
    overcommit of their own.

    Args:
        overcommit: The sum of reservations may reach the capacity times this; at 1.0 no engine ever runs out.
        grace_s: Seconds that the reservations of a batcher outlive its stream.
    """

    def __init__(self, overcommit: float = 1.0, grace_s: float = 10.0) -> None:
        if not 0 < overcommit < float("inf") or grace_s < 0:
            raise ValueError(f"no ledger has overcommit {overcommit} and a grace of {grace_s} s")
        self._overcommit = overcommit
        self._overcommits: dict[str, float] = {}
        self._grace_s = grace_s
        self._capacities: dict[Account, int] = {}
        self._sums: dict[Account, int] = {}
        self._held: dict[str, dict[int, Held]] = {}
        self._lapses: dict[str, float] = {}

    def set_overcommit(self, pool: str, factor: float | None) -> None:
        """Gives a pool a factor of its own; None takes it back. What is reserved stays, also above it.

        Raises ValueError for a factor that is not above 0.
        """
        if factor is None:
            self._overcommits.pop(pool, None)
        elif 0 < factor < float("inf"):
            self._overcommits[pool] = factor
        else:
            raise ValueError(f"{pool} cannot be overcommitted by {factor}: give a factor above 0")

    def set_capacity(self, executor: str, pool: str, blocks: int) -> None:
        """Notes what an executor has; 0 when it is gone. What is reserved stays: its works may still run."""
        if blocks > 0:
            self._capacities[executor, pool] = blocks
        else:
            self._capacities.pop((executor, pool), None)

    def reserve(self, batcher: str, number: int, executor: str, pool: str, blocks: int) -> bool:
        """Reserves, if it fits. A number that is in use is changed to what is asked for now, in size or place;
        refused, it stays as it was. To become smaller in its place is never refused.

        Raises ValueError for a negative number of blocks.
        """
        if blocks < 0:
            raise ValueError(f"nobody reserves {blocks} blocks")
        held = self._held.get(batcher, {}).get(number)
        there = held.blocks if held is not None and (held.executor, held.pool) == (executor, pool) else 0
        if blocks > there and blocks - there > self.free(executor, pool):
            return False
        if held is None and len(self._held.get(batcher, ())) >= MAX_HELD:
            return False
        self.release(batcher, number)
        self._add(batcher, number, Held(executor, pool, blocks))
        return True

    def release(self, batcher: str, number: int) -> bool:
        """Ends a reservation; False if there is none."""
        entries = self._held.get(batcher)
        held = entries.pop(number, None) if entries else None
        if held is None:
            return False
        if not entries:
            del self._held[batcher]
        account = (held.executor, held.pool)
        # With sums that do not add up, which `heal` finds, a release must still be one.
        if (rest := self._sums.get(account, 0) - held.blocks) > 0:
            self._sums[account] = rest
        else:
            self._sums.pop(account, None)
        return True

    def claim(self, batcher: str, claims: Iterable[tuple[int, Held]]) -> None:
        """Makes the claims the whole of what the batcher holds: the start of a new stream."""
        self.batcher_back(batcher)
        for number in list(self._held.get(batcher, {})):
            self.release(batcher, number)
        for number, claim in claims:
            self.release(batcher, number)
            if claim.blocks > 0 and len(self._held.get(batcher, ())) < MAX_HELD:
                self._add(batcher, number, claim)

    def batcher_gone(self, batcher: str, now: float) -> None:
        """Its stream ended at `now`, in monotonic seconds: the grace period begins."""
        if batcher in self._held:
            self._lapses[batcher] = now + self._grace_s

    def batcher_back(self, batcher: str) -> None:
        """It has a stream again: nothing lapses."""
        self._lapses.pop(batcher, None)

    @property
    def lapsing(self) -> bool:
        """Whether a grace period runs."""
        return bool(self._lapses)

    def expire(self, now: float) -> list[str]:
        """Ends the reservations of batchers whose grace period is over; returns those batchers."""
        gone = [batcher for batcher, lapse in self._lapses.items() if lapse <= now]
        for batcher in gone:
            del self._lapses[batcher]
            for number in list(self._held.get(batcher, ())):
                self.release(batcher, number)
        return gone

    def held(self, batcher: str, number: int) -> Held | None:
        """A reservation, if there is one."""
        return self._held.get(batcher, {}).get(number)

    def holders(self, executor: str, pool: str) -> list[str]:
        """The batchers that hold something there. Looks at all reservations."""
        there = (executor, pool)
        return [
            batcher
            for batcher, entries in self._held.items()
            if any((held.executor, held.pool) == there for held in entries.values())
        ]

    def capacity(self, executor: str, pool: str) -> int:
        """Blocks in all; 0 when unknown."""
        return self._capacities.get((executor, pool), 0)

    def reserved(self, executor: str, pool: str) -> int:
        """Blocks that are reserved."""
        return self._sums.get((executor, pool), 0)

    def limit(self, executor: str, pool: str) -> int:
        """Blocks that reservations may come to: the capacity, overcommitted."""
        return int(self.capacity(executor, pool) * self._overcommits.get(pool, self._overcommit))

    def free(self, executor: str, pool: str) -> int:
        """Blocks that may still be reserved; never negative."""
        return max(self.limit(executor, pool) - self.reserved(executor, pool), 0)

    def heal(self) -> list[str]:
        """Makes the sums those of the entries; returns a line for each that was another. Takes time in
        proportion to the entries: half a microsecond each."""
        entries = self._entries()
        faults = [
            f"{executor} had {self.reserved(executor, pool)} blocks of {pool} reserved, its works hold "
            f"{entries[executor, pool]}"
            for executor, pool in sorted(entries.keys() | self._sums.keys())
            if entries[executor, pool] != self.reserved(executor, pool)
        ]
        self._sums = dict(entries)
        return faults

    def check_integrity(self) -> None:
        """Raises AssertionError if the books do not add up. Looks at everything."""
        faults = {
            "sums": dict(self._entries()) != self._sums,
            "negative": any(held.blocks <= 0 for entries in self._held.values() for held in entries.values()),
            "empty": not all(self._held.values()),
            "capacity": any(blocks <= 0 for blocks in self._capacities.values()),
        }
        if any(faults.values()):
            raise AssertionError(f"the ledger does not add up: {[name for name, wrong in faults.items() if wrong]}")

    def _entries(self) -> Counter[Account]:
        sums: Counter[Account] = Counter()
        for entries in self._held.values():
            for held in entries.values():
                sums[held.executor, held.pool] += held.blocks
        return sums

    def _add(self, batcher: str, number: int, held: Held) -> None:
        if not held.blocks:
            return
        self._held.setdefault(batcher, {})[number] = held
        account = (held.executor, held.pool)
        self._sums[account] = self._sums.get(account, 0) + held.blocks
