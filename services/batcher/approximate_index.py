"""What the KV-cache manager said lately, for prompts that begin as others did. Pure.

Where most prompts share a system prompt and go on each in its own way, the manager's answers are all alike: who has the
system prompt, and nothing beyond. To ask about each of them costs more than it tells (worth.py). Routers without
block events guess in this way what engines remember (SGLang's router; llm-d's and Dynamo's "approximate" indexes), from
what they sent; this one keeps answers, so it knows of what others sent, too, and what engines have evicted.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec

from libs.kvcache.values import PrefixMatch
from services.batcher.held import NOTHING
from services.batcher.policies.policy import Match
from services.batcher.remembered import matches_of

MOST = 64
"""Prefixes that are kept: those that were heard of last."""
STALE_S = 1.0
"""What was heard longer ago is not known any more, in seconds."""


class _Prefix(msgspec.Struct):
    """Named by its last block, which says all of it."""

    blocks: int
    holders: Sequence[PrefixMatch]
    heard_at: float


class ApproximateIndex:
    """Of one pool. Bounded by MOST prefixes, each with the executors of the pool."""

    def __init__(self) -> None:
        self._prefixes: dict[int, _Prefix] = {}
        """The one that was heard of last comes last."""
        self._lengths: Counter[int] = Counter()
        """How many of these have so many blocks."""

    def heard(self, hashes: Sequence[int], matches: Sequence[PrefixMatch], now: float) -> None:
        """Takes in an answer: it says what is remembered where a match ends, and what is no longer.

        Args:
            hashes: Of all blocks of the prompt.
        """
        ends = {match.blocks for match in matches}
        for blocks in self._lengths.keys() | ends:
            if not 0 < blocks <= len(hashes):
                continue
            name = hashes[blocks - 1]
            known = self._prefixes.pop(name, None)
            if known is not None:
                self._count(blocks, -1)
            elif blocks not in ends:
                continue
            if holders := [_leading(match, blocks) for match in matches if match.blocks >= blocks]:
                self._prefixes[name] = _Prefix(blocks, holders, now)
                self._count(blocks, 1)
        while len(self._prefixes) > MOST:
            oldest = next(iter(self._prefixes))
            self._count(self._prefixes.pop(oldest).blocks, -1)

    def matches(self, hashes: Sequence[int], block_tokens: int, now: float) -> Mapping[str, Match]:
        """What executors likely remember of a prompt; nothing of whom it is not known."""
        found: dict[str, PrefixMatch] = {}
        for blocks in self._lengths:
            prefix = self._prefixes.get(hashes[blocks - 1]) if blocks <= len(hashes) else None
            if prefix is not None and now - prefix.heard_at <= STALE_S:
                for holder in prefix.holders:
                    if holder.executor not in found or found[holder.executor].blocks < blocks:
                        found[holder.executor] = holder
        return matches_of(list(found.values()), block_tokens) if found else NOTHING

    def check_integrity(self) -> None:
        """Raises AssertionError when lengths and prefixes disagree."""
        assert len(self._prefixes) <= MOST
        assert self._lengths == Counter(prefix.blocks for prefix in self._prefixes.values())

    def _count(self, blocks: int, more: int) -> None:
        self._lengths[blocks] += more
        if not self._lengths[blocks]:
            del self._lengths[blocks]


def _leading(match: PrefixMatch, blocks: int) -> PrefixMatch:
    """So many leading blocks of a match; those in the worse tiers are counted as the last ones."""
    device = min(match.device_blocks, blocks)
    host = min(match.host_blocks, blocks - device)
    return PrefixMatch(match.executor, blocks, host, blocks - device - host)
