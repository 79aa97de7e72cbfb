"""The block ledger: what running works may still need, so that no executor ever runs out of blocks.

A reservation belongs to a batcher, and is a lease: it lasts as long as the batcher's stream, and a grace
period longer. Two kinds of entry differ. A reservation that is asked for is granted only within the capacity.
A claim says what runs already, granted by this ledger or by its forerunner before a restart: it is a fact
and always taken in, even where it leaves less than nothing.
"""

from collections.abc import Iterable
from dataclasses import dataclass

MAX_HELD = 1 << 16
"""Reservations of one batcher, at most; one more is refused."""


@dataclass(frozen=True, slots=True)
class Held:
    """Blocks on one pool of one executor."""

    executor: str
    pool: str
    blocks: int


class Ledger:
    """Who has reserved how much where.

    Bounded by MAX_HELD per batcher; whoever calls bounds the number of batchers.

    Args:
        overcommit: The sum of reservations may reach the capacity times this; at 1.0 no engine ever runs out.
        grace_s: Seconds that the reservations of a batcher outlive its stream.
    """

    def __init__(self, overcommit: float = 1.0, grace_s: float = 10.0) -> None:
        if overcommit <= 0 or grace_s < 0:
            raise ValueError(f"no ledger has overcommit {overcommit} and a grace of {grace_s} s")
        self._overcommit = overcommit
        self._grace_s = grace_s
        self._capacities: dict[tuple[str, str], int] = {}
        self._sums: dict[tuple[str, str], int] = {}
        self._held: dict[str, dict[int, Held]] = {}
        self._lapses: dict[str, float] = {}

    def set_capacity(self, executor: str, pool: str, blocks: int) -> None:
        """Notes what an executor has; 0 when it is gone. What is reserved stays: its works may still run."""
        if blocks > 0:
            self._capacities[executor, pool] = blocks
        else:
            self._capacities.pop((executor, pool), None)

    def reserve(self, batcher: str, number: int, executor: str, pool: str, blocks: int) -> bool:
        """Reserves, if it fits. A number that is in use is released first, and stays so if the new one does not
        fit. Raises ValueError for a negative number of blocks."""
        if blocks < 0:
            raise ValueError(f"nobody reserves {blocks} blocks")
        self.release(batcher, number)
        if len(self._held.get(batcher, ())) >= MAX_HELD or blocks > self.free(executor, pool):
            return False
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
        self._sums[account] -= held.blocks
        if not self._sums[account]:
            del self._sums[account]
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

    def expire(self, now: float) -> list[str]:
        """Ends the reservations of batchers whose grace period is over; returns those batchers."""
        gone = [batcher for batcher, lapse in self._lapses.items() if lapse <= now]
        for batcher in gone:
            del self._lapses[batcher]
            for number in list(self._held.get(batcher, ())):
                self.release(batcher, number)
        return gone

    def capacity(self, executor: str, pool: str) -> int:
        """Blocks in all; 0 when unknown."""
        return self._capacities.get((executor, pool), 0)

    def reserved(self, executor: str, pool: str) -> int:
        """Blocks that are reserved."""
        return self._sums.get((executor, pool), 0)

    def free(self, executor: str, pool: str) -> int:
        """Blocks that may still be reserved; never negative."""
        limit = int(self.capacity(executor, pool) * self._overcommit)
        return max(limit - self.reserved(executor, pool), 0)

    def held_by(self, batcher: str) -> int:
        """Reservations of a batcher."""
        return len(self._held.get(batcher, ()))

    def check_integrity(self) -> None:
        """Raises AssertionError if the sums are not those of the reservations. For tests."""
        sums: dict[tuple[str, str], int] = {}
        for entries in self._held.values():
            for held in entries.values():
                account = (held.executor, held.pool)
                sums[account] = sums.get(account, 0) + held.blocks
        faults = {
            "sums": {account: blocks for account, blocks in sums.items() if blocks} != self._sums,
            "negative": any(held.blocks < 0 for entries in self._held.values() for held in entries.values()),
            "empty": not all(self._held.values()),
            "capacity": any(blocks <= 0 for blocks in self._capacities.values()),
        }
        if any(faults.values()):
            raise AssertionError(f"the ledger does not add up: {[name for name, wrong in faults.items() if wrong]}")

    def _add(self, batcher: str, number: int, held: Held) -> None:
        if not held.blocks:
            return
        self._held.setdefault(batcher, {})[number] = held
        account = (held.executor, held.pool)
        self._sums[account] = self._sums.get(account, 0) + held.blocks
