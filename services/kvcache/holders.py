"""Holder sets: who holds a block, on which tier, as a number.

The blocks of one prefix have the same holders, so millions of blocks share few sets (at most one per executor, and
some for each prefix that several hold). A set is interned: equal sets have one number, 0 being the empty one. A block
that an executor stores or drops goes over to another set; the sets count their blocks, and go with the last one.

An executor that is forgotten leaves every set, in place: that takes time in proportion to the sets, not to the
blocks. It leaves sets that are *stale*: empty ones with blocks, and some that are equal to others. Both work, they
only take room; `canonical` says what to replace them with when somebody comes by.
"""

import sys

Tiers = tuple[int, int, int]
"""Bit masks of executors: who has it on the device, on the host, on disk. One executor may be in several."""

_EMPTY: Tiers = (0, 0, 0)


class HolderSets:
    """Memory: 300 bytes for a set of some of 1,000 executors, and 1,000 if it is not on devices alone.

    Bounded by the number of blocks: a set without blocks is gone. Were every block to have holders of its own, three
    of 1,000, a block would take 340 bytes, and to forget an executor 0.15 µs for each.
    """

    __slots__ = ("_free", "_numbers", "blocks", "every", "tiers")

    def __init__(self) -> None:
        self.every: list[int] = [0]
        """By number: who holds it, on whatever tier."""
        self.tiers: dict[int, Tiers] = {}
        """By number, for the sets where it is not on the device alone."""
        self.blocks: list[int] = [0]
        """By number: how many blocks have this set; of the empty set, nobody counts them."""
        self._numbers: dict[int | Tiers, int] = {0: 0}
        self._free: list[int] = []

    def __len__(self) -> int:
        """Sets that have blocks, stale ones included."""
        return len(self.every) - len(self._free) - 1

    @property
    def stale(self) -> int:
        """Sets that are equal to another, or empty."""
        return len(self) + 1 - len(self._numbers)

    @property
    def memory_bytes(self) -> int:
        """Memory taken, about: looks at every set."""
        lists = sum(map(sys.getsizeof, (self.every, self.blocks, self._numbers, self.tiers, self._free)))
        masks = sum(map(sys.getsizeof, self.every)) + 32 * len(self)
        return lists + masks + sum(sys.getsizeof(one) + sum(map(sys.getsizeof, one)) for one in self.tiers.values())

    def of(self, number: int) -> Tiers:
        """The masks of a set."""
        return self.tiers.get(number) or (self.every[number], 0, 0)

    def stored(self, number: int, bit: int, tier: int) -> int:
        """The set with an executor added; `tier` is the place in Tiers."""
        if not tier and number not in self.tiers:
            return self._number(self.every[number] | bit)
        masks = list(self.of(number))
        masks[tier] |= bit
        return self._number_of((masks[0], masks[1], masks[2]))

    def removed(self, number: int, bit: int, tier: int) -> int:
        """The set without an executor on one tier."""
        if number not in self.tiers:
            return number if tier else self._number(self.every[number] & ~bit)
        masks = list(self.of(number))
        masks[tier] &= ~bit
        return self._number_of((masks[0], masks[1], masks[2]))

    def canonical(self, number: int) -> int:
        """The set to use in place of this one: itself, unless it is stale."""
        return self._numbers.setdefault(_key(self.of(number)), number) if number else 0

    def move(self, old: int, new: int, blocks: int) -> None:
        """Blocks went from one set to another one."""
        if new:
            self.blocks[new] += blocks
        if old:
            self.blocks[old] -= blocks
            if not self.blocks[old]:
                self._drop(old)

    def forget(self, bit: int) -> int:
        """Takes an executor out of every set, in place; returns how many blocks nobody holds now."""
        deserted = 0
        for number in [number for number, mask in enumerate(self.every) if mask & bit]:
            device, host, disk = self.of(number)
            self._unname(number)
            masks = device & ~bit, host & ~bit, disk & ~bit
            self._set(number, masks)
            if masks == _EMPTY:
                deserted += self.blocks[number]
            else:
                self._numbers.setdefault(_key(masks), number)
        return deserted

    def check_integrity(self, blocks: dict[int, int]) -> None:
        """Raises AssertionError unless everything adds up with the blocks counted by set."""
        free = set(self._free)
        living = {number: count for number, count in enumerate(self.blocks) if number and number not in free}
        if living != blocks or len(free) != len(self._free) or any(self.blocks[number] for number in free):
            raise AssertionError("the holder sets do not count their blocks")
        for number, every in enumerate(self.every):
            device, host, disk = self.of(number)
            if every != device | host | disk or (number in self.tiers) != bool(host | disk):
                raise AssertionError(f"the masks of holder set {number} do not add up")
        if any(_key(self.of(number)) != key or number in free for key, number in self._numbers.items()):
            raise AssertionError("a holder set goes by a wrong name")

    def _number_of(self, masks: Tiers) -> int:
        return self._number(_key(masks))

    def _number(self, key: int | Tiers) -> int:
        number = self._numbers.get(key)
        if number is None:
            if self._free:
                number = self._free.pop()
            else:
                number = len(self.every)
                self.every.append(0)
                self.blocks.append(0)
            self._numbers[key] = number
            self._set(number, (key, 0, 0) if isinstance(key, int) else key)
        return number

    def _set(self, number: int, masks: Tiers) -> None:
        device, host, disk = masks
        if host | disk:
            self.tiers[number] = masks
            self.every[number] = device | host | disk
        else:
            self.tiers.pop(number, None)
            self.every[number] = device

    def _drop(self, number: int) -> None:
        self._unname(number)
        self._set(number, _EMPTY)
        self._free.append(number)

    def _unname(self, number: int) -> None:
        key = _key(self.of(number))
        if number and self._numbers.get(key) == number:
            del self._numbers[key]


def _key(masks: Tiers) -> int | Tiers:
    """What a set is known by: most are on devices alone, and one mask says all."""
    return masks if masks[1] | masks[2] else masks[0]
