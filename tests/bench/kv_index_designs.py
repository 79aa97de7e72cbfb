"""Other ways to build the prefix index, in short: what services/kvcache is compared with.

All of them know executors by number, one pool, and the device only; their matches are pairs of executor and depth.
"""

from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from libs.kvcache.values import BlockEvent, Hashes
from services.kvcache.index import PrefixIndex


class Design(Protocol):
    """What is measured of each."""

    def store(self, executor: int, hashes: Hashes) -> None:
        """Blocks are there."""

    def remove(self, executor: int, hashes: Hashes) -> None:
        """Blocks are gone."""

    def forget(self, executor: int) -> None:
        """All of an executor's blocks are gone."""

    def match(self, hashes: Hashes) -> list[tuple[int, int]]:
        """Executors and how many leading blocks they hold, most first."""


def walk(hashes: Hashes, holders_of: Callable[[int], int]) -> list[tuple[int, int]]:
    """Follows the masks of a chain until nobody is left."""
    matches: list[tuple[int, int]] = []
    holders, depth = -1, 0
    for block in hashes:
        still = holders & holders_of(block)
        if still != holders and depth:
            matches += [(executor, depth) for executor in bits(holders & ~still)]
        if not still:
            break
        holders, depth = still, depth + 1
    else:
        matches += [(executor, depth) for executor in bits(holders)] if depth else []
    return matches[::-1]


def bits(mask: int) -> Iterator[int]:
    """Executors of a mask."""
    while mask:
        yield (mask & -mask).bit_length() - 1
        mask &= mask - 1


class Masks:
    """A dict from hash to a bit mask of executors, and a set of hashes per executor: the index that was."""

    def __init__(self) -> None:
        self.table: dict[int, int] = {}
        self.held: dict[int, set[int]] = {}

    def store(self, executor: int, hashes: Hashes) -> None:
        bit, table, held = 1 << executor, self.table, self.held.setdefault(executor, set())
        for block in hashes:
            held.add(block)
            table[block] = table.get(block, 0) | bit

    def remove(self, executor: int, hashes: Hashes) -> None:
        bit, table, held = 1 << executor, self.table, self.held[executor]
        for block in hashes:
            if block in held:
                held.discard(block)
                if rest := table[block] & ~bit:
                    table[block] = rest
                else:
                    del table[block]

    def forget(self, executor: int) -> None:
        self.remove(executor, list(self.held[executor]))

    def match(self, hashes: Hashes) -> list[tuple[int, int]]:
        return walk(hashes, lambda block: self.table.get(block, 0))


class Numbers:
    """A dict from hash to the number of an interned mask, and nothing per executor."""

    def __init__(self) -> None:
        self.table: dict[int, int] = {}
        self.masks = [0]
        self.numbers = {0: 0}

    def store(self, executor: int, hashes: Hashes) -> None:
        bit, table = 1 << executor, self.table
        known: dict[int, int] = {}
        for block in hashes:
            old = table.get(block, 0)
            new = known.get(old)
            if new is None:
                new = known[old] = self._number(self.masks[old] | bit)
            table[block] = new

    def remove(self, executor: int, hashes: Hashes) -> None:
        bit, table = 1 << executor, self.table
        for block in hashes:
            if (old := table.get(block)) is not None:
                if new := self._number(self.masks[old] & ~bit):
                    table[block] = new
                else:
                    del table[block]

    def forget(self, executor: int) -> None:
        bit = 1 << executor
        held = {number for number, mask in enumerate(self.masks) if mask & bit}
        self.remove(executor, [block for block, number in self.table.items() if number in held])

    def match(self, hashes: Hashes) -> list[tuple[int, int]]:
        return walk(hashes, lambda block: self.masks[self.table.get(block, 0)])

    def _number(self, mask: int) -> int:
        number = self.numbers.setdefault(mask, len(self.masks))
        if number == len(self.masks):
            self.masks.append(mask)
        return number


class Arrays:
    """A sorted array of hashes per executor."""

    def __init__(self) -> None:
        self.held: dict[int, NDArray[np.uint64]] = {}

    def store(self, executor: int, hashes: Hashes) -> None:
        held = self.held.get(executor, np.empty(0, np.uint64))
        self.held[executor] = np.union1d(held, np.array(hashes, np.uint64))

    def remove(self, executor: int, hashes: Hashes) -> None:
        self.held[executor] = np.setdiff1d(self.held[executor], np.array(hashes, np.uint64), assume_unique=True)

    def forget(self, executor: int) -> None:
        del self.held[executor]

    def match(self, hashes: Hashes) -> list[tuple[int, int]]:
        keys, matches = np.array(hashes, np.uint64), []
        for executor, held in self.held.items():
            there = held.take(held.searchsorted(keys[:1]), mode="clip") == keys[:1]
            if there[0]:
                there = held.take(held.searchsorted(keys), mode="clip") == keys
                matches.append((executor, len(keys) if there.all() else int(there.argmin())))
        return sorted(matches, key=lambda match: -match[1])


class Ours:
    """The index of the KV-cache manager."""

    def __init__(self) -> None:
        self.index = PrefixIndex()

    def store(self, executor: int, hashes: Hashes) -> None:
        self.index.apply(name(executor), "p", (BlockEvent("stored", hashes),))

    def remove(self, executor: int, hashes: Hashes) -> None:
        self.index.apply(name(executor), "p", (BlockEvent("removed", hashes),))

    def forget(self, executor: int) -> None:
        self.index.forget(name(executor))

    def match(self, hashes: Hashes) -> list[tuple[int, int]]:
        return [(int(match.executor[1:]), match.blocks) for match in self.index.match("p", hashes)]


DESIGNS: dict[str, type[Design]] = {
    "rows of keys, interned sets (ours)": Ours,
    "dict of masks, set per executor": Masks,
    "dict of interned sets": Numbers,
    "sorted array per executor": Arrays,
}


def name(executor: int) -> str:
    """An executor's name."""
    return f"e{executor:04}"
