"""The prefix index: examples, and a machine beside a dictionary of sets."""

from collections import defaultdict
from collections.abc import Sequence
from itertools import takewhile

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from libs.kvcache.values import BlockEvent, PrefixMatch
from services.kvcache import index as module
from services.kvcache.index import PrefixIndex


def stored(*hashes: int) -> BlockEvent:
    return BlockEvent("stored", hashes)


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
    assert index.match("p", [9, 1]) == index.match("p", []) == index.match("none", [1]) == []


def test_a_hole_ends_the_match() -> None:
    index = PrefixIndex()
    index.apply("a", "p", [stored(1, 2, 3), BlockEvent("removed", (2,))])
    assert index.match("p", [1, 2, 3]) == [PrefixMatch("a", 1)]


def test_a_snapshot_replaces_and_a_clear_empties() -> None:
    index = PrefixIndex()
    index.apply("a", "p", [stored(1, 2)])
    index.snapshot("a", "p", [2, 3])
    assert index.match("p", [1]) == []
    assert index.size("a", "p") == 2
    index.apply("a", "p", [BlockEvent("cleared"), stored(7)])
    assert index.match("p", [7, 2]) == [PrefixMatch("a", 1)]
    index.forget("a")
    assert index.size("a", "p") == 0
    index.check_integrity()


def test_what_one_executor_may_have_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_BLOCKS", 3)
    index = PrefixIndex()
    assert index.snapshot("a", "p", [1, 2]) == 0
    assert index.apply("a", "p", [stored(3, 4, 5)]) == 2
    assert index.size("a", "p") == 3
    index.check_integrity()


EXECUTORS, POOLS = ("a", "b", "c"), ("p", "q")
hashes = st.lists(st.integers(0, 9), max_size=6)
events = st.lists(
    st.one_of(st.builds(BlockEvent, st.sampled_from(("stored", "removed")), hashes), st.just(BlockEvent("cleared"))),
    max_size=4,
)


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.index = PrefixIndex()
        self.model: dict[tuple[str, str], set[int]] = defaultdict(set)

    @rule(executor=st.sampled_from(EXECUTORS), pool=st.sampled_from(POOLS), changes=events)
    def apply(self, executor: str, pool: str, changes: Sequence[BlockEvent]) -> None:
        self.index.apply(executor, pool, changes)
        held = self.model[executor, pool]
        for change in changes:
            match change.kind:
                case "stored":
                    held |= set(change.hashes)
                case "removed":
                    held -= set(change.hashes)
                case "cleared":
                    held.clear()

    @rule(executor=st.sampled_from(EXECUTORS), pool=st.sampled_from(POOLS), blocks=hashes)
    def snapshot(self, executor: str, pool: str, blocks: Sequence[int]) -> None:
        self.index.snapshot(executor, pool, blocks)
        self.model[executor, pool] = set(blocks)

    @rule(executor=st.sampled_from(EXECUTORS))
    def forget(self, executor: str) -> None:
        self.index.forget(executor)
        for pool in POOLS:
            self.model[executor, pool].clear()

    @rule(pool=st.sampled_from(POOLS), prompt=hashes)
    def match(self, pool: str, prompt: Sequence[int]) -> None:
        expected = []
        for executor in EXECUTORS:
            held = self.model[executor, pool]
            if depth := len(list(takewhile(held.__contains__, prompt))):
                expected.append(PrefixMatch(executor, depth))
        expected.sort(key=lambda match: (-match.blocks, match.executor))
        assert self.index.match(pool, prompt) == expected

    @invariant()
    def adds_up(self) -> None:
        self.index.check_integrity()
        for (executor, pool), held in self.model.items():
            assert self.index.size(executor, pool) == len(held)


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
