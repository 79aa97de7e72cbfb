"""The order in which works of one pool run."""

from math import inf

import pytest
from msgspec.structs import replace

from libs.lane.work import Tier
from services.batcher.fairness import UNIT, Counters
from services.batcher.line import LATE_TURN
from services.batcher.queue import AGE_S, SAMPLE, Entry, Limits, WaitQueue


def entry(
    key: int, tier: Tier = Tier.INTERACTIVE, arrived: float = 0.0, tokens: int = 10, tenant: str = "", due: float = inf
) -> Entry:
    return Entry(key, tier, tokens, arrived, tenant, 1.0, due)


def order(queue: WaitQueue, now: float = 0.0, counters: Counters | None = None) -> list[int]:
    """Empties the queue; charges what it takes when there are counters."""
    keys = []
    while (head := queue.peek(now)) is not None:
        keys.append(head.key)
        queue.remove(head.key)
        if counters is not None:
            counters.charge(head.tenant, head.tokens, 0, head.weight)
    return keys


def test_interactive_before_async_each_in_order_of_arrival() -> None:
    queue = WaitQueue()
    for key, tier in enumerate([Tier.ASYNC, Tier.INTERACTIVE, Tier.ASYNC, Tier.INTERACTIVE]):
        queue.push(entry(key, tier))
    assert [e.key for e in queue] == [1, 3, 0, 2]
    assert order(queue) == [1, 3, 0, 2]


def test_the_earliest_due_first_then_those_that_came_first() -> None:
    queue = WaitQueue()
    for key, due in enumerate([5.0, 3.0, inf, 4.0, 3.0]):
        queue.push(entry(key, due=due))
    assert order(queue, now=1.0) == [1, 4, 3, 0, 2]


def test_what_is_late_goes_behind_what_can_be_in_time() -> None:
    queue = WaitQueue()
    for key, due in enumerate([2.0, 1.0, 5.0, 4.0]):
        queue.push(entry(key, due=due))
    assert order(queue, now=3.0) == [3, 2, 1, 0]


def test_late_works_have_every_eighth_turn_of_their_tenant() -> None:
    queue = WaitQueue()
    for key in (1, 2):
        queue.push(entry(key, due=key))
    seen = []
    for key in range(10, 10 + 2 * LATE_TURN + 2):
        queue.push(entry(key, due=1000.0 + key))
        head = queue.peek(100.0)
        assert head is not None
        seen.append(head.key)
        queue.remove(head.key)
    assert seen.index(1) == LATE_TURN - 1
    assert seen.index(2) == 2 * LATE_TURN - 1


def test_works_that_come_back_take_no_turn_from_late_ones() -> None:
    queue = WaitQueue()
    queue.push(entry(1, due=1.0))
    for key in range(10, 10 + LATE_TURN - 1):
        queue.push(entry(key, due=1000.0))
        queue.remove(key)
        queue.push_front(entry(key))
        head = queue.peek(100.0)
        assert head is not None
        assert head.key == key
        queue.remove(key)
    queue.push(entry(100, due=1000.0))
    assert order(queue, now=100.0) == [1, 100]


def test_tenants_take_turns() -> None:
    counters = Counters()
    queue = WaitQueue(counters)
    for key in range(4):
        queue.push(entry(key, tenant="x"))
    for key in range(4, 6):
        queue.push(entry(key, tenant="y"))
    assert order(queue, counters=counters) == [0, 4, 1, 5, 2, 3]


def test_one_counter_counts_in_all_pools() -> None:
    counters = Counters()
    one, other = WaitQueue(counters), WaitQueue(counters)
    for queue in (one, other):
        for key, tenant in enumerate("xxyy"):
            queue.push(entry(key, tenant=tenant))
    counters.charge("x", 15, 0)  # for something that runs
    assert order(one, counters=counters) == [2, 3, 0, 1]
    counters.settle("y", 10, 0)
    counters.settle("x", 0, 10)
    assert order(other, counters=counters) == [2, 3, 0, 1]


def test_async_work_that_has_waited_is_ordered_as_interactive() -> None:
    queue = WaitQueue()
    queue.push(entry(1, Tier.INTERACTIVE, arrived=5.0))
    queue.push(entry(2, Tier.ASYNC, arrived=10.0))
    queue.push(entry(3, Tier.INTERACTIVE, arrived=15.0))
    queue.push(entry(4, Tier.ASYNC, arrived=10.0 + AGE_S))
    assert order(queue, now=10.0 + AGE_S) == [1, 2, 3, 4]


def test_how_long_that_takes_is_a_rule() -> None:
    queue = WaitQueue()
    queue.push(entry(1, Tier.ASYNC, arrived=0.0, due=20.0))
    queue.push(entry(2, Tier.INTERACTIVE, arrived=0.0, due=30.0))
    head = queue.peek(5.0)
    assert head is not None
    assert head.key == 2
    head = queue.peek(5.0, age_s=5.0)
    assert head is not None
    assert head.key == 1


def test_a_tenant_whose_async_works_age_is_owed_no_more_than_one_that_was_idle() -> None:
    """While the others were served 10,000 tokens it had no turn."""
    counters = Counters(idle=100)
    queue = WaitQueue(counters)
    for key in range(100, 200):
        queue.push(entry(key, tenant="flood"))
    for key in range(50):
        queue.push(entry(key, Tier.ASYNC, arrived=0.0 if key < 40 else 1.0, tenant="night"))
    counters.charge("flood", 10_000, 0)
    queue.peek(AGE_S)
    assert counters.served("flood") - counters.served("night") == 100
    counters.charge("flood", 50, 0)
    queue.peek(AGE_S + 1.0)
    assert counters.served("flood") - counters.served("night") == 150, "it is in the class already: it earns its share"
    assert [key < 50 for key in order(queue, AGE_S + 1.0, counters)[:25]] == 15 * [True] + 5 * [False, True]


def test_who_was_served_more_than_those_it_joins_is_not_made_up_to() -> None:
    counters = Counters(idle=100)
    queue = WaitQueue(counters)
    queue.push(entry(2, tenant="flood"))
    queue.push(entry(1, Tier.ASYNC, tenant="night"))
    before = counters.served("night"), counters.served("flood")
    counters.charge("flood", 10_000, 0)
    counters.charge("night", 12_000, 0)
    queue.peek(AGE_S)
    assert (counters.served("night"), counters.served("flood")) == (before[0] + 12_000, before[1] + 10_000)


def test_where_nobody_has_turns_who_ages_joins_as_it_is() -> None:
    counters = Counters(idle=100)
    queue = WaitQueue(counters)
    queue.push(entry(1, Tier.ASYNC, tenant="night"))
    queue.push(entry(2, tenant="flood"))
    counters.charge("flood", 10_000, 0)
    queue.park(2, until=inf, on="e")
    queue.peek(AGE_S)
    assert counters.served("night") == 0


@pytest.mark.parametrize("due", [inf, 600.0, 1.0])
@pytest.mark.parametrize("tenant", ["flood0", "calm"])
def test_async_work_never_starves(tenant: str, due: float) -> None:
    """Ten works a second come from eight tenants, all with time left, and one a second runs: the bound that the
    module states. It holds from when the work has aged, and, if it has a due time, is late."""
    counters, turns, slowest = Counters(), 0, LATE_TURN * 9 + 1
    queue, key, now = WaitQueue(counters), 1, 0.0
    queue.push(entry(0, Tier.ASYNC, tenant=tenant, due=due))
    while True:
        now += 1.0
        for _ in range(10):
            queue.push(entry(key, arrived=now, tenant=f"flood{key % 8}", due=now + 1e6))
            key += 1
        head = queue.peek(now)
        assert head is not None
        queue.remove(head.key)
        counters.charge(head.tenant, head.tokens, 0)
        if head.key == 0:
            assert now >= AGE_S
            return
        turns += now >= max(AGE_S, due if due < inf else 0.0)
        assert turns <= slowest


def test_work_that_comes_back_goes_to_the_front_in_order_of_arrival() -> None:
    queue = WaitQueue()
    for key in (1, 2, 3, 4, 5):
        queue.push(entry(key, due=10.0 - key))
    for key in (1, 2, 3):
        queue.remove(key)
    for key in (2, 1, 3):  # however their ends come in
        queue.push_front(entry(key))
    assert order(queue) == [1, 2, 3, 5, 4]


def test_what_is_parked_lets_others_pass_and_counts() -> None:
    queue = WaitQueue()
    for key in range(4):
        queue.push(entry(key, due=10.0 + key))
    queue.park(0, until=5.0, on="e1")
    queue.park(1, until=7.0, on="e2")
    head = queue.peek(1.0)
    assert head is not None
    assert head.key == 2
    assert (queue.waiting(Tier.INTERACTIVE), queue.waiting_tokens(Tier.INTERACTIVE), queue.parked()) == (4, 40, 2)
    assert queue.unpark("e2") == 1
    assert queue.unpark("e2") == 0
    assert queue.unpark_due(4.9) == 0
    head = queue.peek(1.0)
    assert head is not None
    assert head.key == 1
    assert queue.unpark_due(5.0) == 1
    assert order(queue) == [0, 1, 2, 3]


def test_a_tenant_whose_works_are_all_parked_lets_the_next_one_pass() -> None:
    queue = WaitQueue()
    queue.push(entry(0, tenant="x"))
    queue.push(entry(1, Tier.ASYNC, tenant="y"))
    queue.park(0, until=9.0, on="e")
    queue.park(0, until=inf, on="f")  # only the last one counts
    assert queue.unpark("e") == queue.unpark_due(100.0) == 0
    head = queue.peek(0.0)
    assert head is not None
    assert head.key == 1
    queue.remove(1)
    assert queue.peek(0.0) is None
    assert queue.remove(0) == entry(0, tenant="x")
    assert queue.parked() == len(queue) == 0
    queue.check_integrity()


def test_what_those_that_wait_for_something_have_to_compute_is_known() -> None:
    queue = WaitQueue()
    for key in range(3):
        queue.push(entry(key))
        queue.park(key, until=5.0 + key, on="e", tokens=10**key)
    assert (queue.awaited("e"), queue.awaited("f"), queue.waiting_for("e")) == (111, 0, [0, 1, 2])
    queue.park(0, until=9.0, on="f", tokens=7)
    queue.unpark_due(6.0)
    queue.remove(1)
    assert (queue.awaited("e"), queue.awaited("f"), queue.waiting_for("e")) == (100, 7, [2])
    queue.unpark("e")
    assert queue.awaited("e") == 0
    queue.check_integrity()


def test_a_tenant_that_is_set_aside_has_no_turns_until_it_is_taken_in() -> None:
    queue = WaitQueue(counters := Counters())
    for key, tenant in enumerate("aabc"):
        queue.push(entry(key, tenant=tenant))
    queue.push(entry(9, Tier.ASYNC, tenant="a"))
    queue.set_aside("a")
    queue.set_aside("nobody")
    queue.push(entry(5, tenant="a"))
    counters.charge("a", 1, 1)
    assert order(queue) == [2, 3], "not even its async works"
    queue.check_integrity()
    queue.take_in()
    assert order(queue) == [0, 1, 5, 9]
    queue.take_in()
    queue.push(entry(7, tenant="a"))
    assert order(queue) == [7]
    queue.check_integrity()


def test_what_a_tenant_leaves_to_others_is_not_for_the_next_class() -> None:
    queue = WaitQueue()
    queue.push(entry(1, tenant="a"))
    queue.push(entry(2, tenant="b"))
    queue.push(entry(3, Tier.ASYNC, tenant="c"))
    queue.set_aside("a")
    assert order(queue) == [2], "async work would be pushed out again"
    queue.take_in()
    queue.park(1, until=9.0, on="e")
    queue.set_aside("a")
    assert order(queue) == [3], "it leaves nothing: it could not run"
    queue.take_in()


def test_a_tenant_that_leaves_while_it_is_set_aside_comes_back_as_any_other() -> None:
    queue = WaitQueue()
    queue.push(entry(1, tenant="a"))
    queue.set_aside("a")
    queue.remove(1)
    queue.push(entry(2, tenant="a"))
    queue.take_in()
    assert order(queue) == [2]
    queue.check_integrity()


def test_what_is_not_here_cannot_be_parked() -> None:
    with pytest.raises(KeyError, match="work 7"):
        WaitQueue().park(7, 1.0, "e")


def test_to_be_parked_is_no_turn() -> None:
    queue = WaitQueue()
    queue.push(entry(0, due=1.0))
    for key in range(1, 2 * LATE_TURN):
        queue.push(entry(key, due=100.0))
        queue.park(key, until=50.0, on="e")
    queue.push(entry(100, due=100.0))
    head = queue.peek(2.0)
    assert head is not None
    assert head.key == 100


def test_the_oldest_is_the_one_that_has_waited_longest() -> None:
    queue = WaitQueue()
    assert queue.oldest(Tier.ASYNC) is None
    for key, (arrived, due) in enumerate([(3.0, 5.0), (2.0, 9.0), (4.0, 4.5)]):
        queue.push(entry(key, Tier.ASYNC, arrived=arrived, due=due))
    assert queue.oldest(Tier.ASYNC) == 2.0
    assert queue.oldest(Tier.INTERACTIVE) is None
    queue.remove(1)
    assert queue.oldest(Tier.ASYNC) == 3.0


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


def test_within_a_tenant_what_is_ahead_is_known() -> None:
    queue = WaitQueue()
    for key, due in enumerate([2.0, 5.0, 20.0, 30.0, 40.0]):
        queue.push(entry(key, due=due, tokens=10**key))
    queue.push(entry(5, Tier.ASYNC, tokens=7))
    queue.push_front(entry(6, tokens=1_000_000))
    new = entry(9, arrived=10.0, due=35.0)
    assert queue.tokens_ahead(new) == 1_000_000 + 100 + 1_000 + 11, "what is late was promised first"
    assert queue.tokens_ahead(replace(new, due=15.0)) == 1_000_000 + 11
    assert queue.tokens_ahead(replace(new, due=4.0)) == 1_000_000 + 100 + 1_000 + 10_000 + 1
    assert queue.tokens_ahead(replace(new, due=inf)) == 1_011_111
    assert queue.tokens_ahead(replace(new, tier=Tier.ASYNC, due=inf)) == 1_011_111 + 7
    queue.park(6, 20.0, "e")
    assert queue.tokens_ahead(replace(new, due=15.0)) == 11


def test_what_is_late_counts_whole_so_that_no_more_is_promised() -> None:
    queue = WaitQueue()
    for key in range(100):
        queue.push(entry(key, due=2.0))
    new = entry(100, arrived=3.0, due=5.0)
    assert queue.tokens_ahead(new) == 1_000
    queue.push(entry(101, arrived=3.0, due=4.0))
    assert queue.tokens_ahead(new) == 1_010
    assert queue.tokens_ahead(replace(new, due=3.5)) == 1_000


def test_of_what_is_ahead_its_own_are_known() -> None:
    queue = WaitQueue()
    assert queue.own_ahead(entry(9, tenant="x")) == 0
    for key, (tenant, tier, due) in enumerate([
        ("x", Tier.INTERACTIVE, 2.0), ("x", Tier.INTERACTIVE, 20.0), ("x", Tier.INTERACTIVE, 40.0),
        ("x", Tier.ASYNC, 10.0), ("y", Tier.INTERACTIVE, 1.0),
    ]):  # fmt: skip
        queue.push(entry(key, tier, tokens=10**key, tenant=tenant, due=due))
    new = entry(9, tenant="x", arrived=5.0, due=30.0)
    assert queue.own_ahead(new) == 11
    assert queue.own_ahead(new) <= queue.tokens_ahead(new)
    assert queue.own_ahead(replace(new, tier=Tier.ASYNC)) == 1_000
    assert queue.own_ahead(replace(new, tenant="z")) == 0


@pytest.mark.parametrize("tenants", [3, 40, 2 * SAMPLE])
def test_of_other_tenants_what_fairness_lets_pass(tenants: int) -> None:
    """The estimate against what really runs before a new work."""
    counters = Counters()
    queue, key = WaitQueue(counters), 0
    for round_ in range(5):
        for number in range(tenants):
            key += 1
            tokens = 50 + (key * 7919) % 1_000
            queue.push(Entry(key, Tier.INTERACTIVE, tokens, 0.0, f"t{number}", 1.0 + number % 3, 100.0 + round_))
    for _ in range(tenants // 2):
        head = queue.peek(0.0)
        assert head is not None
        queue.remove(head.key)
        counters.charge(head.tenant, head.tokens, 0, head.weight)
    for tenant, due in (("new", 100.0), ("t1", 102.5), ("t2", 104.0)):
        new = Entry(1_000_000, Tier.INTERACTIVE, 500, 0.0, tenant, {"t1": 2.0, "t2": 3.0}.get(tenant, 1.0), due)
        estimated = queue.tokens_ahead(new)
        copy, charged = replayed(queue, counters)
        copy.push(new)
        ahead = 0
        while (head := copy.peek(0.0)) is not None and head != new:
            ahead += head.tokens
            copy.remove(head.key)
            charged.charge(head.tenant, head.tokens, 0, head.weight)
        assert estimated == pytest.approx(ahead, rel=0.35, abs=2_000)


def replayed(queue: WaitQueue, counters: Counters) -> tuple[WaitQueue, Counters]:
    """The same works beside counters of the same values."""
    copies = Counters()
    copy = WaitQueue(copies)
    works = list(queue)
    for one in works:
        copy.push(one)
    for tenant in {one.tenant for one in works}:
        copies.settle(tenant, 0, round(counters.served(tenant) * UNIT), 2 * UNIT)
    return copy, copies


def test_nothing_is_ahead_of_who_was_served_least() -> None:
    counters = Counters()
    queue = WaitQueue(counters)
    for key, tenant in enumerate(["", "x", "y"]):
        queue.push(entry(key, tenant=tenant, due=2.0))
        counters.charge(tenant, 1_000 if tenant else 0, 0)
    assert queue.tokens_ahead(entry(9, tenant="", due=1.0)) == 0
