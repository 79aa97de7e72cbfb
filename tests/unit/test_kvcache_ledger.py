"""The ledger: examples, and a machine in which batchers come, go and crash."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from services.kvcache import ledger as module
from services.kvcache.ledger import Held, Ledger

GRACE_S = 10.0


def ledger(blocks: int = 100, overcommit: float = 1.0) -> Ledger:
    one = Ledger(overcommit, GRACE_S)
    one.set_capacity("e", "p", blocks)
    return one


def test_what_fits_is_reserved_and_comes_back() -> None:
    one = ledger()
    assert one.reserve("b", 1, "e", "p", 60)
    assert not one.reserve("b", 2, "e", "p", 41)
    assert one.reserve("c", 1, "e", "p", 40)
    assert one.free("e", "p") == 0
    assert one.release("b", 1)
    assert not one.release("b", 1)
    assert one.free("e", "p") == 60


def test_nothing_is_reserved_where_nothing_is_known() -> None:
    one = ledger()
    assert not one.reserve("b", 1, "nowhere", "p", 1)
    assert not one.reserve("b", 1, "e", "other", 1)


def test_overcommit_stretches_the_capacity() -> None:
    one = ledger(overcommit=1.5)
    assert one.reserve("b", 1, "e", "p", 150)
    assert not one.reserve("b", 2, "e", "p", 1)


def test_the_same_number_again_resizes_and_a_refusal_leaves_what_was() -> None:
    one = ledger()
    assert one.reserve("b", 1, "e", "p", 80)
    assert one.reserve("b", 1, "e", "p", 90)
    assert one.reserved("e", "p") == 90
    assert not one.reserve("b", 1, "e", "p", 101)
    assert one.held("b", 1) == Held("e", "p", 90)
    assert one.reserve("b", 1, "e", "p", 30)
    assert one.free("e", "p") == 70
    assert one.reserve("b", 1, "e", "p", 0)
    assert one.held("b", 1) is None


def test_it_can_move_and_a_refusal_leaves_it_where_it_was() -> None:
    one = ledger()
    one.set_capacity("f", "p", 50)
    assert one.reserve("b", 1, "e", "p", 60)
    assert not one.reserve("b", 1, "f", "p", 60)
    assert (one.reserved("e", "p"), one.reserved("f", "p")) == (60, 0)
    assert one.reserve("b", 1, "f", "p", 50)
    assert (one.reserved("e", "p"), one.reserved("f", "p")) == (0, 50)


def test_to_become_smaller_is_granted_even_where_too_much_is_reserved() -> None:
    one = ledger()
    one.reserve("b", 1, "e", "p", 60)
    one.set_capacity("e", "p", 10)
    assert not one.reserve("b", 1, "e", "p", 61)
    assert one.reserve("b", 1, "e", "p", 40)
    one.set_capacity("e", "p", 0)
    assert one.reserve("b", 1, "e", "p", 40)
    assert one.reserved("e", "p") == 40


def test_a_resize_takes_no_place_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_HELD", 1)
    one = ledger()
    assert one.reserve("b", 1, "e", "p", 10)
    assert not one.reserve("b", 2, "e", "p", 10)
    assert one.reserve("b", 1, "e", "p", 20)


def test_pools_are_overcommitted_each_by_its_own_factor() -> None:
    one = ledger()
    one.set_capacity("e", "q", 100)
    one.set_overcommit("q", 1.25)
    assert (one.free("e", "p"), one.free("e", "q")) == (100, 125)
    assert one.reserve("b", 1, "e", "q", 120)
    one.set_overcommit("q", 0.5)
    assert (one.free("e", "q"), one.reserved("e", "q")) == (0, 120)
    one.set_overcommit("q", None)
    assert one.limit("e", "q") == 100
    with pytest.raises(ValueError, match="above 0"):
        one.set_overcommit("q", 0.0)


def test_sums_that_do_not_add_up_are_healed() -> None:
    one = ledger()
    one.reserve("b", 1, "e", "p", 30)
    one.reserve("b", 2, "e", "p", 20)
    assert one.heal() == []
    one._sums["e", "p"] = 10
    one._sums["f", "p"] = 5
    with pytest.raises(AssertionError, match="sums"):
        one.check_integrity()
    assert one.heal() == [
        "e had 10 blocks of p reserved, its works hold 50",
        "f had 5 blocks of p reserved, its works hold 0",
    ]
    one.check_integrity()
    one._sums.clear()
    one.release("b", 1)
    assert one.heal() == ["e had 0 blocks of p reserved, its works hold 20"]


def test_a_lease_lapses_after_its_grace() -> None:
    one = ledger()
    one.reserve("b", 1, "e", "p", 60)
    one.batcher_gone("b", now=0.0)
    assert one.expire(9.9) == []
    assert one.free("e", "p") == 40
    assert one.expire(10.0) == ["b"]
    assert one.free("e", "p") == 100


def test_a_claim_on_a_new_stream_is_all_there_is() -> None:
    one = ledger()
    one.reserve("b", 1, "e", "p", 10)
    one.reserve("b", 2, "e", "p", 20)
    one.batcher_gone("b", now=0.0)
    one.claim("b", [(2, Held("e", "p", 20)), (3, Held("e", "p", 30))])
    assert one.expire(1000.0) == []
    assert one.reserved("e", "p") == 50
    assert one.reserved("e", "other") == 0
    one.claim("b", [])
    assert one.reserved("e", "p") == 0


def test_a_claim_counts_in_its_own_pool_also_before_the_capacity_is_known() -> None:
    one = Ledger()
    one.claim("b", [(1, Held("e", "q", 20))])
    one.set_capacity("e", "p", 40)
    one.set_capacity("e", "q", 20)
    assert (one.free("e", "p"), one.free("e", "q")) == (40, 0)
    assert not one.reserve("c", 1, "e", "q", 1)
    one.release("b", 1)
    assert (one.free("e", "p"), one.free("e", "q")) == (40, 20)


def test_a_smaller_executor_keeps_its_works_and_takes_no_more() -> None:
    one = ledger()
    one.reserve("b", 1, "e", "p", 60)
    one.set_capacity("e", "p", 50)
    assert one.free("e", "p") == 0
    assert not one.reserve("b", 2, "e", "p", 1)
    one.release("b", 1)
    assert one.free("e", "p") == 50
    one.set_capacity("e", "p", 0)
    assert one.capacity("e", "p") == 0


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="-1 blocks"):
        ledger().reserve("b", 1, "e", "p", -1)
    with pytest.raises(ValueError, match="overcommit"):
        Ledger(0.0)


BATCHERS, PLACES = ("b", "c"), (("e", "p"), ("e", "q"), ("f", "p"))
batchers, places = st.sampled_from(BATCHERS), st.sampled_from(PLACES)
numbers, sizes = st.integers(0, 5), st.integers(0, 12)


class Machine(RuleBasedStateMachine):
    """Beside the ledger, the plainest one: a dictionary of reservations, and each batcher's state."""

    @initialize(overcommit=st.sampled_from((1.0, 1.5)))
    def open(self, overcommit: float) -> None:
        self.default = overcommit
        self.overcommits: dict[str, float] = {}
        self.ledger = Ledger(overcommit, GRACE_S)
        self.now = 0.0
        self.capacities: dict[tuple[str, str], int] = {}
        self.held: dict[tuple[str, int], tuple[tuple[str, str], int]] = {}
        self.lapse: dict[str, float] = {}
        # Where all that is reserved was granted within the limit of now: no claim, nothing that shrank.
        self.granted: set[tuple[str, str]] = set(PLACES)

    def limit(self, place: tuple[str, str]) -> int:
        return int(self.capacities.get(place, 0) * self.overcommits.get(place[1], self.default))

    def total(self, place: tuple[str, str]) -> int:
        return sum(blocks for where, blocks in self.held.values() if where == place)

    @rule(place=places, blocks=st.integers(0, 20))
    def set_capacity(self, place: tuple[str, str], blocks: int) -> None:
        self.ledger.set_capacity(*place, blocks)
        self.capacities[place] = blocks
        self.facts_have_changed()

    @rule(pool=st.sampled_from(("p", "q")), factor=st.sampled_from((None, 0.5, 1.0, 2.0)))
    def set_overcommit(self, pool: str, factor: float | None) -> None:
        self.ledger.set_overcommit(pool, factor)
        if factor is None:
            self.overcommits.pop(pool, None)
        else:
            self.overcommits[pool] = factor
        self.facts_have_changed()

    @rule(batcher=batchers, number=numbers, place=places, blocks=sizes)
    def reserve(self, batcher: str, number: int, place: tuple[str, str], blocks: int) -> None:
        before = self.held.get((batcher, number))
        there = before[1] if before is not None and before[0] == place else 0
        fits = blocks <= there or self.total(place) - there + blocks <= self.limit(place)
        assert self.ledger.reserve(batcher, number, *place, blocks) == fits
        if fits:
            self.held.pop((batcher, number), None)
            if blocks:
                self.held[batcher, number] = (place, blocks)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), blocks=sizes)
    def resize(self, data: st.DataObject, blocks: int) -> None:
        batcher, number = data.draw(st.sampled_from(sorted(self.held)))
        self.reserve(batcher, number, self.held[batcher, number][0], blocks)

    @rule(batcher=batchers, number=numbers)
    def release(self, batcher: str, number: int) -> None:
        assert self.ledger.release(batcher, number) == ((batcher, number) in self.held)
        self.held.pop((batcher, number), None)

    @rule(batcher=batchers, claims=st.dictionaries(numbers, st.tuples(places, sizes), max_size=3))
    def claim(self, batcher: str, claims: dict[int, tuple[tuple[str, str], int]]) -> None:
        self.ledger.claim(batcher, [(number, Held(*place, blocks)) for number, (place, blocks) in claims.items()])
        self.held = {key: value for key, value in self.held.items() if key[0] != batcher}
        for number, (place, blocks) in claims.items():
            if blocks:
                self.held[batcher, number] = (place, blocks)
        self.lapse.pop(batcher, None)
        self.facts_have_changed()

    @rule()
    def restart(self) -> None:
        """A new manager: executors report again, and each batcher that is there claims what it holds."""
        self.ledger = Ledger(self.default, GRACE_S)
        for pool, factor in self.overcommits.items():
            self.ledger.set_overcommit(pool, factor)
        self.held = {key: value for key, value in self.held.items() if key[0] not in self.lapse}
        self.lapse.clear()
        for batcher in BATCHERS:
            mine = [(number, value) for (owner, number), value in self.held.items() if owner == batcher]
            self.ledger.claim(batcher, [(number, Held(*place, blocks)) for number, (place, blocks) in mine])
        for place, blocks in self.capacities.items():
            self.ledger.set_capacity(*place, blocks)

    @rule(batcher=batchers)
    def gone(self, batcher: str) -> None:
        self.ledger.batcher_gone(batcher, self.now)
        if any(owner == batcher for owner, _number in self.held):
            self.lapse[batcher] = self.now + GRACE_S

    @rule(batcher=batchers)
    def back(self, batcher: str) -> None:
        self.ledger.batcher_back(batcher)
        self.lapse.pop(batcher, None)

    @precondition(lambda self: self.lapse)
    @rule(seconds=st.sampled_from((1.0, GRACE_S / 2, GRACE_S)))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        gone = {batcher for batcher, lapse in self.lapse.items() if lapse <= self.now}
        assert set(self.ledger.expire(self.now)) == gone
        self.held = {key: value for key, value in self.held.items() if key[0] not in gone}
        self.lapse = {batcher: lapse for batcher, lapse in self.lapse.items() if batcher not in gone}

    @rule(place=places, wrong=st.sampled_from((-3, -1, 1, 3)))
    def a_sum_is_wrong(self, place: tuple[str, str], wrong: int) -> None:
        self.ledger._sums[place] = self.ledger.reserved(*place) + wrong
        assert len(self.ledger.heal()) == 1

    def facts_have_changed(self) -> None:
        """What is reserved is a fact also where there is no room for it any more."""
        self.granted = {place for place in PLACES if self.total(place) <= self.limit(place)}

    @invariant()
    def adds_up(self) -> None:
        self.ledger.check_integrity()
        for place in PLACES:
            assert self.ledger.reserved(*place) == self.total(place)
            assert self.ledger.free(*place) == max(self.limit(place) - self.total(place), 0)
            if place in self.granted:
                assert self.ledger.reserved(*place) <= self.limit(place)

    def teardown(self) -> None:
        """Nothing leaks: once all batchers are gone and their time is over, there is nothing."""
        if hasattr(self, "ledger"):
            for batcher in BATCHERS:
                self.ledger.batcher_gone(batcher, self.now)
            self.ledger.expire(self.now + GRACE_S)
            assert not any(self.ledger.reserved(*place) for place in PLACES)
            assert (self.ledger._held, self.ledger._sums, self.ledger._lapses) == ({}, {}, {})


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
