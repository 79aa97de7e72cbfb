"""The prefix index of one pool: its blocks, its holder sets, and the executors that these are made of."""

from collections.abc import Sequence

import numpy as np

from libs.kvcache.values import Hashes, PrefixMatch
from services.kvcache.holders import HolderSets
from services.kvcache.index_table import BlockTable, Moves

SWEEP_SHARE, SWEEP_SETS = 8, 1024
"""Swept when one block in so many is held by nobody, or when more sets than this, and than the rest, are stale."""
MANY, KEPT = 64, 64
"""From here on, the bits of a mask are found all at once; and so many of the last answers are kept: everybody asks
about a prefix that everybody holds."""


class PoolIndex:
    """Executors have numbers, the lowest that is free, and a bit each in the masks of holder sets."""

    def __init__(self) -> None:
        self._table = BlockTable()
        self._sets = HolderSets()
        self._numbers: dict[str, int] = {}
        self._names: list[str | None] = []
        """By number; None for one that is free."""
        self._sizes: list[int] = []
        """Blocks, by number."""
        self._kept: dict[tuple[int, int], list[PrefixMatch]] = {}
        """By mask and depth; emptied when a number comes free, for another executor may get it."""
        self._deserted = 0
        """Blocks in the table that nobody holds."""

    @property
    def empty(self) -> bool:
        """Whether nobody holds anything."""
        return not self._numbers

    @property
    def memory_bytes(self) -> int:
        """Memory taken by table and sets."""
        return self._table.memory_bytes + self._sets.memory_bytes

    def size(self, executor: str) -> int:
        """Blocks that an executor holds."""
        number = self._numbers.get(executor)
        return 0 if number is None else self._sizes[number]

    def store(self, executor: str, tier: int, hashes: Hashes, most: int) -> int:
        """An executor has blocks on a tier (a place in Tiers) from now on, but no more blocks than `most` in all;
        returns for how many there was no room."""
        if not hashes:
            return 0
        number = self._number(executor)
        bit, sets = 1 << number, self._sets
        refused = 0
        if self._sizes[number] + len(hashes) > most:
            hashes, refused = self._cut(number, hashes, most)
        self._settle(self._table.change(hashes, lambda old: sets.stored(old, bit, tier)), number)
        return refused

    def remove(self, executor: str, tier: int, hashes: Hashes) -> None:
        """An executor has blocks on a tier no more."""
        number = self._numbers.get(executor)
        if number is None or not hashes:
            return
        bit, sets = 1 << number, self._sets
        self._settle(self._table.change(hashes, lambda old: sets.removed(old, bit, tier)), number)

    def forget(self, executor: str) -> None:
        """Drops all that an executor holds; takes time in proportion to the holder sets."""
        number = self._numbers.get(executor)
        if number is None:
            return
        self._deserted += self._sets.forget(1 << number)
        self._sizes[number] = 0
        self._leave_if_empty(number)
        sets = self._sets
        if self._deserted * SWEEP_SHARE > self._table.used or sets.stale > SWEEP_SETS + len(sets) // 2:
            self._table.sweep()

    def snapshot(self, executor: str, tiers: Sequence[Hashes], most: int) -> int:
        """Replaces what an executor holds; `tiers` has the blocks by place in Tiers. See `store` for the rest."""
        self.forget(executor)
        return sum(self.store(executor, tier, hashes, most) for tier, hashes in enumerate(tiers))

    def match(self, hashes: Hashes) -> list[PrefixMatch]:
        """See PrefixIndex.match."""
        numbers, lengths = self._table.leading(hashes)
        every, tiers = self._sets.every, self._sets.tiers
        lower: dict[int, list[int]] = {}
        groups: list[tuple[int, int]] = []
        holders, depth = -1, 0
        for number, length in zip(numbers, lengths, strict=True):
            still = holders & every[number]
            if still != holders:
                if depth:
                    groups.append((holders & ~still, depth))
                holders = still
                if not still:
                    break
            depth += length
            if number in tiers:
                self._count_lower(number, holders, length, lower)
        if holders > 0:
            groups.append((holders, depth))
        matches: list[PrefixMatch] = []
        for mask, blocks in reversed(groups):
            matches += self._matches(mask, blocks, lower)
        return matches

    def check_integrity(self) -> None:
        """Raises AssertionError if anything does not add up. Looks at everything."""
        blocks: dict[int, int] = {}
        for _, held in self._table.content():
            blocks[held] = blocks.get(held, 0) + 1
        self._sets.check_integrity(blocks)
        sizes = [0] * len(self._names)
        for held, count in blocks.items():
            for number in _bits(self._sets.every[held]):
                sizes[number] += count
        if sizes != self._sizes or any(
            bool(size) == (name is None) for size, name in zip(sizes, self._names, strict=True)
        ):
            raise AssertionError("the sizes of executors do not add up")
        if {name: number for number, name in enumerate(self._names) if name is not None} != self._numbers:
            raise AssertionError("the numbers of executors do not add up")
        if self._deserted != sum(count for held, count in blocks.items() if not self._sets.every[held]):
            raise AssertionError("the blocks that nobody holds do not add up")
        for (mask, depth), matches in self._kept.items():
            if matches != [PrefixMatch(name, depth) for name in sorted(str(self._names[one]) for one in _bits(mask))]:
                raise AssertionError("an answer that was kept is wrong")

    def _number(self, executor: str) -> int:
        number = self._numbers.get(executor)
        if number is None:
            if None in self._names:
                number = self._names.index(None)
                self._names[number] = executor
            else:
                number = len(self._names)
                self._names.append(executor)
                self._sizes.append(0)
            self._numbers[executor] = number
        return number

    def _leave_if_empty(self, number: int) -> None:
        executor = self._names[number]
        if executor is not None and not self._sizes[number]:
            del self._numbers[executor]
            self._names[number] = None
            self._kept.clear()

    def _cut(self, number: int, hashes: Hashes, most: int) -> tuple[Hashes, int]:
        """Leaves out what there is no room for; returns the rest and how many those are."""
        bit, room, fitting, refused = 1 << number, most - self._sizes[number], [], 0
        distinct = list(dict.fromkeys(hashes))
        for key, held in zip(distinct, map(self._table.get, distinct), strict=True):
            if not self._sets.every[held] & bit:
                if not room:
                    refused += 1
                    continue
                room -= 1
            fitting.append(key)
        return fitting, refused

    def _settle(self, moves: Moves, number: int) -> None:
        """Counts blocks that moved because of an executor, and does the upkeep that they owe."""
        sets, bit, gained = self._sets, 1 << number, 0
        every = sets.every
        for old, new, blocks in moves:
            before = every[old]
            gained += blocks * (bool(every[new] & bit) - bool(before & bit))
            if old and not before:
                self._deserted -= blocks
            sets.move(old, new, blocks)
        self._sizes[number] += gained
        if self._table.busy and (moves := self._table.upkeep(sets.canonical)):
            self._settle(moves, number)
        if not self._sizes[number]:
            self._leave_if_empty(number)

    def _count_lower(self, held: int, holders: int, blocks: int, lower: dict[int, list[int]]) -> None:
        """Adds up, by executor, the blocks that lie on host or disk at best."""
        device, host, disk = self._sets.tiers[held]
        for place, mask in enumerate((host & ~device, disk & ~host & ~device)):
            for number in _bits(mask & holders):
                lower.setdefault(number, [0, 0])[place] += blocks

    def _matches(self, mask: int, depth: int, lower: dict[int, list[int]]) -> list[PrefixMatch]:
        """The executors of a mask, by name."""
        others = [number for number in lower if mask >> number & 1]
        for number in others:
            mask ^= 1 << number
        matches = self._kept.get((mask, depth))
        if matches is None:
            found = sorted([str(self._names[number]) for number in _bits(mask)])
            matches = [PrefixMatch(name, depth) for name in found]
            if len(self._kept) >= KEPT:
                self._kept.clear()
            self._kept[mask, depth] = matches
        if others:
            matches = matches + [PrefixMatch(str(self._names[number]), depth, *lower[number]) for number in others]
            matches.sort(key=lambda match: match.executor)
        return matches


def _bits(mask: int) -> list[int]:
    """Places of the bits that are set, lowest first."""
    if mask.bit_count() >= MANY:
        packed = np.frombuffer(mask.to_bytes(mask.bit_length() // 8 + 1, "little"), np.uint8)
        places: list[int] = np.unpackbits(packed, bitorder="little").nonzero()[0].tolist()
        return places
    places = []
    while mask:
        bit = mask & -mask
        places.append(bit.bit_length() - 1)
        mask ^= bit
    return places
