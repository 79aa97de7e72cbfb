"""What an executor's prefix cache holds, followed from its events: what a snapshot is made of."""

from collections.abc import Iterable

from libs.kvcache.values import BlockEvent, CacheInfo, CacheState, CacheTier


class CacheMirror:
    """The stored blocks of one pool on this executor, by tier. A block may lie in several.

    Bounded by what the engine has in each tier.
    """

    def __init__(self, info: CacheInfo) -> None:
        self.info = info
        self._tiers: dict[CacheTier, set[int]] = {tier: set() for tier in CacheTier}

    def apply(self, events: Iterable[BlockEvent]) -> None:
        """Takes changes in, in order."""
        for event in events:
            if event.kind == "stored":
                self._tiers[event.tier].update(event.hashes)
            elif event.kind == "removed":
                self._tiers[event.tier].difference_update(event.hashes)
            else:
                for hashes in self._tiers.values():
                    hashes.clear()

    def state(self) -> CacheState:
        """The pool's part of a snapshot."""
        return CacheState(self.info, *(list(self._tiers[tier]) for tier in CacheTier))
