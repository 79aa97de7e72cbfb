"""The prefix index: which executors hold which blocks, and from that, how much of a prompt each one holds.

Flat, after the kind of index that NVIDIA Dynamo's router keeps over a tree: because a block's hash chains
over all blocks in front of it, the hash alone names the prefix, and a lookup is a walk along the prompt's
hashes that stops where nobody holds the next one. Per pool one table, hash → number of a holder set
(index_table.py), and the sets (holders.py). Nothing is kept per executor: an executor that goes leaves the sets.

Measured against three other designs (tests/bench/kv_index.py, which has them; 400,000 blocks of one holder on 100
executors; two cores that others kept busy):

    design                            bytes per block   lookup of 512   events of 24, blocks/s   forget
    this one                                       39           53 µs                 1.1 million   0.01 ms
    dict of masks, set per executor               168          186 µs                 2.0 million    1.4 ms
    dict of interned sets                         101          206 µs                 2.0 million     10 ms
    sorted array per executor                      14          204 µs                0.04 million      0 ms

Dicts take events at twice the speed, for they have no fixed cost per event; but each request asks about a whole
chain, and ten million blocks of theirs are 1 to 2 GB, which also lie too far apart for the processor's caches. The
array's lookup grows with the executors. Here, ten million blocks on 1,000 executors take 23 bytes each; a chain of 64
blocks is found in 18 µs and one of 8 in 11, in 15 and 7 µs where the table fits into the caches; messages of twenty
events are taken in at 1.3 million blocks/s, and at 2.0; and 1,000 snapshots make it whole at 0.4 s per million blocks.
"""

from collections.abc import Sequence

from libs.kvcache.values import BlockEvent, CacheState, CacheTier, Hashes, PrefixMatch
from services.kvcache.index_pool import PoolIndex

MAX_BLOCKS = 1 << 20
"""Blocks that one executor may have in one pool; what comes beyond is not taken in. (65 million tokens in
blocks of 64.)"""


class PrefixIndex:
    """What is remembered where. Everything is soft: forgotten, it comes back with the next snapshot.

    Bounded by MAX_BLOCKS per executor and pool; whoever calls bounds the number of executors and pools.
    """

    def __init__(self) -> None:
        self._pools: dict[str, PoolIndex] = {}

    @property
    def memory_bytes(self) -> int:
        """Memory taken, about. Takes time in proportion to the holder sets."""
        return sum(pool.memory_bytes for pool in self._pools.values())

    def apply(self, executor: str, pool: str, events: Sequence[BlockEvent]) -> int:
        """Takes changes in; returns how many blocks there was no room for. Storing what is stored and removing what
        is not there change nothing. Many at once cost less than each alone."""
        refused = 0
        for event in _together(events) if len(events) > 1 else events:
            if event.kind == "stored":
                entry = self._pools.get(pool) or self._pools.setdefault(pool, PoolIndex())
                refused += entry.store(executor, event.tier - 1, event.hashes, MAX_BLOCKS)
            elif known := self._pools.get(pool):
                if event.kind == "removed":
                    known.remove(executor, event.tier - 1, event.hashes)
                else:
                    known.forget(executor)
        self._drop_if_empty(pool)
        return refused

    def snapshot(self, executor: str, pool: str, state: CacheState) -> int:
        """Replaces what was known of an executor's blocks, in all tiers; returns how many there was no room for."""
        entry = self._pools.get(pool) or self._pools.setdefault(pool, PoolIndex())
        refused = entry.snapshot(executor, (state.hashes, state.host_hashes, state.disk_hashes), MAX_BLOCKS)
        self._drop_if_empty(pool)
        return refused

    def forget(self, executor: str, pool: str | None = None) -> None:
        """Drops an executor, or what it holds of one pool."""
        for name in list(self._pools) if pool is None else [pool]:
            if entry := self._pools.get(name):
                entry.forget(executor)
                self._drop_if_empty(name)

    def match(self, pool: str, hashes: Hashes) -> list[PrefixMatch]:
        """Executors that hold leading blocks, most blocks first, equals by name. Does not modify the index."""
        entry = self._pools.get(pool)
        return entry.match(hashes) if entry else []

    def size(self, executor: str, pool: str) -> int:
        """Blocks of an executor in a pool, each counted once."""
        entry = self._pools.get(pool)
        return entry.size(executor) if entry else 0

    def check_integrity(self) -> None:
        """Raises AssertionError if anything does not add up. Looks at everything: for tests."""
        for pool in self._pools.values():
            pool.check_integrity()

    def _drop_if_empty(self, pool: str) -> None:
        entry = self._pools.get(pool)
        if entry and entry.empty:
            del self._pools[pool]


def _together(events: Sequence[BlockEvent]) -> list[BlockEvent]:
    """What a row of events comes to, in few: of all that is said of a block on a tier the last word counts. What goes
    is told before what comes, which needs the room."""
    tiers: dict[CacheTier, tuple[set[int], set[int]]] = {}
    cleared: list[BlockEvent] = []
    for event in events:
        if event.kind == "cleared":
            tiers.clear()
            cleared = [event]
            continue
        gone, come = tiers.setdefault(event.tier, (set(), set()))
        here, there = (come, gone) if event.kind == "stored" else (gone, come)
        here.update(event.hashes)
        if there:
            there.difference_update(event.hashes)
    removed = [BlockEvent("removed", list(gone), tier) for tier, (gone, _) in tiers.items()]
    return cleared + removed + [BlockEvent("stored", list(come), tier) for tier, (_, come) in tiers.items()]
