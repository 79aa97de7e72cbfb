"""The keys of a hash table that found their row full."""

import sys
from collections.abc import Iterator, Sequence

_SHARDS = 64
_SHIFT = 64 - _SHARDS.bit_length() + 1


class Spill:
    """Keys and their set numbers in dicts: in so many that none takes long to grow. A key has 64 bits; the set 0 is
    that of keys that are not there. Memory: 130 bytes for a key."""

    __slots__ = ("_shards", "count")

    def __init__(self) -> None:
        self.count = 0
        """Keys in it."""
        self._shards: list[dict[int, int]] = [{} for _ in range(_SHARDS)]

    @property
    def memory_bytes(self) -> int:
        """Memory taken."""
        return sum(map(sys.getsizeof, self._shards)) + 32 * self.count

    def get(self, key: int) -> int:
        """The set of a key."""
        return self._shards[key >> _SHIFT].get(key, 0)

    def set(self, key: int, number: int) -> None:
        """Gives a key a set."""
        shard = self._shards[key >> _SHIFT]
        self.count -= len(shard)
        if number:
            shard[key] = number
        else:
            shard.pop(key, None)
        self.count += len(shard)

    def among(self, keys: Sequence[int]) -> list[bool]:
        """Which of the keys are here."""
        shards = self._shards
        return [key in shards[key >> _SHIFT] for key in keys]

    def items(self) -> Iterator[tuple[int, int]]:
        """All keys and sets."""
        for shard in self._shards:
            yield from shard.items()

    def parts(self, most: int) -> Iterator[list[int]]:
        """All keys, some at a time: those that are still there when their turn comes. What comes meanwhile may be
        left out."""
        for shard in self._shards:
            keys = list(shard)
            for start in range(0, len(keys), most):
                yield [key for key in keys[start : start + most] if key in shard]
