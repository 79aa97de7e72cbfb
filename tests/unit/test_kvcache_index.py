"""The prefix index: examples, and a machine beside a dictionary of sets."""

import random
from array import array
from collections import Counter, defaultdict
from collections.abc import Sequence

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from libs.kvcache.values import BlockEvent, CacheInfo, CacheState, CacheTier, Exactness, Hashes, PrefixMatch
from services.kvcache import index as module
from services.kvcache import index_pool, index_rows, index_table
from services.kvcache.index import PrefixIndex
from services.kvcache.index_rows import Rows

DEVICE, HOST, DISK = CacheTier


def stored(*hashes: int, tier: CacheTier = DEVICE) -> BlockEvent:
    return BlockEvent("stored", hashes, tier)


def removed(*hashes: int, tier: CacheTier = DEVICE) -> BlockEvent:
    return BlockEvent("removed", hashes, tier)


def state(device: Hashes = (), host: Hashes = (), disk: Hashes = ()) -> CacheState:
    return CacheState(CacheInfo("p", 1000, 64, Exactness.EXACT), device, host, disk)


def spread(count: int, seed: int = 1) -> list[int]:
    """Hashes as uniform as real ones, the same each time."""
    chance = random.Random(seed)
    return [chance.getrandbits(64) for _ in range(count)]


def test_the_longest_prefix_comes_first_and_equals_by_name() -> None:
    index = PrefixIndex()
    index.apply("b", "p", [stored(1, 2, 3)])
    index.apply("a", "p", [stored(1, 2, 3)])
    index.apply("c", "p", [stored(1)])
    index.apply("d", "p", [stored(2, 3)])
    index.apply("e", "other", [stored(1, 2, 3, 4)])
    expected = [PrefixMatch("a", 3), PrefixMatch("b", 3), PrefixMatch("c", 1)]
    assert index.match("p", [1, 2, 3, 4]) == expected
    assert index.match("p", [1, 2, 3]) == expected
    assert index.match("p", array("Q", [1, 2, 3])) == expected
    assert index.match("p", [9, 1]) == index.match("p", []) == index.match("none", [1]) == []


def test_a_hole_ends_the_match() -> None:
    index = PrefixIndex()
    index.apply("a", "p", [stored(1, 2, 3), removed(2)])
    assert index.match("p", [1, 2, 3]) == [PrefixMatch("a", 1)]


def test_a_snapshot_replaces_and_a_clear_empties() -> None:
    index = PrefixIndex()
    index.apply("a", "p", [stored(1, 2), stored(5, tier=DISK)])
    assert index.snapshot("a", "p", state([2, 3], [4, 3])) == 0
    assert index.match("p", [1]) == index.match("p", [5]) == []
    assert index.size("a", "p") == 3
    assert index.match("p", [2, 3, 4]) == [PrefixMatch("a", 3, host_blocks=1)]
    index.apply("a", "p", [BlockEvent("cleared"), stored(7)])
    assert index.match("p", [7, 2]) == [PrefixMatch("a", 1)]
    index.forget("a")
    assert index.size("a", "p") == 0
    index.check_integrity()


def test_the_cheapest_tier_counts_and_a_block_stays_until_the_last_is_gone() -> None:
    index = PrefixIndex()
    index.apply("a", "p", [stored(1, 2, 3, 4), stored(2, 3, 5, tier=HOST), stored(3, 6, tier=DISK)])
    index.apply("b", "p", [stored(1, 2, tier=DISK)])
    chain = [1, 2, 3, 4, 5, 6]
    assert index.match("p", chain) == [PrefixMatch("a", 6, 1, 1), PrefixMatch("b", 2, 0, 2)]
    assert index.size("a", "p") == 6
    index.apply("a", "p", [removed(2, 3, 4), removed(3, tier=HOST)])
    assert index.match("p", chain) == [PrefixMatch("a", 3, 1, 1), PrefixMatch("b", 2, 0, 2)]
    assert index.size("a", "p") == 5
    index.apply("a", "p", [removed(1, tier=HOST), removed(3, tier=DISK)])
    assert index.match("p", chain) == [PrefixMatch("a", 2, 1, 0), PrefixMatch("b", 2, 0, 2)]
    index.check_integrity()


def test_a_long_chain_whose_holders_change_on_the_way() -> None:
    index, chain = PrefixIndex(), spread(200)
    for name, tier, blocks in (("a", DEVICE, 200), ("b", HOST, 150), ("c", DEVICE, 40), ("d", DEVICE, 150)):
        index.apply(name, "p", [stored(*chain[:blocks], tier=tier)])
    index.apply("d", "p", [removed(chain[30]), stored(chain[30], tier=DISK)])
    matches = [PrefixMatch("a", 200), PrefixMatch("b", 150, 150), PrefixMatch("d", 150, 0, 1), PrefixMatch("c", 40)]
    assert index.match("p", chain) == matches
    assert index.match("p", [*chain, *spread(50, seed=2)]) == matches
    assert index.match("p", chain[:40]) == [
        PrefixMatch("a", 40), PrefixMatch("b", 40, 40), PrefixMatch("c", 40), PrefixMatch("d", 40, 0, 1),
    ]  # fmt: skip
    index.check_integrity()


def test_what_one_executor_may_have_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BLOCKS", 3)
    index = PrefixIndex()
    assert index.snapshot("a", "p", state([1, 2])) == 0
    assert index.apply("a", "p", [stored(2, 3, 4, 5, 5)]) == 2
    assert index.size("a", "p") == 3
    assert index.apply("a", "p", [stored(1, 2, 3, tier=HOST)]) == 0
    assert index.apply("a", "p", [stored(4), removed(3), removed(3, tier=HOST)]) == 0, "what goes makes room"
    assert index.snapshot("a", "p", state([1, 2], [2, 3, 4], [5])) == 2
    assert index.match("p", [1, 2, 3]) == [PrefixMatch("a", 3, 1)]
    index.check_integrity()


def test_a_prefix_that_hundreds_hold() -> None:
    index, names = PrefixIndex(), [f"e{number:03}" for number in range(300)]
    for name in reversed(names):
        index.apply(name, "p", [stored(1, 2, *([3] if name == "e150" else []))])
    expected = [PrefixMatch("e150", 3), *(PrefixMatch(name, 2) for name in names if name != "e150")]
    assert index.match("p", [1, 2, 3]) == index.match("p", [1, 2, 3]) == expected
    assert index.match("p", [1, 2]) == [PrefixMatch(name, 2) for name in names]
    index.apply("e150", "p", [removed(3), stored(2, tier=HOST), removed(2)])
    expected = [PrefixMatch(name, 2, int(name == "e150")) for name in names]
    assert index.match("p", [1, 2, 3]) == index.match("p", [1, 2, 3]) == expected
    index.forget("e150")
    index.apply("a", "p", [stored(1, 2)])  # with the number that came free
    expected = [PrefixMatch(name, 2) for name in ("a", *names) if name != "e150"]
    assert index.match("p", [1, 2, 3]) == expected
    index.check_integrity()


def test_it_grows_while_it_is_used() -> None:
    index, chain = PrefixIndex(), spread(20_000)
    for start in range(0, len(chain), 20):
        index.apply("a", "p", [stored(*chain[start : start + 20])])
        if start % 5000 == 0:
            assert index.match("p", chain) == [PrefixMatch("a", start + 20)]
            index.check_integrity()
    assert index.match("p", chain) == [PrefixMatch("a", len(chain))]
    assert index.memory_bytes < 40 * len(chain)
    index.apply("a", "p", [removed(*chain[1:])])
    assert index.match("p", chain) == [PrefixMatch("a", 1)]
    index.check_integrity()


def test_a_block_named_twice_counts_once() -> None:
    index, chain = PrefixIndex(), spread(50)
    index.apply("a", "p", [stored(*chain, *chain, 0, 0), stored(*chain[:3], *chain[:3])])
    assert index.size("a", "p") == 51
    index.apply("a", "p", [removed(*chain[10:], *chain[10:])])
    assert index.match("p", chain) == [PrefixMatch("a", 10)]
    index.check_integrity()


@pytest.mark.parametrize("low_bits", [False, True])
def test_blocks_that_nobody_holds_are_swept_out(low_bits: bool) -> None:
    index, kept, gone, late = PrefixIndex(), spread(6000), spread(4000, seed=2), spread(4000, seed=3)
    if low_bits:  # all in the same row, so hardly any of them in it
        gone = [block & ~0xFFFFF for block in gone]
    index.snapshot("a", "p", state(kept))
    index.snapshot("b", "p", state(gone))
    index.forget("b")
    before = index.memory_bytes
    index.check_integrity()
    assert index.match("p", gone) == []
    for block in late:  # one in, one out
        index.apply("a", "p", [stored(block)])
        index.apply("a", "p", [removed(block)])
    index.snapshot("b", "p", state(late))
    index.check_integrity()
    assert index.memory_bytes < 1.1 * before  # else it would have had to grow
    assert index.match("p", kept) == [PrefixMatch("a", 6000)]


def test_hashes_that_share_their_low_bits_are_found() -> None:
    index, chain = PrefixIndex(), [number << 40 for number in range(300)]
    index.snapshot("a", "p", state(chain))
    index.apply("b", "p", [stored(*chain[:100])])
    assert index.match("p", chain) == [PrefixMatch("a", 300), PrefixMatch("b", 100)]
    index.apply("a", "p", [removed(*chain[50:])])
    index.forget("b")
    assert index.match("p", chain) == [PrefixMatch("a", 50)]
    index.check_integrity()


EXECUTORS, POOLS = ("a", "b", "c"), ("p", "q")
CHAIN = [0, 1, 2, 3, *(number << 56 for number in range(1, 4)), *(number << 16 for number in range(1, 21)), *spread(13)]
"""Few enough to meet again. Some lie across the borders of others' bytes, and more share a row than fit into it."""
tiers = st.sampled_from((DEVICE, DEVICE, DEVICE, HOST, DISK))
hashes = st.one_of(
    st.lists(st.sampled_from(CHAIN), min_size=1, max_size=4),
    st.builds(lambda start, count: CHAIN[start : start + count], st.integers(0, 30), st.integers(5, 40)),
    st.integers(5, 40).map(lambda count: CHAIN[:count]),
    st.lists(st.sampled_from(CHAIN), min_size=5, max_size=20),
)
kinds = st.sampled_from((*["stored"] * 6, *["removed"] * 4, "cleared"))
events = st.lists(st.builds(BlockEvent, kinds, hashes, tiers), min_size=1, max_size=4)
empty: st.SearchStrategy[Hashes] = st.one_of(st.just([]), hashes)
Held = dict[CacheTier, set[int]]


def test_there_is_memory_behind_the_last_row() -> None:
    """Up to Python 3.11.3 a search in it reads a byte more, and the process dies where the next page is nobody's."""
    rows = Rows()
    for _ in range(8):
        assert len(rows.key_cells) == len(rows.keys) >= rows.cells
        assert len(rows.key_cells.obj) > rows.key_cells.nbytes
        rows.double()
        while rows.growing:
            rows.split(64)


class Machine(RuleBasedStateMachine):
    """With a table so small that it grows, sweeps and overflows all the time."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(index_rows, "FIRST", 1)
        self.patch.setattr(index_table, "STEP_ROWS", 1)
        self.patch.setattr(index_table, "STEP_CHANGES", 8)
        self.patch.setattr(index_table, "GROW_AT", 0.3)
        self.patch.setattr(index_table, "FULL_AT", 0.9)
        self.patch.setattr(index_table, "FEW", 4)
        self.patch.setattr(index_table, "MANY", 30)
        self.patch.setattr(index_pool, "SWEEP_SETS", 1)
        self.patch.setattr(index_pool, "MANY", 2)
        self.patch.setattr(index_pool, "KEPT", 1)
        self.index = PrefixIndex()
        self.model: dict[tuple[str, str], Held] = defaultdict(lambda: {tier: set() for tier in CacheTier})

    def teardown(self) -> None:
        self.patch.undo()

    @rule(executor=st.sampled_from(EXECUTORS), pool=st.sampled_from(POOLS), blocks=hashes, tier=tiers)
    def store(self, executor: str, pool: str, blocks: Hashes, tier: CacheTier) -> None:
        self.apply(executor, pool, [BlockEvent("stored", blocks, tier)])

    @rule(executor=st.sampled_from(EXECUTORS), pool=st.sampled_from(POOLS), changes=events)
    def apply(self, executor: str, pool: str, changes: Sequence[BlockEvent]) -> None:
        assert self.index.apply(executor, pool, changes) == 0
        held = self.model[executor, pool]
        for change in changes:
            match change.kind:
                case "stored":
                    held[change.tier] |= set(change.hashes)
                case "removed":
                    held[change.tier] -= set(change.hashes)
                case "cleared":
                    del self.model[executor, pool]
                    held = self.model[executor, pool]

    @rule(executor=st.sampled_from(EXECUTORS), pool=st.sampled_from(POOLS), device=hashes, host=empty, disk=empty)
    def snapshot(self, executor: str, pool: str, device: Hashes, host: Hashes, disk: Hashes) -> None:
        assert self.index.snapshot(executor, pool, state(device, host, disk)) == 0
        self.model[executor, pool] = {DEVICE: set(device), HOST: set(host), DISK: set(disk)}

    @rule(executor=st.sampled_from(EXECUTORS), pool=st.sampled_from(POOLS), tier=tiers)
    def evict_all(self, executor: str, pool: str, tier: CacheTier) -> None:
        blocks = self.model[executor, pool][tier]
        self.index.apply(executor, pool, [BlockEvent("removed", list(blocks), tier)])
        blocks.clear()

    @rule(executor=st.sampled_from(EXECUTORS), pool=st.sampled_from((*POOLS, None)))
    def forget(self, executor: str, pool: str | None) -> None:
        self.index.forget(executor, pool)
        for name in POOLS if pool is None else (pool,):
            self.model.pop((executor, name), None)

    @rule(pool=st.sampled_from(POOLS), prompt=hashes)
    def match(self, pool: str, prompt: Sequence[int]) -> None:
        held = {executor: self.model[executor, pool] for executor in EXECUTORS}
        expected = [match for executor in EXECUTORS if (match := naive(executor, held[executor], prompt)).blocks]
        expected.sort(key=lambda match: (-match.blocks, match.executor))
        assert self.index.match(pool, prompt) == expected

    @rule(pool=st.sampled_from(POOLS), more=hashes)
    def match_what_is_there(self, pool: str, more: Sequence[int]) -> None:
        blocks = Counter(block for executor in EXECUTORS for block in set().union(*self.model[executor, pool].values()))
        self.match(pool, [*(block for block, _ in blocks.most_common()), *more])

    @invariant()
    def adds_up(self) -> None:
        self.index.check_integrity()
        for (executor, pool), held in self.model.items():
            assert self.index.size(executor, pool) == len(set().union(*held.values()))


def naive(executor: str, held: Held, prompt: Sequence[int]) -> PrefixMatch:
    """What an executor holds of a prompt, block by block."""
    blocks = {DEVICE: 0, HOST: 0, DISK: 0}
    for block in prompt:
        best = next((tier for tier in CacheTier if block in held[tier]), None)
        if best is None:
            break
        blocks[best] += 1
    return PrefixMatch(executor, sum(blocks.values()), blocks[HOST], blocks[DISK])


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
