"""The order in which works of one pool run."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from libs.lane.work import Tier
from services.batcher.queue import AGE_S, Entry, Limits, WaitQueue

tiers = st.sampled_from(Tier)


def entry(key: int, tier: Tier = Tier.INTERACTIVE, arrived: float = 0.0, tokens: int = 10) -> Entry:
    return Entry(key, tier, tokens, arrived)


def order(queue: WaitQueue, now: float = 0.0) -> list[int]:
    """Empties the queue."""
    keys = []
    while (head := queue.peek(now)) is not None:
        keys.append(head.key)
        queue.remove(head.key)
    return keys


def test_interactive_before_async_each_in_order_of_arrival() -> None:
    queue = WaitQueue()
    for key, tier in enumerate([Tier.ASYNC, Tier.INTERACTIVE, Tier.ASYNC, Tier.INTERACTIVE]):
        queue.push(entry(key, tier))
    assert [e.key for e in queue] == [1, 3, 0, 2]
    assert order(queue) == [1, 3, 0, 2]


def test_async_work_that_has_waited_is_ordered_as_interactive() -> None:
    queue = WaitQueue()
    queue.push(entry(1, Tier.INTERACTIVE, arrived=5.0))
    queue.push(entry(2, Tier.ASYNC, arrived=10.0))
    queue.push(entry(3, Tier.INTERACTIVE, arrived=15.0))
    queue.push(entry(4, Tier.ASYNC, arrived=10.0 + AGE_S))
    assert order(queue, now=10.0 + AGE_S) == [1, 2, 3, 4]


def test_async_work_never_starves() -> None:
    queue = WaitQueue()
    queue.push(entry(0, Tier.ASYNC, arrived=0.0))
    for second in range(1, 100):
        queue.push(entry(2 * second, arrived=float(second)))
        queue.push(entry(2 * second + 1, arrived=float(second)))
        head = queue.peek(float(second))
        assert head is not None
        queue.remove(head.key)
        if head.key == 0:
            assert second == AGE_S
            return
    raise AssertionError("it starved")


def test_work_that_comes_back_goes_to_the_front_in_order_of_arrival() -> None:
    queue = WaitQueue()
    for key in (1, 2, 3, 4, 5):
        queue.push(entry(key))
    for key in (1, 2, 3):
        queue.remove(key)
    for key in (2, 1, 3):  # however their ends come in
        queue.push_front(entry(key))
    assert order(queue) == [1, 2, 3, 4, 5]


def test_what_does_not_fit_is_refused() -> None:
    queue, limits = WaitQueue(), Limits(works=2, tokens=100)
    assert queue.refusal(Tier.INTERACTIVE, 1000, limits) is None  # alone, a long prompt is let in
    queue.push(entry(1, tokens=60))
    assert queue.refusal(Tier.INTERACTIVE, 40, limits) is None
    assert "limit of 100" in (queue.refusal(Tier.INTERACTIVE, 41, limits) or "")
    queue.push(entry(2, tokens=1))
    assert "limit is 2" in (queue.refusal(Tier.INTERACTIVE, 1, limits) or "")
    assert queue.refusal(Tier.ASYNC, 1, limits) is None
    queue.push_front(entry(3, tokens=1))  # never refused
    assert queue.waiting(Tier.INTERACTIVE) == 3


@pytest.mark.parametrize("again", [entry(1), entry(1, Tier.ASYNC)])
def test_a_work_is_here_once(again: Entry) -> None:
    queue = WaitQueue()
    queue.push_front(entry(1))
    for put in (queue.push, queue.push_front):
        with pytest.raises(ValueError):
            put(again)
    queue.check_integrity()


class AgainstLists(RuleBasedStateMachine):
    """The queue beside a sorted list of all that is in it."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = WaitQueue()
        self.new: dict[int, Entry] = {}
        self.returned: dict[int, Entry] = {}
        self.running: dict[int, Entry] = {}
        self.now = 0.0
        self.key = 0

    @rule(tier=tiers, tokens=st.integers(0, 50))
    def push(self, tier: Tier, tokens: int) -> None:
        self.key += 1
        self.new[self.key] = made = Entry(self.key, tier, tokens, self.now)
        self.queue.push(made)

    @rule(seconds=st.floats(0.0, AGE_S))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.new or self.returned)
    @rule()
    def run(self) -> None:
        head = self.queue.peek(self.now)
        assert head is not None
        assert head == self.expected()
        assert self.queue.remove(head.key) == head
        self.new.pop(head.key, None)
        self.returned.pop(head.key, None)
        self.running[head.key] = head

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def come_back(self, data: st.DataObject) -> None:
        back = self.running.pop(data.draw(st.sampled_from(sorted(self.running))))
        self.returned[back.key] = back
        self.queue.push_front(back)

    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        key = data.draw(st.integers(0, self.key + 1))
        expected = self.new.pop(key, None) or self.returned.pop(key, None)
        assert self.queue.remove(key) == expected

    def expected(self) -> Entry:
        heads = {}
        for tier in Tier:
            line = [
                *sorted((e for e in self.returned.values() if e.tier == tier), key=lambda e: e.key),
                *(e for e in self.new.values() if e.tier == tier),
            ]
            if line:
                heads[tier] = line[0]
        interactive, patient = heads.get(Tier.INTERACTIVE), heads.get(Tier.ASYNC)
        if patient is None or interactive is None:
            head = interactive or patient
            assert head is not None
            return head
        old = self.now - patient.arrived >= AGE_S
        return patient if old and patient.arrived < interactive.arrived else interactive

    @invariant()
    def integrity(self) -> None:
        self.queue.check_integrity()
        held = [*self.new.values(), *self.returned.values()]
        assert len(self.queue) == len(held)
        for tier in Tier:
            assert self.queue.waiting(tier) == sum(e.tier == tier for e in held)
            assert self.queue.waiting_tokens(tier) == sum(e.tokens for e in held if e.tier == tier)
            assert (self.queue.oldest(tier) is None) == (self.queue.waiting(tier) == 0)


AgainstLists.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
test_against_lists = AgainstLists.TestCase
