"""Which prefixes are worth having everywhere: those that works find again and again. Pure.

A space-saving sketch (Metwally, Agrawal and El Abbadi, "Efficient computation of frequent and top-k elements in
data streams", ICDT 2005) over the prefixes that were found: the block at which a match ended names it. A prefix
weighs as many tokens as it spared, so that a long system prompt beats a short one. Weights are halved now and
then: what was hot yesterday gives way. Tokens are kept, because a hash cannot be computed again; but only from the
second time on: most prefixes are found once, and copying a long one for each work would cost more than all else here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from libs.lane.work import Work

MOST = 64
"""Prefixes that are kept; a further one takes the place, and the weight, of the lightest."""
MOST_TOKENS = 32_768
"""A longer prefix is not kept."""
HALVE_AFTER = 10_000
"""Matches after which all weights are halved."""


@dataclass(frozen=True, slots=True)
class Prefix:
    """Leading blocks that works share."""

    tokens: Sequence[int]
    hashes: Sequence[int]
    adapter: str
    salt: str
    model: str


class _Kept:
    __slots__ = ("prefix", "weight")

    def __init__(self, weight: float) -> None:
        self.prefix: Prefix | None = None
        """None until it was found again."""
        self.weight = weight


class Hot:
    """The hot prefixes of one pool. Bounded by MOST × MOST_TOKENS tokens."""

    def __init__(self) -> None:
        self._kept: dict[int, _Kept] = {}
        self._matches = 0

    def found(self, work: Work, blocks: int) -> None:
        """A work found its first `blocks` blocks remembered."""
        hashes, tokens = work.block_hashes, blocks * work.block_tokens
        if not blocks or tokens > MOST_TOKENS:
            return
        self._matches += 1
        if self._matches % HALVE_AFTER == 0:
            for kept in self._kept.values():
                kept.weight /= 2
        known = self._kept.get(hashes[blocks - 1])
        if known is not None:
            known.weight += tokens
            if known.prefix is None:
                known.prefix = Prefix(
                    tuple(work.prompt[:tokens]), tuple(hashes[:blocks]), work.adapter, work.salt, work.model
                )
            return
        weight = float(tokens)
        if len(self._kept) >= MOST:
            lightest = min(self._kept, key=lambda block: self._kept[block].weight)
            weight += self._kept.pop(lightest).weight
        self._kept[hashes[blocks - 1]] = _Kept(weight)

    def hottest(self, most: int) -> list[Prefix]:
        """At most `most` prefixes that were found more than once, the hottest first. One that only leads into a
        hotter one is left out."""
        chosen: list[Prefix] = []
        for kept in sorted(self._kept.values(), key=lambda kept: -kept.weight):
            if len(chosen) == most:
                break
            if kept.prefix is not None and not any(_leads_into(kept.prefix, other) for other in chosen):
                chosen.append(kept.prefix)
        return chosen


def _leads_into(prefix: Prefix, other: Prefix) -> bool:
    length = len(prefix.hashes)
    return length <= len(other.hashes) and other.hashes[length - 1] == prefix.hashes[-1]
