"""What an executor's prefix cache holds, followed from its events: what a snapshot is made of."""

from collections.abc import Iterable

from libs.kvcache.values import BlockEvent, CacheInfo, CacheState


class CacheMirror:
    """The stored blocks of one pool on this executor. Bounded by the engine's blocks."""

    def __init__(self, info: CacheInfo) -> None:
        self.info = info
        self._hashes: set[int] = set()

    def apply(self, events: Iterable[BlockEvent]) -> None:
        """Takes changes in, in order."""
        for event in events:
            if event.kind == "stored":
                self._hashes.update(event.hashes)
            elif event.kind == "removed":
                self._hashes.difference_update(event.hashes)
            else:
                self._hashes.clear()

    def state(self) -> CacheState:
        """The pool's part of a snapshot."""
        return CacheState(self.info, list(self._hashes))
