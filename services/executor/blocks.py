"""A paged KV cache with a prefix cache, as bookkeeping alone: which blocks are used, which remembered.

The simulated engine runs on it; the OpenVINO engine is modelled by it. Blocks have no numbers here, for
nothing is stored in them: a block is either private to a work and counted, or full, published under its
chained hash and shared by reference count. Paging follows vLLM's PagedAttention (Kwon et al., SOSP 2023),
prefix caching vLLM's automatic prefix caching: blocks without references stay until they are the least
recently used ones and room is needed.

Behind the device there may be a second tier in the host's memory, as in TensorRT-LLM (KvCacheConfig's
host_cache_size): a block that has to leave the device goes there, and a prefix that is found there comes back. A block
lies in one tier at a time. The host forgets what came first.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from libs.kvcache.values import CacheTier
from services.executor.engine import BlockEvent

_Kind = Literal["stored", "removed", "cleared"]
_DEVICE, _HOST = CacheTier.DEVICE, CacheTier.HOST


@dataclass(frozen=True, slots=True)
class Allocation:
    """What a work was given."""

    blocks: int
    """Blocks that it holds now, shared ones included."""
    cached_blocks: int
    """Of these, leading blocks that need not be computed."""
    host_blocks: int = 0
    """Of those, blocks that are brought back from the host."""


class _Holding:
    __slots__ = ("private", "shared")

    def __init__(self, shared: list[int], private: int) -> None:
        self.shared = shared
        """Hashes of its leading blocks, published or found."""
        self.private = private
        """Blocks behind those."""


class PagedBlocks:
    """Blocks of one engine. Every call is a constant amount of work per block that it touches.

    Bounded by the capacity of both tiers; events accumulate until `drain_events`, so drain after every step.

    Args:
        capacity_blocks: Blocks on the device; at least 1.
        block_tokens: Tokens per block; at least 1.
        host_blocks: Blocks of the second tier; 0 means that there is none.
    """

    def __init__(self, capacity_blocks: int, block_tokens: int, host_blocks: int = 0) -> None:
        if capacity_blocks < 1 or block_tokens < 1 or host_blocks < 0:
            raise ValueError(f"{capacity_blocks} and {host_blocks} blocks of {block_tokens} tokens hold nothing")
        self.capacity_blocks = capacity_blocks
        self.block_tokens = block_tokens
        self.host_blocks = host_blocks
        self._holdings: dict[int, _Holding] = {}
        self._references: dict[int, int] = {}  # published blocks in use: hash → works that hold it
        self._idle: dict[int, None] = {}  # published blocks nobody holds, least recently used first
        self._host: dict[int, None] = {}  # in the second tier, first come first
        self._private = 0
        self._events: list[tuple[_Kind, CacheTier, list[int]]] = []

    @property
    def used(self) -> int:
        """Blocks of the device that works hold."""
        return len(self._references) + self._private

    @property
    def cached(self) -> int:
        """Blocks of the device that are kept for their prefix alone and can be evicted."""
        return len(self._idle)

    @property
    def on_host(self) -> int:
        """Blocks in the second tier."""
        return len(self._host)

    def match(self, hashes: Sequence[int]) -> int:
        """How many leading blocks are here, in whatever tier. Does not modify the cache."""
        for index, block in enumerate(hashes):
            if block not in self._references and block not in self._idle and block not in self._host:
                return index
        return len(hashes)

    def allocate(self, work_id: int, hashes: Sequence[int], total_tokens: int) -> Allocation | None:
        """Gives a work blocks for `total_tokens`, as many as possible from the cache.

        The last token is always left to compute: an engine needs its output. None, and nothing changes,
        when the blocks do not fit beside those of the other works. Raises ValueError when the work holds
        blocks already or has no tokens.
        """
        if work_id in self._holdings or total_tokens < 1:
            raise ValueError(f"work {work_id} has blocks already, or no tokens ({total_tokens})")
        found = list(hashes[: self.match(hashes[: (total_tokens - 1) // self.block_tokens])])
        private = self._blocks_for(total_tokens) - len(found)
        revived = [block for block in dict.fromkeys(found) if block in self._idle]
        brought = [block for block in dict.fromkeys(found) if block in self._host] if self._host else []
        if private > self._room() - len(revived) - len(brought):
            return None
        for block in revived:
            del self._idle[block]
        for block in found:
            self._references[block] = self._references.get(block, 0) + 1
        if brought:
            self._leave_host(brought)
        self._take(private)
        if brought:
            self._note("stored", _DEVICE, brought)
        self._holdings[work_id] = _Holding(found, private)
        return Allocation(len(found) + private, len(found), len(brought))

    def grow(self, work_id: int, total_tokens: int) -> bool:
        """Gives a work what it lacks for `total_tokens`. False, and nothing changes, when it does not fit."""
        holding = self._holdings[work_id]
        missing = self._blocks_for(total_tokens) - len(holding.shared) - holding.private
        if missing <= 0:
            return True
        if missing > self._room():
            return False
        self._take(missing)
        holding.private += missing
        return True

    def publish(self, work_id: int, hashes: Sequence[int]) -> None:
        """Makes the leading blocks of a work findable: it has filled those with these hashes, from its first
        block on. A block that another work published first is given up for that one."""
        holding = self._holdings[work_id]
        fresh = hashes[len(holding.shared) :]
        if len(fresh) > holding.private:
            raise ValueError(f"work {work_id} publishes {len(fresh)} blocks and has {holding.private}")
        stored = []
        for block in fresh:
            if block not in self._references and block not in self._idle:
                stored.append(block)
            self._idle.pop(block, None)
            self._references[block] = self._references.get(block, 0) + 1
        holding.shared += fresh
        holding.private -= len(fresh)
        self._private -= len(fresh)
        if stored:
            self._note("stored", _DEVICE, stored)
            if self._host and (again := [block for block in stored if block in self._host]):
                self._leave_host(again)  # its prefix was not there: it had to be computed

    def free(self, work_id: int, hashes: Sequence[int] = ()) -> None:
        """Takes a work's blocks back, after publishing `hashes`; published ones stay until evicted."""
        self.publish(work_id, hashes)
        holding = self._holdings.pop(work_id)
        self._private -= holding.private
        # The end of a prefix becomes the oldest: a prefix without its start is worth nothing.
        for block in reversed(holding.shared):
            references = self._references[block] - 1
            if references:
                self._references[block] = references
            else:
                del self._references[block]
                self._idle[block] = None

    def clear(self) -> None:
        """Drops what no work holds, in both tiers. What works hold stays findable and is told again as stored."""
        self._idle.clear()
        self._host.clear()
        self._note("cleared", _DEVICE, [])
        if self._references:
            self._note("stored", _DEVICE, list(self._references))

    def drain_events(self) -> list[BlockEvent]:
        """What has changed since the last call, in order."""
        events, self._events = self._events, []
        return [BlockEvent(kind, tuple(hashes), tier) for kind, tier, hashes in events]

    def check_integrity(self) -> None:
        """Raises AssertionError if the books do not add up. Looks at everything: for tests."""
        holdings = self._holdings.values()
        references = Counter(block for holding in holdings for block in holding.shared)
        faults = {
            "references": references != self._references,
            "private": sum(holding.private for holding in holdings) != self._private,
            "negative": any(holding.private < 0 for holding in holdings),
            "idle and used": bool(self._references.keys() & self._idle.keys()),
            "in both tiers": bool(self._host and self._host.keys() & (self._references.keys() | self._idle.keys())),
            "capacity": self._room() < 0 or self.used + self.cached > self.capacity_blocks,
            "capacity of the host": self.on_host > self.host_blocks,
        }
        if any(faults.values()):
            raise AssertionError(f"blocks do not add up: {[name for name, wrong in faults.items() if wrong]}")

    def _blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_tokens)

    def _room(self) -> int:
        """Blocks that works could have, if the cache gave way."""
        return self.capacity_blocks - self.used

    def _take(self, count: int) -> None:
        """Makes `count` blocks private, evicting what is in the way. They must fit."""
        self._private += count
        excess = self.used + self.cached - self.capacity_blocks
        if excess > 0:
            removed = list(islice(self._idle, excess))
            for block in removed:
                del self._idle[block]
            self._note("removed", _DEVICE, removed)
            if self.host_blocks:
                self._enter_host(removed)

    def _enter_host(self, blocks: list[int]) -> None:
        """Keeps blocks that have left the device; of more than there is room for, the last."""
        kept = blocks[-self.host_blocks :]
        if (excess := self.on_host + len(kept) - self.host_blocks) > 0:
            self._leave_host(list(islice(self._host, excess)))
        self._host.update(dict.fromkeys(kept))
        self._note("stored", _HOST, kept)

    def _leave_host(self, blocks: list[int]) -> None:
        for block in blocks:
            del self._host[block]
        self._note("removed", _HOST, blocks)

    def _note(self, kind: _Kind, tier: CacheTier, hashes: list[int]) -> None:
        if self._events and self._events[-1][:2] == (kind, tier):
            self._events[-1][2].extend(hashes)
        else:
            self._events.append((kind, tier, hashes.copy()))
