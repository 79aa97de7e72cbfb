"""The queue beside a list of all that is in it, whatever is done to it, in any order."""

from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from math import inf

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from libs.lane.work import Tier
from services.batcher.fairness import Counters
from services.batcher.line import LATE_TURN
from services.batcher.queue import AGE_S, Entry, WaitQueue

WEIGHTS = {"a": 1.0, "b": 3.0, "c": 0.5}
IDLE = 20
"""Tokens that who was idle is owed, in the model."""


@dataclass
class Mine:
    """A work in the model."""

    entry: Entry
    tier: Tier
    came_back: bool
    on: str = ""
    until: float = inf

    @property
    def due(self) -> float:
        return self.entry.due if self.entry.due < inf else self.entry.arrived


@dataclass
class MyLine:
    """A tenant in a class of the model."""

    number: int
    passed: int = 0
    works: set[int] = field(default_factory=set)


class AgainstLists(RuleBasedStateMachine):
    """The queue beside a list of all that is in it, which is sorted whenever it is asked."""

    names = st.sampled_from(["e1", "e2", "work 7"])
    tiers = st.sampled_from(Tier)
    tenants = st.sampled_from(sorted(WEIGHTS))

    def __init__(self) -> None:
        super().__init__()
        self.counters = Counters(idle=IDLE)
        self.queue = WaitQueue(self.counters)
        self.mine: dict[int, Mine] = {}
        self.lines: dict[tuple[Tier, str], MyLine] = {}
        self.running: dict[int, tuple[Entry, int]] = {}
        self.served: dict[str, float] = {}
        self.now = 0.0
        self.key = 0
        self.opened = 0

    @rule(
        tier=tiers, tokens=st.integers(0, 50), tenant=tenants, due=st.sampled_from([0.0, 1.0, 10.0, AGE_S, 100.0, inf])
    )
    def push(self, tier: Tier, tokens: int, tenant: str, due: float) -> None:
        self.key += 1
        made = Entry(self.key, tier, tokens, self.now, tenant, WEIGHTS[tenant], self.now + due)
        self.queue.push(made)
        self.insert(Mine(made, tier, came_back=False))

    @rule(seconds=st.sampled_from([0.5, 5.0, AGE_S]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(output=st.integers(0, 40))
    def run(self, output: int) -> None:
        expected = self.expected()
        assert self.queue.peek(self.now) == self.queue.peek(self.now) == expected
        assert self.served == {tenant: self.counters.served(tenant) for tenant in self.served}
        if expected is not None:
            self.take(expected.key)
            self.counters.charge(expected.tenant, expected.tokens, output, expected.weight)
            self.running[expected.key] = (expected, output)

    @rule(aside=st.sets(tenants))
    def pass_over(self, aside: set[str]) -> None:
        """Some leave their turns to others."""
        self.age()
        self.queue.peek(self.now)
        for tenant in sorted(aside):
            self.queue.set_aside(tenant)
        expected = self.expected(aside)
        assert self.queue.peek(self.now) == expected
        self.queue.check_integrity()
        self.queue.take_in()

    @precondition(lambda self: self.running)
    @rule(data=st.data(), back=st.booleans(), output=st.integers(0, 80))
    def end(self, data: st.DataObject, back: bool, output: int) -> None:
        ended, charged = self.running.pop(data.draw(st.sampled_from(sorted(self.running))))
        self.counters.settle(ended.tenant, charged, output, ended.weight)
        if back:
            self.queue.push_front(ended)
            self.insert(Mine(ended, ended.tier, came_back=True))

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        key = data.draw(st.integers(0, self.key + 1))
        if key in self.mine:
            self.take(key)
        else:
            assert self.queue.remove(key) is None

    @precondition(lambda self: self.mine)
    @rule(data=st.data(), seconds=st.sampled_from([0.0, 1.0, 20.0]), on=names)
    def park(self, data: st.DataObject, seconds: float, on: str) -> None:
        mine = self.mine[data.draw(st.sampled_from(sorted(self.mine)))]
        mine.on, mine.until = on, self.now + seconds
        self.queue.park(mine.entry.key, mine.until, on)

    @rule(on=names)
    def unpark(self, on: str) -> None:
        back = [mine for mine in self.mine.values() if mine.on == on]
        assert self.queue.unpark(on) == len(back)
        for mine in back:
            mine.on = ""

    @rule()
    def unpark_due(self) -> None:
        back = [mine for mine in self.mine.values() if mine.on and mine.until <= self.now]
        assert self.queue.unpark_due(self.now) == len(back)
        for mine in back:
            mine.on = ""

    @rule(tier=tiers, tenant=tenants, due=st.sampled_from([0.0, 10.0, inf]))
    def look_ahead(self, tier: Tier, tenant: str, due: float) -> None:
        new = Entry(self.key + 1, tier, 10, self.now, tenant, WEIGHTS[tenant], self.now + due)
        before = [mine.entry.tokens for mine in self.mine.values() if mine.tier < tier and not mine.on]
        could = [mine.entry.tokens for mine in self.mine.values() if mine.tier <= tier and not mine.on]
        assert sum(before) <= self.queue.tokens_ahead(new) <= sum(could)

    def expected(self, aside: AbstractSet[str] = frozenset()) -> Entry | None:
        """The order, as it is documented."""
        self.age()
        ready = [mine for mine in self.mine.values() if not mine.on]
        if not ready:
            return None
        tier = min(mine.tier for mine in ready)
        turns = {mine.entry.tenant for mine in ready if mine.tier is tier} - aside
        if not turns:
            return None
        tenant = min(turns, key=lambda tenant: (self.served[tenant], self.lines[tier, tenant].number))
        line = [mine for mine in ready if mine.tier is tier and mine.entry.tenant == tenant]
        late = [mine for mine in line if not mine.came_back and mine.due <= self.now]
        late_turn = late and self.lines[tier, tenant].passed >= LATE_TURN - 1

        def place(mine: Mine) -> tuple[bool, bool, float, int]:
            behind = (mine in late) != bool(late_turn)
            return (not mine.came_back, behind, 0.0 if mine.came_back else mine.due, mine.entry.key)

        return min(line, key=place).entry

    def age(self) -> None:
        """Async works that have waited join the interactive class; `served` are the counters then."""
        self.served = {mine.entry.tenant: self.counters.served(mine.entry.tenant) for mine in self.mine.values()}
        aged = [m for m in self.mine.values() if m.tier is Tier.ASYNC and m.entry.arrived <= self.now - AGE_S]
        for mine in sorted(aged, key=lambda m: (m.entry.arrived, m.entry.key)):
            tenant = mine.entry.tenant
            turns = {m.entry.tenant for m in self.mine.values() if m.tier is Tier.INTERACTIVE and not m.on}
            if turns and (Tier.INTERACTIVE, tenant) not in self.lines:
                lowest = min(self.served[other] for other in turns)
                self.served[tenant] = max(self.served[tenant], lowest - IDLE)
            self.leave(mine)
            mine.tier = Tier.INTERACTIVE
            self.join(mine)

    def take(self, key: int) -> None:
        mine = self.mine[key]
        line = self.lines[mine.tier, mine.entry.tenant]
        if not mine.on:
            ready = [m for k, m in self.mine.items() if k in line.works and not m.on]
            first = min(ready, key=lambda m: (not m.came_back, 0.0 if m.came_back else m.due, m.entry.key))
            if not first.came_back:
                line.passed = 0 if mine is first else line.passed + 1
        assert self.queue.remove(key) == mine.entry
        self.leave(mine)
        del self.mine[key]

    def insert(self, mine: Mine) -> None:
        self.mine[mine.entry.key] = mine
        self.join(mine)

    def join(self, mine: Mine) -> None:
        place = (mine.tier, mine.entry.tenant)
        if place not in self.lines:
            self.opened += 1
            self.lines[place] = MyLine(self.opened)
        self.lines[place].works.add(mine.entry.key)

    def leave(self, mine: Mine) -> None:
        line = self.lines[mine.tier, mine.entry.tenant]
        line.works.remove(mine.entry.key)
        if not line.works:
            del self.lines[mine.tier, mine.entry.tenant]

    @invariant()
    def integrity(self) -> None:
        self.queue.check_integrity()
        assert {e.key for e in self.queue} == set(self.mine)
        assert self.queue.parked() == sum(bool(mine.on) for mine in self.mine.values())
        for tier in Tier:
            entries = [mine.entry for mine in self.mine.values() if mine.entry.tier is tier]
            assert self.queue.waiting(tier) == len(entries)
            assert self.queue.waiting_tokens(tier) == sum(e.tokens for e in entries)
            assert self.queue.oldest(tier) == min((e.arrived for e in entries), default=None)


AgainstLists.TestCase.settings = settings(max_examples=120, stateful_step_count=50, deadline=None)
test_against_lists = AgainstLists.TestCase
