"""Works that share a prefix which nobody has computed yet: one computes it, the others wait for it. Pure.

Without this, thirty-two requests with the same new system prompt make every executor compute it. A work that
was placed leads: it is noted under the first block that it has to compute. A work whose own first missing block
is that one follows, as far as their chains agree; it is held back until the leader's first token, and finds the
prefix then. (TensorRT-LLM's scheduler defers such requests inside one engine; here it goes for the whole pool.)
"""

from collections.abc import Sequence

import msgspec

LEAST_BLOCKS = 1
"""Blocks that a follower must spare itself at least."""


class Leader(msgspec.Struct, frozen=True):
    """A work that computes a prefix."""

    key: int
    executor: str
    hashes: Sequence[int]
    """Of its whole prompt."""


class Flock:
    """The leaders of one pool. Bounded by the works that prefill, and those that wait."""

    def __init__(self) -> None:
        self._by_block: dict[int, Leader] = {}
        self._blocks: dict[int, int] = {}
        self._followers: dict[int, set[int]] = {}

    def lead(self, key: int, executor: str, hashes: Sequence[int], remembered: int) -> None:
        """A work was placed whose blocks from number `remembered` on nobody has. Where another leads already,
        that one goes on leading."""
        if remembered < len(hashes) and hashes[remembered] not in self._by_block:
            self._by_block[hashes[remembered]] = Leader(key, executor, hashes)
            self._blocks[key] = hashes[remembered]

    def correct(self, key: int, remembered: int) -> set[int]:
        """A leader was placed before anybody knew what is remembered; now it is known that it computes from block
        number `remembered` on. Returns who was held back for it: what they wait for may be there already."""
        block = self._blocks.get(key)
        if block is None:
            return set()
        leader = self._by_block[block]
        if remembered < len(leader.hashes) and leader.hashes[remembered] == block:
            return set()
        followers = self.ended(key)
        self.lead(key, leader.executor, leader.hashes, remembered)
        return followers

    def leader(self, hashes: Sequence[int], remembered: int) -> tuple[Leader, int] | None:
        """Who computes a work's missing blocks, and how many of its leading blocks it will find then; None when
        nobody does, or it is not worth the wait. Changes nothing."""
        if not self._by_block or remembered >= len(hashes):
            return None
        leader = self._by_block.get(hashes[remembered])
        if leader is None:
            return None
        common = shared(hashes, leader.hashes)
        return (leader, common) if common - remembered >= LEAST_BLOCKS else None

    def follow(self, leader: int, key: int) -> None:
        """A work is held back for a leader."""
        if leader in self._blocks:
            self._followers.setdefault(leader, set()).add(key)

    def ended(self, key: int) -> set[int]:
        """A leader has its first token, or has left; returns who was held back for it, whether or not they still
        wait. Ignores who leads nobody."""
        block = self._blocks.pop(key, None)
        if block is not None:
            del self._by_block[block]
        return self._followers.pop(key, set())

    @property
    def leaders(self) -> set[int]:
        """The works that lead."""
        return set(self._blocks)

    def check_integrity(self) -> None:
        """Raises AssertionError when the views disagree."""
        assert {leader.key: block for block, leader in self._by_block.items()} == self._blocks
        assert self._followers.keys() <= self._blocks.keys()


def shared(one: Sequence[int], other: Sequence[int]) -> int:
    """Leading blocks that two chains share. Chained hashes agree up to one point and nowhere behind it, so it is
    found by bisection."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[middle - 1] == other[middle - 1]:
            low = middle
        else:
            high = middle - 1
    return low
