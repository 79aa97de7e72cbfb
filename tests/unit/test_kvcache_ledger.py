"""The ledger: examples, and a machine in which batchers come, go and crash."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

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


def test_the_same_number_again_replaces() -> None:
    one = ledger()
    assert one.reserve("b", 1, "e", "p", 80)
    assert one.reserve("b", 1, "e", "p", 90)
    assert one.reserved("e", "p") == 90
    assert not one.reserve("b", 1, "e", "p", 101)
    assert one.reserved("e", "p") == 0


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
        self.overcommit = overcommit
        self.ledger = Ledger(overcommit, GRACE_S)
        self.now = 0.0
        self.capacities: dict[tuple[str, str], int] = {}
        self.held: dict[tuple[str, int], tuple[tuple[str, str], int]] = {}
        self.lapse: dict[str, float] = {}

    def total(self, place: tuple[str, str]) -> int:
        return sum(blocks for where, blocks in self.held.values() if where == place)

    @rule(place=places, blocks=st.integers(0, 20))
    def set_capacity(self, place: tuple[str, str], blocks: int) -> None:
        self.ledger.set_capacity(*place, blocks)
        self.capacities[place] = blocks

    @rule(batcher=batchers, number=numbers, place=places, blocks=sizes)
    def reserve(self, batcher: str, number: int, place: tuple[str, str], blocks: int) -> None:
        self.held.pop((batcher, number), None)
        limit = int(self.capacities.get(place, 0) * self.overcommit)
        fits = blocks <= max(limit - self.total(place), 0)
        assert self.ledger.reserve(batcher, number, *place, blocks) == fits
        if fits and blocks:
            self.held[batcher, number] = (place, blocks)
            assert self.ledger.reserved(*place) <= limit

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

    @invariant()
    def adds_up(self) -> None:
        self.ledger.check_integrity()
        for place in PLACES:
            assert self.ledger.reserved(*place) == self.total(place)
            assert self.ledger.free(*place) >= 0


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
