"""PagedBlocks: examples, and a machine that does anything in any order beside a naive model of the cache."""

from collections.abc import Sequence

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.executor.blocks import Allocation, PagedBlocks
from services.executor.engine import BlockEvent

CAPACITY, BLOCK = 12, 4


def test_a_published_prefix_is_found_again() -> None:
    blocks = PagedBlocks(CAPACITY, BLOCK)
    assert blocks.allocate(1, [10, 11], 9) == Allocation(blocks=3, cached_blocks=0)
    blocks.publish(1, [10, 11])
    assert blocks.match([10, 11, 12]) == 2
    assert blocks.allocate(2, [10, 11], 9) == Allocation(blocks=3, cached_blocks=2)
    assert (blocks.used, blocks.cached) == (4, 0)
    blocks.free(1)
    blocks.free(2)
    assert (blocks.used, blocks.cached) == (0, 2)
    assert blocks.drain_events() == [BlockEvent("stored", (10, 11))]


def test_the_last_token_is_always_computed() -> None:
    blocks = PagedBlocks(CAPACITY, BLOCK)
    blocks.allocate(1, [10, 11], 8)
    blocks.free(1, [10, 11])
    assert blocks.allocate(2, [10, 11], 8) == Allocation(blocks=2, cached_blocks=1)


def test_the_same_block_computed_twice_is_kept_once() -> None:
    blocks = PagedBlocks(CAPACITY, BLOCK)
    blocks.allocate(1, [10], 4)
    blocks.allocate(2, [10], 4)
    blocks.publish(1, [10])
    blocks.publish(2, [10])
    assert blocks.used == 1
    assert blocks.drain_events() == [BlockEvent("stored", (10,))]


def test_the_end_of_the_least_recently_used_prefix_goes_first() -> None:
    blocks = PagedBlocks(4, BLOCK)
    for work_id, hashes in enumerate(([10, 11], [20, 21])):
        blocks.allocate(work_id, hashes, 8)
        blocks.free(work_id, hashes)
    blocks.allocate(2, [], 4)
    assert blocks.match([10, 11]) == 1
    assert blocks.match([20, 21]) == 2
    assert blocks.drain_events()[-1] == BlockEvent("removed", (11,))


def test_what_does_not_fit_changes_nothing() -> None:
    blocks = PagedBlocks(3, BLOCK)
    blocks.allocate(1, [], 8)
    assert blocks.allocate(2, [10], 8) is None
    assert not blocks.grow(1, 13)
    assert blocks.grow(1, 12)
    blocks.free(1)
    assert blocks.used == 0


def test_reviving_a_cached_block_takes_room_too() -> None:
    blocks = PagedBlocks(2, BLOCK)
    blocks.allocate(1, [10], 4)
    blocks.free(1, [10])
    assert blocks.allocate(2, [10], 12) is None
    assert blocks.allocate(2, [10], 8) == Allocation(2, 1)


def test_clearing_keeps_what_is_in_use() -> None:
    blocks = PagedBlocks(CAPACITY, BLOCK)
    blocks.allocate(1, [10], 4)
    blocks.free(1, [10])
    blocks.allocate(2, [20], 5)
    blocks.publish(2, [20])
    blocks.drain_events()
    blocks.clear()
    assert blocks.drain_events() == [BlockEvent("cleared"), BlockEvent("stored", (20,))]
    assert blocks.cached == 0


@pytest.mark.parametrize(("capacity", "tokens"), [(0, 4), (4, 0)])
def test_nothing_holds_nothing(capacity: int, tokens: int) -> None:
    with pytest.raises(ValueError, match="hold nothing"):
        PagedBlocks(capacity, tokens)


def test_a_work_cannot_publish_more_than_it_has() -> None:
    blocks = PagedBlocks(CAPACITY, BLOCK)
    blocks.allocate(1, [], 4)
    with pytest.raises(ValueError, match="publishes 2 blocks and has 1"):
        blocks.publish(1, [1, 2])
    with pytest.raises(ValueError, match="has blocks already"):
        blocks.allocate(1, [], 4)


# Chains: the hash of a block says which blocks are in front of it, as real ones do.
chains = st.lists(st.integers(0, 1), max_size=5).map(
    lambda path: [int("1" + "".join(map(str, path[: depth + 1])), 2) for depth in range(len(path))]
)


class Machine(RuleBasedStateMachine):
    """Works come, grow, publish and go; whoever follows the events knows what is in the cache."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = PagedBlocks(CAPACITY, BLOCK)
        self.works: dict[int, tuple[Sequence[int], int]] = {}
        self.known: set[int] = set()
        self.next_id = 0

    @rule(chain=chains, tail=st.integers(0, BLOCK))
    def allocate(self, chain: Sequence[int], tail: int) -> None:
        total = max(len(chain) * BLOCK + tail, 1)
        before = (self.blocks.used, self.blocks.cached)
        matched = self.blocks.match(chain)
        allocation = self.blocks.allocate(self.next_id, chain, total)
        if allocation is None:
            assert (self.blocks.used, self.blocks.cached) == before
            return
        assert allocation.cached_blocks == min(matched, (total - 1) // BLOCK)
        assert allocation.blocks == -(-total // BLOCK)
        self.works[self.next_id] = (chain, total)
        self.next_id += 1

    @precondition(lambda self: self.works)
    @rule(data=st.data(), by=st.integers(1, 9))
    def grow(self, data: st.DataObject, by: int) -> None:
        work_id = data.draw(st.sampled_from(sorted(self.works)))
        chain, total = self.works[work_id]
        if self.blocks.grow(work_id, total + by):
            self.works[work_id] = (chain, total + by)

    @precondition(lambda self: self.works)
    @rule(data=st.data())
    def publish(self, data: st.DataObject) -> None:
        work_id = data.draw(st.sampled_from(sorted(self.works)))
        chain, _total = self.works[work_id]
        self.blocks.publish(work_id, chain)
        assert self.blocks.match(chain) == len(chain)

    @precondition(lambda self: self.works)
    @rule(data=st.data(), publish=st.booleans())
    def free(self, data: st.DataObject, publish: bool) -> None:
        work_id = data.draw(st.sampled_from(sorted(self.works)))
        chain, _total = self.works.pop(work_id)
        self.blocks.free(work_id, chain if publish else ())

    @rule()
    def clear(self) -> None:
        self.blocks.clear()
        assert self.blocks.cached == 0

    @invariant()
    def adds_up(self) -> None:
        self.blocks.check_integrity()
        if not self.works:
            assert self.blocks.used == 0

    @invariant()
    def events_tell_all(self) -> None:
        for event in self.blocks.drain_events():
            match event.kind:
                case "stored":
                    assert not self.known & set(event.hashes)
                    self.known |= set(event.hashes)
                case "removed":
                    assert self.known >= set(event.hashes)
                    self.known -= set(event.hashes)
                case "cleared":
                    self.known.clear()
        assert all(self.blocks.match([block]) == 1 for block in self.known)
        assert len(self.known) <= CAPACITY


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
