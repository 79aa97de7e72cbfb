"""Blocks held in advance: what works take of them, what is asked for, what goes back; and that the promise holds."""

from collections import deque

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.batcher.allowance import LEAST_SPARE, PART, Allowance
from services.kvcache.ledger import Held, Ledger


def granted(blocks: int, free: int = 10_000) -> Allowance:
    """One that has so many blocks, as for a work that then ended."""
    one = Allowance()
    assert one.ask(blocks) == blocks, "nothing in advance before it is known what is free"
    one.answered(True, free)
    return one


def test_a_work_takes_what_is_there_and_leaves_it_to_the_next() -> None:
    one = granted(10)
    assert one.take(1, 6)
    assert not one.take(2, 5)
    assert one.lacking(2, 5) == 5
    assert one.give_back(1)
    assert not one.give_back(1)
    assert one.take(2, 5)
    assert one.take(2, 10), "it grows"
    assert one.take(2, 1), "it shrinks"
    assert one.take(3, 9)
    one.check_integrity()


def test_what_is_asked_for_has_some_in_advance_as_far_as_much_is_free() -> None:
    one = granted(10)
    assert one.take(1, 10)
    assert one.ask(4) == 14 + LEAST_SPARE
    one.answered(True, 10_000)
    assert one.take(2, 4 + LEAST_SPARE)
    little = granted(10, free=32)
    assert little.take(1, 10)
    assert little.ask(2) == 12 + (32 - 2) // PART


def test_a_refusal_says_what_can_still_be_had() -> None:
    one = granted(10, free=90)
    assert one.take(1, 8)
    asked = one.ask(80)
    assert 88 <= asked <= 100
    assert one.answered(False, 20) == 22, "2 that it has, and 20"
    assert one.ask(22) == 30
    assert one.answered(False, 25) == 2, "what refuses less than is free would refuse that again"
    assert one.take(2, 2)


def test_what_was_not_used_for_a_period_goes_back() -> None:
    one = granted(1000)
    assert one.take(1, 1000)
    assert one.give_back(1)
    assert one.settle() is None, "it was used within the period"
    assert one.settle() == 0
    assert not one.used
    busy = granted(1000)
    assert busy.take(1, 100)
    assert busy.settle() == 100 + LEAST_SPARE
    assert busy.settle() is None


def test_nothing_shrinks_while_an_answer_is_awaited() -> None:
    one = granted(1000)
    one.ask(2000)
    assert one.settle() is None
    assert one.recall(3) is None
    one.unanswered()
    assert one.settle() == 0


def test_where_others_lack_blocks_nothing_is_held_in_advance_for_a_while() -> None:
    one = granted(1000)
    assert one.take(1, 10)
    assert one.recall(3) == 10
    assert one.ask(5) == 15
    one.answered(True, 10_000)
    assert one.take(2, 5)
    assert [one.settle() for _ in range(3)] == [None] * 3
    assert one.ask(1) == 16 + LEAST_SPARE


def test_a_broken_stream_leaves_what_the_works_have() -> None:
    one = granted(1000)
    assert one.take(1, 10)
    one.ask(2000)
    assert one.lost() == 10
    assert not one.take(2, 1)
    assert one.give_back(1)
    one.check_integrity()


CAPACITY = 200
BATCHERS = st.integers(0, 1)


class Batcher:
    """An allowance, and the stream between it and the ledger: sizes go there, answers come back, each in order."""

    def __init__(self) -> None:
        self.allowance = Allowance()
        self.up = True
        self.sizes: deque[tuple[int, bool]] = deque()
        """And whether an answer is waited for."""
        self.answers: deque[tuple[bool, int]] = deque()


class Promise(RuleBasedStateMachine):
    """Two batchers and the manager's ledger: works never have more blocks than the executor."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger()
        self.ledger.set_capacity("e", "p", CAPACITY)
        self.batchers = {f"b{index}": Batcher() for index in range(2)}
        self.now = 0.0

    @rule(index=BATCHERS, work=st.integers(0, 5), blocks=st.integers(1, CAPACITY))
    def take(self, index: int, work: int, blocks: int) -> None:
        batcher = self.batchers[f"b{index}"]
        allowance = batcher.allowance
        if batcher.up and not allowance.take(work, blocks) and allowance.asked is None:
            batcher.sizes.append((allowance.ask(allowance.lacking(work, blocks)), True))

    @rule(index=BATCHERS, work=st.integers(0, 5))
    def give_back(self, index: int, work: int) -> None:
        self.batchers[f"b{index}"].allowance.give_back(work)

    @rule(index=BATCHERS, recalled=st.booleans())
    def shrink(self, index: int, recalled: bool) -> None:
        batcher = self.batchers[f"b{index}"]
        size = batcher.allowance.recall(2) if recalled else batcher.allowance.settle()
        if size is not None and batcher.up:
            batcher.sizes.append((size, False))

    @rule(index=BATCHERS, all_of_it=st.booleans())
    def the_manager_reads(self, index: int, all_of_it: bool) -> None:
        """All of it: and the batcher reads the answers."""
        name, batcher = f"b{index}", self.batchers[f"b{index}"]
        while batcher.sizes:
            size, waited_for = batcher.sizes.popleft()
            reserved = self.ledger.reserve(name, 1, "e", "p", size)
            assert reserved or waited_for, "to become smaller is never refused"
            if waited_for:
                batcher.answers.append((reserved, self.ledger.free("e", "p")))
            if not all_of_it:
                return
        self.the_batcher_reads(index)

    @rule(index=BATCHERS)
    def the_batcher_reads(self, index: int) -> None:
        batcher = self.batchers[f"b{index}"]
        while batcher.answers:
            batcher.allowance.answered(*batcher.answers.popleft())

    @rule(index=BATCHERS)
    def breaks(self, index: int) -> None:
        name, batcher = f"b{index}", self.batchers[f"b{index}"]
        if batcher.up:
            batcher.up = False
            batcher.sizes.clear()
            batcher.answers.clear()
            batcher.allowance.lost()
            self.ledger.batcher_gone(name, self.now)

    @rule(index=BATCHERS)
    def comes_back(self, index: int) -> None:
        name, batcher = f"b{index}", self.batchers[f"b{index}"]
        if not batcher.up:
            batcher.up = True
            batcher.allowance.lost()  # what has ended meanwhile is not claimed
            self.ledger.batcher_back(name)
            self.ledger.claim(name, [(1, Held("e", "p", batcher.allowance.given))])

    @precondition(lambda self: any(not batcher.up for batcher in self.batchers.values()))
    @rule()
    def the_dead_lapse(self) -> None:
        for name, batcher in self.batchers.items():
            if not batcher.up:
                self.batchers[name] = Batcher()  # its works have ended with it
        self.now += 100.0
        self.ledger.expire(self.now)

    @invariant()
    def nobody_has_what_another_was_granted(self) -> None:
        self.ledger.check_integrity()
        for name, batcher in self.batchers.items():
            batcher.allowance.check_integrity()
            held = self.ledger.held(name, 1)
            # What it has not read yet makes it smaller; in between it counts less than it has.
            assert batcher.allowance.granted <= (held.blocks if held is not None else 0)
        assert self.ledger.reserved("e", "p") <= CAPACITY
        assert sum(batcher.allowance.given for batcher in self.batchers.values()) <= CAPACITY


TestPromise = Promise.TestCase
TestPromise.settings = settings(max_examples=80, stateful_step_count=50, deadline=None)
