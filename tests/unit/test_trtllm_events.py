"""The engine's block events in our names: exact, or silent."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from libs.tokens.blocks import chain, salt
from services.executor.trtllm import events as events_module
from services.executor.trtllm.events import BlockNames, Prefix
from services.executor.trtllm.hashes import engine_hash

SIZE = 4


def prefix(tokens: Sequence[int], word: str = "", adapter: str = "") -> Prefix:
    """Of a work; salts and adapters have the numbers that the tests know."""
    hashes = tuple(chain(tokens, SIZE, salt("m", word)))
    return Prefix(word, NUMBERS.get(word), adapter, NUMBERS.get(adapter), hashes)


NUMBERS = {"a": 11, "b": 22, "tenant": 33, "a/tenant": 44}


class Engine:
    """Numbers events, and names blocks as the engine does."""

    def __init__(self, names: BlockNames) -> None:
        self.names = names
        self.number = 0

    def tell(self, data: dict[str, Any], lost: bool = False, window: int = 64) -> None:
        if not lost:
            self.names.event({"event_id": self.number, "data": data, "window_size": window})
        self.number += 1

    def created(self, blocks: int = 8, window: int = 64) -> None:
        self.tell({"type": "created", "num_blocks_per_cache_level": [blocks, 0]}, window=window)

    def store(
        self,
        tokens: Sequence[int],
        word: str = "",
        adapter: str = "",
        skip: int = 0,
        lost: bool = False,
        window: int = 64,
    ) -> list[int]:
        """Stores the blocks of a prefix behind the first `skip` ones; returns all names."""
        found: list[int] = []
        blocks = [list(tokens[start : start + SIZE]) for start in range(0, len(tokens), SIZE)]
        for block in blocks:
            parent = found[-1] if found else 0
            found.append(engine_hash(block, parent, NUMBERS.get(word), NUMBERS.get(adapter)))
        fresh = [
            {"block_hash": name, "tokens": [{"token_id": token} for token in block], "cache_level": 0, "priority": 35}
            for name, block in zip(found, blocks, strict=True)
        ][skip:]
        parent_hash = found[skip - 1] if skip else None
        self.tell({"type": "stored", "parent_hash": parent_hash, "blocks": fresh}, lost, window)
        return found

    def remove(self, *names: int, lost: bool = False) -> None:
        self.tell({"type": "removed", "block_hashes": list(names)}, lost)


@pytest.fixture
def engine() -> Engine:
    engine = Engine(BlockNames(SIZE, 64))
    engine.created()
    return engine


def test_chains_are_traced_and_removed(engine: Engine) -> None:
    tokens = list(range(1, 13))
    work = prefix(tokens)
    engine.names.submit(work, tokens)
    found = engine.store([*tokens, 50, 51])
    assert [(event.kind, tuple(event.hashes)) for event in engine.names.drain()] == [("stored", work.hashes)]
    engine.remove(found[2], found[3])
    assert [(event.kind, tuple(event.hashes)) for event in engine.names.drain()] == [("removed", work.hashes[2:])]
    engine.store(tokens, skip=2)
    assert engine.names.told == set(work.hashes)
    assert (engine.names.capacity, engine.names.blocks, engine.names.gaps, engine.names.untraced) == (8, 3, 0, 0)


def test_salts_and_adapters_are_told_apart_by_the_name_of_the_first_block(engine: Engine) -> None:
    tokens = list(range(1, 9))
    owners = [("", ""), ("a", "a"), ("b", "b"), ("tenant", ""), ("a/tenant", "a")]
    for word, adapter in owners:
        engine.names.submit(prefix(tokens, word, adapter), tokens)
    engine.store(tokens, "b", "b")
    assert engine.names.told == set(prefix(tokens, "b").hashes)
    engine.store(tokens)
    engine.store(tokens, "tenant")
    engine.store(tokens, "a/tenant", "a")
    words = ("", "b", "tenant", "a/tenant")
    assert engine.names.told == {name for word in words for name in prefix(tokens, word).hashes}


def test_an_adapter_that_shares_the_bases_prefix_is_not_told(engine: Engine) -> None:
    """The engine keeps its blocks apart from the base's, and the base's from it."""
    tokens = list(range(1, 9))
    for word in ("", "tenant"):
        engine.names.submit(prefix(tokens, word, "a"), tokens)
        engine.store(tokens, word, "a")
    assert not engine.names.told
    engine.names.submit(prefix(tokens), tokens)
    engine.store(tokens)
    assert engine.names.told == set(prefix(tokens).hashes)


def test_a_salt_whose_number_the_engine_does_not_tell_is_not_taken_for_none(engine: Engine) -> None:
    tokens, other = list(range(1, 9)), list(range(11, 19))
    engine.names.submit(prefix(tokens), tokens)
    engine.names.submit(prefix(tokens, "secret"), tokens)
    engine.store(tokens)
    assert engine.names.told == set(prefix(tokens).hashes)
    engine.remove(99, lost=True)
    engine.store(other)
    engine.names.found(engine.names.submit(prefix(tokens, "secret"), tokens), 8)
    assert not engine.names.told


def test_what_nobody_asked_for_is_not_told(engine: Engine) -> None:
    found = engine.store(list(range(1, 13)))
    engine.store([*range(1, 13), 20, 21, 22, 23], skip=3)
    engine.remove(*found)
    assert not engine.names.drain()
    assert engine.names.untraced == 4


class UnknownNames(Engine):
    """Names blocks in another way."""

    def store(self, tokens: Sequence[int], word: str = "", *_: Any, **__: Any) -> list[int]:
        name = hash((tuple(tokens), word)) & 0xFFFF_FFFF
        block = {"block_hash": name, "tokens": [{"token_id": token} for token in tokens]}
        self.tell({"type": "stored", "parent_hash": None, "blocks": [block]})
        return [name]


def test_without_knowing_the_engines_names_only_what_is_unambiguous_is_told() -> None:
    engine = UnknownNames(BlockNames(SIZE, 64))
    alone, shared = [1, 2, 3, 4], [5, 6, 7, 8]
    engine.names.submit(prefix(alone, "a", "a"), alone)
    for word in ("a", "b"):
        engine.names.submit(prefix(shared, word, word), shared)
    for word in ("a", "b"):
        engine.store(shared, word)
    engine.store(alone, "a")
    assert engine.names.told == set(prefix(alone, "a").hashes)
    assert not engine.names.hash_known


def test_blocks_of_the_host_stay_and_other_windows_do_not_count(engine: Engine) -> None:
    tokens = list(range(1, 9))
    engine.created(blocks=99, window=32)
    engine.names.submit(prefix(tokens), tokens)
    names = engine.store(tokens)
    engine.tell({"type": "updated", "block_hash": names[0], "cache_level": {"new_value": 1, "old_value": 0}})
    engine.tell({"type": "removed", "block_hashes": names}, window=32)
    engine.store([9, 9, 9, 9], window=32)
    assert engine.names.told == set(prefix(tokens).hashes)
    assert (engine.names.capacity, engine.names.untraced) == (8, 0)


def test_what_is_no_event_is_ignored(engine: Engine) -> None:
    for odd in ({}, {"event_id": "7", "data": {}}, {"event_id": 7}):
        engine.names.event(odd)
    assert engine.names.gaps == 0


def test_after_a_gap_nothing_is_told_but_what_is_stored_or_proven(engine: Engine) -> None:
    names = engine.names
    tokens, other = list(range(1, 13)), [40, 41, 42, 43]
    work = prefix(tokens)
    early = names.submit(work, tokens)
    names.submit(prefix(other), other)
    found = engine.store(tokens)
    names.drain()
    engine.remove(found[2], lost=True)
    engine.store(other)
    assert [event.kind for event in names.drain()] == ["cleared", "stored"]
    assert names.told == set(prefix(other).hashes)
    names.found(early, 12)
    assert names.told == set(prefix(other).hashes), "a work from before the gap proves nothing"
    proof = names.submit(work, tokens)
    names.found(proof, 8)
    assert names.told == {*prefix(other).hashes, *work.hashes[:2]}
    names.found(proof, 8)
    assert [(event.kind, tuple(event.hashes)) for event in names.drain()] == [("stored", work.hashes[:2])]
    engine.remove(found[1])
    assert names.told == {*prefix(other).hashes, work.hashes[0]}


def test_a_block_that_was_removed_since_proves_nothing(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    names = engine.names
    tokens = list(range(1, 13))
    work = prefix(tokens)
    names.submit(work, tokens)
    found = engine.store(tokens)
    engine.remove(901, lost=True)
    engine.remove(902)
    proof = names.submit(work, tokens)
    engine.remove(found[1])
    names.found(proof, 12)
    assert names.told == {work.hashes[0]}
    monkeypatch.setattr(events_module, "MOST_REMOVALS", 2)
    late = names.submit(work, tokens)
    engine.remove(903, 904, 905)
    names.found(late, 12)
    assert names.told == {work.hashes[0]}, "what is forgotten may have been this block"


def test_everything_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events_module, "MOST_ROOTS", 2)
    engine = Engine(BlockNames(SIZE, 3))
    for first in (10, 20, 30):
        tokens = list(range(first, first + SIZE))
        engine.names.submit(prefix(tokens), tokens)
    engine.store([10, 11, 12, 13])
    assert not engine.names.told, "its work is forgotten"
    engine.store([20, 21, 22, 23])
    engine.remove(77, lost=True)
    tokens = [*range(30, 30 + 4 * SIZE)]
    engine.store(tokens)
    assert len(engine.names.told) == 4, "names of blocks that are there are kept, more than expected or not"


def test_tenants_are_forgotten_least_recently_seen_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events_module, "MOST_ROOTS", 3)
    engine, tokens = Engine(BlockNames(SIZE, 64)), [1, 2, 3, 4]
    words = [f"/{number}" for number in range(50)]
    for number, word in enumerate(words):
        monkeypatch.setitem(NUMBERS, word, 1000 + number)
        engine.names.submit(prefix(tokens, word), tokens)
        engine.names.submit(prefix(tokens, words[0]), tokens)
    for word in words:
        engine.store(tokens, word)
    kept = [words[0], *words[-2:]]
    assert engine.names.told == {prefix(tokens, word).hashes[0] for word in kept}
    assert engine.names.untraced == 47
    assert max(len(held) for held in vars(engine.names).values() if isinstance(held, dict)) == 3


class Traffic(RuleBasedStateMachine):
    """A cache of a few blocks under random works: what is told is always there, and, without gaps, all of it."""

    def __init__(self) -> None:
        super().__init__()
        self.engine = Engine(BlockNames(SIZE, 64))
        self.engine.created()
        self.cache: dict[int, int] = {}  # the engine's name → ours
        self.parents: dict[int, int] = {}
        self.lost = False
        self.resolved = True

    @rule(
        blocks=st.lists(st.integers(0, 2), min_size=1, max_size=4),
        word=st.sampled_from(["", "a", "b"]),
        lost=st.booleans(),
    )
    def run(self, blocks: list[int], word: str, lost: bool) -> None:
        tokens = [token for block in blocks for token in range(block * SIZE + 1, block * SIZE + 1 + SIZE)]
        work = prefix(tokens, word, word)
        proof = self.engine.names.submit(work, tokens)
        names: list[int] = []
        for index in range(len(blocks)):
            part = tokens[index * SIZE : (index + 1) * SIZE]
            names.append(engine_hash(part, names[-1] if names else 0, NUMBERS.get(word), NUMBERS.get(word)))
        cached = 0
        while cached < len(names) and names[cached] in self.cache:
            cached += 1
        self.engine.names.found(proof, cached * SIZE)
        if cached < len(names):
            self._note(lost)
            self.engine.store(tokens, word, word, skip=cached, lost=lost)
            for index in range(cached, len(names)):
                self.cache[names[index]] = work.hashes[index]
                self.parents[names[index]] = names[index - 1] if index else 0

    @rule(choice=st.integers(0, 10), lost=st.booleans())
    def evict(self, choice: int, lost: bool) -> None:
        leaves = [name for name in self.cache if name not in {self.parents[other] for other in self.cache}]
        if leaves:
            name = leaves[choice % len(leaves)]
            self._note(lost)
            self.engine.remove(name, lost=lost)
            del self.cache[name]

    def _note(self, lost: bool) -> None:
        self.lost = self.lost or lost
        self.resolved = not lost

    @invariant()
    def what_is_told_is_true(self) -> None:
        there = set(self.cache.values())
        if not self.lost:
            assert self.engine.names.told == there
        elif self.resolved:
            assert self.engine.names.told <= there

    @invariant()
    def events_add_up(self) -> None:
        for event in self.engine.names.drain():
            if event.kind == "cleared":
                self.index: set[int] = set()
            elif event.kind == "stored":
                self.index = getattr(self, "index", set()) | set(event.hashes)
            else:
                self.index -= set(event.hashes)
        assert getattr(self, "index", set()) == self.engine.names.told


TestTraffic = Traffic.TestCase
TestTraffic.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
