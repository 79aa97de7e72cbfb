"""The prefix index: which executors hold which blocks, and from that, how much of a prompt each one holds.

Flat, after the kind of index that NVIDIA Dynamo's router keeps over a tree: because a block's hash chains
over all blocks in front of it, the hash alone names the prefix, and a lookup is a walk along the prompt's
hashes that stops where nobody holds the next one. Per pool one table, hash → executors as a bit mask.
"""

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet

from libs.kvcache.values import BlockEvent, Hashes, PrefixMatch

MAX_BLOCKS = 1 << 20
"""Blocks that one executor may have in one pool; what comes beyond is not taken in. (65 million tokens in
blocks of 64.)"""

_NOTHING: AbstractSet[int] = frozenset()


class _Pool:
    __slots__ = ("bits", "names", "stored", "table")

    def __init__(self) -> None:
        self.table: dict[int, int] = {}
        self.stored: dict[str, set[int]] = {}
        self.bits: dict[str, int] = {}
        self.names: dict[int, str] = {}


class PrefixIndex:
    """What is remembered where. Everything is soft: forgotten, it comes back with the next snapshot.

    Measured on CPython 3.11: 180 bytes for a block that one executor holds, and 80 for each further one; a
    lookup takes 0.3 µs that finds nothing, and 5 µs + 0.07 µs for each block that ten executors hold. A
    snapshot or `forget` takes 0.6 µs for each block that changes.
    Bounded by MAX_BLOCKS per executor and pool; whoever calls bounds the number of executors.
    """

    def __init__(self) -> None:
        self._pools: dict[str, _Pool] = {}

    def apply(self, executor: str, pool: str, events: Iterable[BlockEvent]) -> int:
        """Takes changes in, in order; returns how many blocks there was no room for. Storing what is stored
        and removing what is not there change nothing."""
        refused = 0
        for event in events:
            if event.kind == "stored":
                refused += self._store(executor, pool, event.hashes)
            elif event.kind == "removed":
                self._remove(executor, pool, event.hashes)
            else:
                self._clear(executor, pool)
        return refused

    def snapshot(self, executor: str, pool: str, hashes: Hashes) -> int:
        """Replaces what was known of an executor's blocks; returns how many there was no room for."""
        known = self._stored(executor, pool)
        new = set(hashes)
        self._remove(executor, pool, known - new)
        return self._store(executor, pool, list(new - known))

    def forget(self, executor: str, pool: str | None = None) -> None:
        """Drops an executor, or what it holds of one pool. Takes time in proportion to its blocks."""
        for name in list(self._pools) if pool is None else [pool]:
            self._clear(executor, name)

    def match(self, pool: str, hashes: Hashes) -> list[PrefixMatch]:
        """Executors that hold leading blocks, most blocks first, equals by name. Does not modify the index."""
        entry = self._pools.get(pool)
        if entry is None:
            return []
        table = entry.table
        matches: list[PrefixMatch] = []
        holders = -1
        for depth, block in enumerate(hashes):
            still = holders & table.get(block, 0)
            if still != holders:
                if depth:
                    matches += _matches(entry.names, holders & ~still, depth)
                holders = still
                if not still:
                    break
        else:
            if hashes:
                matches += _matches(entry.names, holders, len(hashes))
        matches.reverse()
        return matches

    def size(self, executor: str, pool: str) -> int:
        """Blocks of an executor in a pool."""
        return len(self._stored(executor, pool))

    def check_integrity(self) -> None:
        """Raises AssertionError if tables and sets disagree. Looks at everything: for tests."""
        for pool, entry in self._pools.items():
            table: dict[int, int] = {}
            for executor, stored in entry.stored.items():
                for block in stored:
                    table[block] = table.get(block, 0) | entry.bits[executor]
            names = {bit: executor for executor, bit in entry.bits.items()}
            if table != entry.table or names != entry.names or entry.bits.keys() != entry.stored.keys():
                raise AssertionError(f"the index of {pool} does not add up")
            if not all(entry.stored.values()):
                raise AssertionError(f"an executor without blocks is left in {pool}")

    def _store(self, executor: str, pool: str, hashes: Hashes) -> int:
        if not hashes:
            return 0
        entry = self._pools.setdefault(pool, _Pool())
        stored = entry.stored.get(executor)
        if stored is None:
            stored = entry.stored[executor] = set()
            bit = 1 << next(number for number in range(len(entry.bits) + 1) if 1 << number not in entry.names)
            entry.bits[executor], entry.names[bit] = bit, executor
        bit, table = entry.bits[executor], entry.table
        room = MAX_BLOCKS - len(stored)
        refused = max(len(hashes) - room, 0)
        for block in hashes[:room] if refused else hashes:
            stored.add(block)
            table[block] = table.get(block, 0) | bit
        return refused

    def _remove(self, executor: str, pool: str, hashes: Iterable[int]) -> None:
        entry = self._pools.get(pool)
        stored = entry.stored.get(executor) if entry else None
        if entry is None or stored is None:
            return
        bit, table = entry.bits[executor], entry.table
        for block in hashes:
            if block in stored:
                stored.discard(block)
                if rest := table[block] & ~bit:
                    table[block] = rest
                else:
                    del table[block]
        if not stored:
            del entry.stored[executor], entry.bits[executor], entry.names[bit]
            if not entry.stored:
                del self._pools[pool]

    def _clear(self, executor: str, pool: str) -> None:
        self._remove(executor, pool, list(self._stored(executor, pool)))

    def _stored(self, executor: str, pool: str) -> AbstractSet[int]:
        entry = self._pools.get(pool)
        return entry.stored.get(executor, _NOTHING) if entry else _NOTHING


def _matches(names: Mapping[int, str], holders: int, depth: int) -> Sequence[PrefixMatch]:
    """The executors of a mask, by name backwards: the whole list is turned round at the end."""
    found = []
    while holders:
        bit = holders & -holders
        holders ^= bit
        found.append(names[bit])
    found.sort(reverse=True)
    return [PrefixMatch(name, depth) for name in found]
