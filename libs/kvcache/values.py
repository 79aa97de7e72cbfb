"""What is said to the KV-cache manager and by it, as plain values; the messages are headrace.kvcache.v1."""

from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import Literal

import msgspec

Hashes = Sequence[int]
"""Chained block hashes (libs.tokens.blocks), first block first: unsigned 64-bit integers."""


class CacheTier(IntEnum):
    """Where an engine keeps a block; the numbers are those of headrace.kvcache.v1.CacheTier."""

    DEVICE = 1
    HOST = 2
    DISK = 3


class Exactness(IntEnum):
    """How true block events are; the numbers are those of headrace.kvcache.v1.Exactness."""

    EXACT = 1
    MODELLED = 2


class BlockEvent(msgspec.Struct, frozen=True):
    """A change of a prefix cache, in the order in which it happened."""

    kind: Literal["stored", "removed", "cleared"]
    hashes: Hashes = ()
    tier: CacheTier = CacheTier.DEVICE
    """Where they were stored, or removed from; `cleared` means every tier."""


class CacheInfo(msgspec.Struct, frozen=True):
    """What a pool's cache on an executor is."""

    pool: str
    capacity: int
    """Blocks that the engine has in all."""
    block_tokens: int
    exactness: Exactness


class CacheState(msgspec.Struct, frozen=True):
    """A pool's cache on an executor, and what is in it."""

    info: CacheInfo
    hashes: Hashes
    """Blocks that are stored on the device, in any order."""
    host_hashes: Hashes = ()
    disk_hashes: Hashes = ()

    def tiers(self) -> Iterator[tuple[CacheTier, Hashes]]:
        """What lies in each tier, the cheapest to use first."""
        yield CacheTier.DEVICE, self.hashes
        yield CacheTier.HOST, self.host_hashes
        yield CacheTier.DISK, self.disk_hashes


class Question(msgspec.Struct, frozen=True):
    """Where does this prefix lie, and does the work fit on this executor?"""

    id: int
    """Numbers question and reservation; unique within the batcher's process. Asked again for what is reserved
    already, it changes the number of blocks; refused, it leaves what was."""
    pool: str
    block_hashes: Hashes = ()
    executor: str = ""
    """Where to reserve; empty only asks."""
    blocks: int = 0
    """Blocks to reserve there."""
    traceparent: str = ""


class PrefixMatch(msgspec.Struct, frozen=True):
    """How much of a prefix an executor holds."""

    executor: str
    blocks: int
    """Leading blocks, in whatever tier."""
    host_blocks: int = 0
    """Of these, blocks that lie on the host at best."""
    disk_blocks: int = 0
    """Of these, blocks that lie on disk only."""

    @property
    def device_blocks(self) -> int:
        """Of these, blocks that lie on the device."""
        return self.blocks - self.host_blocks - self.disk_blocks


class Answer(msgspec.Struct, frozen=True):
    """The answer to a Question."""

    matches: Sequence[PrefixMatch]
    """Executors that hold some of the prefix, best first; the one asked about is always among them if it
    holds any, the others may be cut off."""
    reserved: bool
    free_blocks: int
    """Blocks that are free on the executor asked about, after this reservation."""

    def matched(self, executor: str) -> int:
        """Leading blocks of the prefix that an executor holds, in whatever tier."""
        return next((match.blocks for match in self.matches if match.executor == executor), 0)


class Reservation(msgspec.Struct, frozen=True):
    """Blocks held for one work on one executor."""

    id: int
    """The question's."""
    executor: str
    pool: str
    blocks: int
