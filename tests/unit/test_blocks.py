"""PagedBlocks: examples, and a machine that does anything in any order beside a naive model of the cache."""

from collections.abc import Sequence

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from libs.kvcache.values import CacheTier
from services.executor.blocks import Allocation, PagedBlocks
from services.executor.engine import BlockEvent

CAPACITY, BLOCK = 12, 4
HOST = CacheTier.HOST


def run_through(blocks: PagedBlocks, work_id: int, hashes: Sequence[int]) -> None:
    """A work that fills these blocks, and ends."""
    blocks.allocate(work_id, hashes, len(hashes) * BLOCK)
    blocks.free(work_id, hashes)


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


@pytest.mark.parametrize(("capacity", "tokens", "host"), [(0, 4, 0), (4, 0, 0), (4, 4, -1)])
def test_nothing_holds_nothing(capacity: int, tokens: int, host: int) -> None:
    with pytest.raises(ValueError, match="hold nothing"):
        PagedBlocks(capacity, tokens, host)


def test_what_leaves_the_device_goes_to_the_host_and_comes_back() -> None:
    blocks = PagedBlocks(3, BLOCK, host_blocks=4)
    run_through(blocks, 1, [10, 11])
    run_through(blocks, 2, [20, 21])
    assert blocks.match([10, 11]) == 2
    assert (blocks.cached, blocks.on_host) == (3, 1)
    blocks.drain_events()
    assert blocks.allocate(3, [10, 11], 9) == Allocation(blocks=3, cached_blocks=2, host_blocks=1)
    assert blocks.drain_events() == [
        BlockEvent("removed", (11,), HOST),
        BlockEvent("removed", (21, 20)),
        BlockEvent("stored", (21, 20), HOST),
        BlockEvent("stored", (11,)),
    ]
    assert blocks.match([20, 21]) == 2


def test_the_host_forgets_what_came_first() -> None:
    blocks = PagedBlocks(2, BLOCK, host_blocks=3)
    for work_id, first in enumerate((10, 20, 30)):
        run_through(blocks, work_id, [first, first + 1])
    assert [blocks.match([block]) for block in (10, 11, 20, 21, 30, 31)] == [1, 0, 1, 1, 1, 1]
    assert blocks.on_host == 3


def test_of_more_than_the_host_holds_the_last_are_kept() -> None:
    blocks = PagedBlocks(4, BLOCK, host_blocks=2)
    run_through(blocks, 1, [10, 11, 12, 13])
    blocks.drain_events()
    run_through(blocks, 2, [20, 21, 22, 23])
    assert blocks.drain_events()[:2] == [BlockEvent("removed", (13, 12, 11, 10)), BlockEvent("stored", (11, 10), HOST)]
    assert blocks.match([10, 11, 12]) == 2


def test_a_block_that_was_computed_again_is_given_up_on_the_host() -> None:
    blocks = PagedBlocks(2, BLOCK, host_blocks=2)
    run_through(blocks, 1, [10])
    blocks.allocate(2, [], 8)
    assert blocks.on_host == 1
    blocks.publish(2, [10])
    assert blocks.on_host == 0
    assert blocks.drain_events()[-2:] == [BlockEvent("stored", (10,)), BlockEvent("removed", (10,), HOST)]


def test_what_is_brought_back_needs_room_too() -> None:
    blocks = PagedBlocks(2, BLOCK, host_blocks=2)
    run_through(blocks, 1, [10, 11])
    blocks.allocate(2, [], 4)
    blocks.allocate(3, [], 4)
    assert blocks.on_host == 2
    blocks.free(3)
    assert blocks.allocate(4, [10, 11], 8) is None
    assert blocks.allocate(5, [10], 5) is None
    assert blocks.on_host == 2
    blocks.free(2)
    assert blocks.allocate(6, [10, 11], 8) == Allocation(2, 1, 1)


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


UNIVERSE = range(2, 64)
"""Every block that a chain can have."""


class Machine(RuleBasedStateMachine):
    """Works come, grow, publish and go; whoever follows the events knows what is in each tier of the cache."""

    host_blocks = 0

    def __init__(self) -> None:
        super().__init__()
        self.blocks = PagedBlocks(CAPACITY, BLOCK, self.host_blocks)
        self.works: dict[int, tuple[Sequence[int], int]] = {}
        self.known: dict[CacheTier, set[int]] = {CacheTier.DEVICE: set(), HOST: set()}
        self.next_id = 0

    @rule(chain=chains, tail=st.integers(0, BLOCK))
    def allocate(self, chain: Sequence[int], tail: int) -> None:
        total = max(len(chain) * BLOCK + tail, 1)
        before = (self.blocks.used, self.blocks.cached, self.blocks.on_host)
        matched = self.blocks.match(chain)
        allocation = self.blocks.allocate(self.next_id, chain, total)
        if allocation is None:
            assert (self.blocks.used, self.blocks.cached, self.blocks.on_host) == before
            return
        assert allocation.cached_blocks == min(matched, (total - 1) // BLOCK)
        assert allocation.blocks == -(-total // BLOCK)
        found = set(chain[: allocation.cached_blocks])
        assert allocation.host_blocks == len(found & self.known[HOST])
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
        assert self.blocks.cached == self.blocks.on_host == 0

    @invariant()
    def adds_up(self) -> None:
        self.blocks.check_integrity()
        if not self.works:
            assert self.blocks.used == 0

    @invariant()
    def events_tell_all(self) -> None:
        for event in self.blocks.drain_events():
            known = self.known[event.tier]
            match event.kind:
                case "stored":
                    assert not known & set(event.hashes)
                    known |= set(event.hashes)
                case "removed":
                    assert known >= set(event.hashes)
                    known -= set(event.hashes)
                case "cleared":
                    for tier in self.known.values():
                        tier.clear()
        device, host = self.known.values()
        assert {block for block in UNIVERSE if self.blocks.match([block])} == device | host
        assert not device & host
        assert len(device) <= CAPACITY
        assert len(host) == self.blocks.on_host <= self.host_blocks


class SmallHostMachine(Machine):
    """A host that forgets all the time."""

    host_blocks = 3


class LargeHostMachine(Machine):
    """A host that forgets nothing."""

    host_blocks = len(UNIVERSE)


often = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestMachine, TestSmallHost, TestLargeHost = Machine.TestCase, SmallHostMachine.TestCase, LargeHostMachine.TestCase
TestMachine.settings = TestSmallHost.settings = TestLargeHost.settings = often
