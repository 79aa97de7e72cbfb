"""What tenants get of a queue: by their weights, within the bound of the paper."""

from collections import Counter, deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from libs.lane.work import Tier
from services.batcher.fairness import INPUT_COST, OUTPUT_COST, UNIT, Account, Counters
from services.batcher.queue import Entry, WaitQueue

WEIGHTS = {"a": 1.0, "b": 3.0, "c": 0.5}
IDLE = 300
"""Tokens that who was idle is owed, in the book."""


class Waiting:
    """Somewhere tenants wait, and how often it heard of a change."""

    def __init__(self) -> None:
        self.told = 0

    def moved(self) -> None:
        self.told += 1


class Server:
    """A queue from which one work after the other is dispatched; what it has served, by tenant and weight."""

    def __init__(self, counters: Counters | None = None) -> None:
        self.counters = counters or Counters()
        self.queue = WaitQueue(self.counters)
        self.key = 0
        self.outputs: dict[int, tuple[int, int]] = {}
        self.running: deque[tuple[Entry, int, int]] = deque()
        self.served: Counter[str] = Counter()

    def push(self, tenant: str, tokens: int = 100, expected: int = 50, actual: int = 50, **more: float) -> int:
        self.key += 1
        weight = more.pop("weight", WEIGHTS.get(tenant, 1.0))
        self.queue.push(Entry(self.key, Tier.INTERACTIVE, tokens, 0.0, tenant, weight))
        self.outputs[self.key] = (expected, actual)
        return self.key

    def dispatch(self, slots: int = 1) -> str:
        """Runs the next work, and ends the oldest one where there are more than slots."""
        entry = self.queue.peek(1.0)
        assert entry is not None
        self.queue.remove(entry.key)
        expected, actual = self.outputs.pop(entry.key)
        self.counters.charge(entry.tenant, entry.tokens, expected, entry.weight)
        self.served[entry.tenant] += INPUT_COST * entry.tokens
        self.running.append((entry, expected, actual))
        while len(self.running) > slots - 1:
            ended, expected, actual = self.running.popleft()
            self.counters.settle(ended.tenant, expected, actual, ended.weight)
            self.served[ended.tenant] += OUTPUT_COST * actual
        return entry.tenant


works = st.tuples(st.integers(1, 2_000), st.integers(1, 500), st.integers(1, 500))


def test_what_is_taken_back_was_never_charged() -> None:
    counters = Counters()
    counters.charge("a", 7, 5, 3.0)
    before, cost = counters.served("a"), counters.cost
    counters.charge("a", 1000, 10, 3.0)
    counters.take_back("a", 1000, 10, 3.0)
    assert (counters.served("a"), counters.cost) == (before, cost)
    counters.take_back("never seen", 1000, 10)
    assert len(counters) == 1, "of a tenant that was forgotten nothing is left that could be taken back"


@settings(deadline=None, max_examples=60)
@given(st.lists(works, min_size=4, max_size=12), st.sampled_from([1, 4]))
def test_backlogged_tenants_are_served_by_weight_within_the_bound(
    kinds: list[tuple[int, int, int]], slots: int
) -> None:
    """The paper's bound on the difference: 2·max(input, what answers in flight may cost), by the smaller weight; and
    one token, for what is rounded."""
    server = Server()
    largest_input = max(tokens for tokens, _, _ in kinds)
    largest_output = max(max(expected, actual) for _, expected, actual in kinds)
    bound = 2 * max(INPUT_COST * largest_input, OUTPUT_COST * largest_output * slots) / min(WEIGHTS["a"], WEIGHTS["b"])
    for index in range(300):
        for tenant in "ab":
            while sum(entry.tenant == tenant for entry in server.queue) < 2:
                server.push(tenant, *kinds[(index + server.key) % len(kinds)])
        server.dispatch(slots)
        assert abs(server.served["a"] / 1.0 - server.served["b"] / 3.0) <= bound + 1


def test_weights_divide_what_is_served() -> None:
    server = Server()
    for tenant in ("a", "b") * 400:
        server.push(tenant)
    turns = Counter(server.dispatch() for _ in range(400))
    assert turns["b"] == pytest.approx(3 * turns["a"], abs=3)


def test_who_was_idle_gets_no_credit() -> None:
    server = Server()
    for _ in range(500):
        server.push("x")
    for _ in range(400):
        server.dispatch()
    for _ in range(50):
        server.push("y")
    assert Counter(server.dispatch() for _ in range(20)) == {"x": 10, "y": 10}


def test_nor_when_the_queue_was_empty_all_the_time() -> None:
    server = Server()
    for _ in range(400):
        server.push("x")
        server.dispatch()
    for tenant in ("y", "x") * 20:
        server.push(tenant)
    assert Counter(server.dispatch() for _ in range(20)) == {"x": 10, "y": 10}


def test_a_flood_delays_the_next_work_of_another_by_one_dispatch_at_most() -> None:
    server = Server()
    for _ in range(2_000):
        server.push("flood", weight=1.0)
    for round_ in range(20):
        for _ in range(round_):
            server.dispatch()
        server.push("calm", weight=1.0)
        assert "calm" in (server.dispatch(), server.dispatch())


def test_a_correction_takes_back_exactly_what_was_charged() -> None:
    once, corrected = Counters(), Counters()
    for weight in (1.0, 3.0, 0.7, 1 / 3):
        for tokens in range(1, 200):
            once.charge("a", tokens, 7 * tokens % 101, weight)
            corrected.charge("a", tokens, 1000, weight)
            corrected.settle("a", 1000, 7 * tokens % 101, weight)
    assert corrected.served("a") == once.served("a")


def test_a_weight_is_above_nothing() -> None:
    with pytest.raises(ValueError, match="above 0"):
        Counters().charge("a", 1, 1, 0.0)


def test_credit_is_bounded_and_keeps_the_order_of_those_that_have_it() -> None:
    counters, line = Counters(credit=1_000), Waiting()
    for tenant in ("x", "y", "served"):
        counters.enter(tenant, line)
    counters.charge("y", 10, 0)
    for _ in range(100):
        counters.charge("served", 100, 0)
        assert counters.served("served") - counters.served("x") <= 1_000 + 100
        assert counters.served("y") == counters.served("x") + 10
    assert counters.served("served") == 10_000
    counters.check_integrity()


def test_who_begins_to_have_turns_is_lifted_to_the_credit_of_who_was_idle_and_never_lowered() -> None:
    counters, line = Counters(idle=100), Waiting()
    first, second = counters.enter("first", line), counters.enter("second", line)
    start = counters.served("second")
    counters.charge("first", 10_000, 0)
    counters.join(second, float(first.served))
    assert counters.served("first") - counters.served("second") == 100
    counters.charge("second", 60, 0)
    counters.join(second, float(first.served))
    assert counters.served("first") - counters.served("second") == 40
    counters.join(first, float(second.served))
    assert counters.served("first") - counters.served("second") == 40
    assert counters.served("second") > start
    counters.check_integrity()


def test_the_cost_of_a_prompt_token_is_learned() -> None:
    counters = Counters()
    assert counters.cost == 1.0
    counters.charge("a", 100, 500)
    counters.settle("a", 500, 50)
    assert counters.cost == 2.0
    for _ in range(400):
        counters.charge("a", 100_000, 100_000)
    assert counters.cost == pytest.approx(3.0, rel=0.01)


def test_tenants_are_forgotten_when_that_changes_nothing() -> None:
    counters, line = Counters(tenants=100), Waiting()
    base = counters.enter("base", line)
    counters.charge("base", 1_000, 0)
    for number in range(1_000):
        counters.leave(counters.enter(f"t{number}", line), line)
        counters.charge(f"t{number}", 0 if number != 3 else 50, 0)
        assert len(counters) <= 100
    assert counters.served("t3") == 1_050  # it is ahead: forgetting it would be a gift
    assert counters.served("t4") == 1_000
    assert base.served == 1_000 * UNIT


def test_beyond_the_bound_the_smallest_debts_are_forgotten() -> None:
    counters, line = Counters(tenants=100), Waiting()
    counters.enter("base", line)
    for number in range(1, 151):
        counters.charge(f"t{number:03}", number, 0)
        assert len(counters) <= 100
    assert counters.served("t150") == 150
    assert counters.served("t001") == 0
    counters.settle("t001", 10, 5)  # nothing is left of its debt
    assert counters.served("t001") == 0
    counters.settle("t001", 5, 10)
    assert counters.served("t001") == 10
    counters.check_integrity()


def test_those_that_wait_are_never_forgotten() -> None:
    counters, line = Counters(tenants=10), Waiting()
    accounts = [counters.enter(f"t{number}", line) for number in range(50)]
    counters.charge("t7", 5, 0)
    for number in range(100):
        counters.charge(f"other{number}", 1, 0)
    assert counters.served("t7") == 5
    assert len(counters) <= 50 + 10
    for account in accounts:
        counters.leave(account, line)
    counters.check_integrity()


class AgainstTheBook(RuleBasedStateMachine):
    """The counters beside a plain book of the same rules."""

    tenants = st.sampled_from(sorted(WEIGHTS))

    def __init__(self) -> None:
        super().__init__()
        self.counters = Counters(idle=IDLE)
        self.served: dict[str, int] = {}
        self.waits: dict[str, list[tuple[Account, Waiting]]] = {tenant: [] for tenant in WEIGHTS}
        self.left = ""
        self.charged: list[tuple[str, int]] = []

    def floor(self) -> int:
        waiting = [self.served[tenant] for tenant, waits in self.waits.items() if waits]
        if not waiting and not self.left:
            return 0
        return min(waiting, default=self.served.get(self.left, 0)) - IDLE * UNIT

    def add(self, tenant: str, input_tokens: int, output_tokens: int) -> None:
        unit = UNIT / WEIGHTS[tenant]
        self.served[tenant] += round(input_tokens * unit) + round(OUTPUT_COST * output_tokens * unit)

    @rule(tenant=tenants)
    def enter(self, tenant: str) -> None:
        line = Waiting()
        floor = self.floor()
        self.served.setdefault(tenant, floor)
        if not self.waits[tenant]:
            self.served[tenant] = max(self.served[tenant], floor)
        self.waits[tenant].append((self.counters.enter(tenant, line), line))

    @precondition(lambda self: any(self.waits.values()))
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        tenant = data.draw(st.sampled_from(sorted(name for name, waits in self.waits.items() if waits)))
        account, line = self.waits[tenant].pop()
        self.counters.leave(account, line)
        if not self.waits[tenant]:
            self.left = tenant

    @precondition(lambda self: any(self.waits.values()))
    @rule(data=st.data())
    def join(self, data: st.DataObject) -> None:
        """One that waits begins to have turns beside another."""
        waiting = st.sampled_from(sorted(name for name, waits in self.waits.items() if waits))
        tenant, other = data.draw(waiting), data.draw(waiting)
        account, line = self.waits[tenant][0]
        told, lowest = line.told, self.served[other]
        self.counters.join(account, float(lowest))
        lifted = max(self.served[tenant], lowest - IDLE * UNIT)
        assert line.told == told + (lifted > self.served[tenant])
        self.served[tenant] = lifted

    @rule(tenant=tenants, input_tokens=st.integers(0, 1_000), output_tokens=st.integers(0, 1_000))
    def charge(self, tenant: str, input_tokens: int, output_tokens: int) -> None:
        self.served.setdefault(tenant, self.floor())
        self.add(tenant, input_tokens, output_tokens)
        told = [line.told for _, line in self.waits[tenant]]
        self.counters.charge(tenant, input_tokens, output_tokens, WEIGHTS[tenant])
        assert [line.told for _, line in self.waits[tenant]] == [count + 1 for count in told]
        self.charged.append((tenant, output_tokens))

    @precondition(lambda self: self.charged)
    @rule(actual=st.integers(0, 2_000))
    def settle(self, actual: int) -> None:
        tenant, expected = self.charged.pop()
        self.add(tenant, 0, actual)
        self.add(tenant, 0, -expected)
        self.counters.settle(tenant, expected, actual, WEIGHTS[tenant])

    @invariant()
    def agree(self) -> None:
        self.counters.check_integrity()
        for tenant, waits in self.waits.items():
            floor = self.floor()
            served = self.served.get(tenant, floor)
            assert self.counters.served(tenant) == (served if waits else max(served, floor)) / UNIT
            assert all(account.served == served for account, _ in waits)


AgainstTheBook.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
test_against_the_book = AgainstTheBook.TestCase
