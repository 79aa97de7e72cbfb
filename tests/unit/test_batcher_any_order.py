"""The batcher under whatever may happen, in any order."""

from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from libs.errors import Cancelled, DeadlinePassed, NoExecutor, Overloaded, StageUnavailable
from libs.lane.work import Outcome, Tier
from services.batcher.dispatch import LOOK_S, SHUT_S
from services.batcher.held import Place
from services.batcher.hot import Prefix
from services.batcher.memory import Reply
from services.batcher.pool import Pool
from services.batcher.queue import AGE_S
from services.batcher.rules import PinnedPrefix
from services.batcher.scheduling import Dispatch, Reserve, SchedulingRules
from services.batcher.warmth import PINS_S
from tests.unit.batching import GRANTED, NO, YES, Rig, knows
from tests.unit.lanes import HandLane, answer

NAMES = st.sampled_from(("a", "b"))
SLOTS, BLOCKS = 2, 9
PIN = PinnedPrefix("pin", Prefix((0, 1, 2, 3), (1,), "", "", "m"), 0)
RULES = st.builds(
    SchedulingRules,
    dispatch=st.sampled_from([Dispatch.PROMISE, Dispatch.PROMISE, *Dispatch]),
    reserve=st.sampled_from(Reserve),
    overcommit=st.sampled_from([1.0, 1.0, 1.5]),
    max_pushes=st.integers(1, 2),
)
CHAINS = st.sampled_from([(), (1,), (1, 2), (1, 2, 3), (7,), (7, 8)])


class AnyOrder(RuleBasedStateMachine):
    """Each work ends once, with exact tokens; slots and blocks are never exceeded, and the books agree at any time;
    tenants pay for what was made, once; in the end nothing is left behind."""

    def __init__(self) -> None:
        super().__init__()
        self.rig = Rig("a", "b", slots=SLOTS, blocks=BLOCKS, reply="later", adapter_slots=1)
        for _ in range(40):  # enough for ESTIMATE to go by
            self.rig.book.lengths.seen("t", "m", 3)
        self.cancelled: set[int] = set()
        self.changed = False
        """Whether the rules are other ones than those by which the works were placed."""
        self.pools: dict[int, Pool] = {}
        self.sent: set[str] = set()

    @initialize(rules=RULES, two=st.booleans(), reply=st.sampled_from([YES, GRANTED, "later"]))
    def begin(self, rules: SchedulingRules, two: bool, reply: Reply | str) -> None:
        self.tenants = ["t", "u"] if two else ["t"]
        self.rig.rules.of_models = rules
        self.rig.memory.reply = reply
        self.rig.tick()

    @rule(
        count=st.integers(1, 3), tokens=st.integers(1, 20), tier=st.sampled_from(Tier), chain=CHAINS,
        adapter=st.sampled_from(["", "", "x@1"]),
        resumed=st.sampled_from([0, 0, 0, 2]), deadline=st.sampled_from([2e9, 2e9, 3.0]), data=st.data(),
    )  # fmt: skip
    def arrive(
        self,
        count: int,
        tokens: int,
        tier: Tier,
        adapter: str,
        chain: tuple[int, ...],
        resumed: int,
        deadline: float,
        data: st.DataObject,
    ) -> None:
        tenant = data.draw(st.sampled_from(self.tenants))
        for index in range(len(self.rig.works), len(self.rig.works) + count):
            self.rig.submit(
                1, tokens=tokens, tier=tier, adapter=adapter, block_hashes=chain, block_tokens=4,
                prompt=max(4 * len(chain), 4), tenant=tenant,
                resumed=[1000 * index + position for position in range(min(resumed, tokens - 1))],
                deadline=deadline if deadline > 100 else self.rig.clock.now() + deadline,
            )  # fmt: skip

    @precondition(lambda self: self.rig.memory.asked)
    @rule(data=st.data(), reply=st.sampled_from([YES, GRANTED, GRANTED, NO, None]))
    def reply(self, data: st.DataObject, reply: Reply | None) -> None:
        self.rig.memory.answer(reply, data.draw(st.integers(0, len(self.rig.memory.asked) - 1)))

    @precondition(lambda self: self.rig.memory.asked)
    @rule(data=st.data(), on_a=st.integers(0, 3), on_b=st.integers(0, 3))
    def match(self, data: st.DataObject, on_a: int, on_b: int) -> None:
        index = data.draw(st.integers(0, len(self.rig.memory.asked) - 1))
        most = len(self.rig.memory.asked[index][0].block_hashes)
        self.rig.memory.answer(knows(a=min(on_a, most), b=min(on_b, most)), index)

    @rule(name=NAMES, count=st.integers(1, 9))
    def step(self, name: str, count: int) -> None:
        if (lane := self.lane(name)) is not None and lane.ready:
            lane.step(count=count)
            for key in [k for k, one in lane.works.items() if lane.made[k] == one.sampling.max_tokens]:
                lane.end(key)

    @rule(name=NAMES)
    def step_without_outcome(self, name: str) -> None:
        """A last token is on its way, its outcome comes later."""
        if (lane := self.lane(name)) is not None and lane.ready:
            lane.step(count=20)

    @rule(name=NAMES, error=st.sampled_from([NoExecutor("no"), StageUnavailable("died")]))
    def refuse(self, name: str, error: NoExecutor | StageUnavailable) -> None:
        if (lane := self.lane(name)) is not None:
            for key in list(lane.works)[:1]:
                lane.end(key, Outcome(error=error))

    @rule(name=NAMES)
    def obey(self, name: str) -> None:
        """The executor stops what it was asked to stop."""
        if (lane := self.lane(name)) is not None:
            for key in lane.cancels:
                if key in lane.works:
                    lane.end(key, Outcome(error=Cancelled("as asked"), output_tokens=lane.made[key]))

    @rule(name=NAMES)
    def cut(self, name: str) -> None:
        if (lane := self.lane(name)) is not None and lane.ready:
            lane.cut()

    @rule(name=NAMES)
    def mend(self, name: str) -> None:
        if (lane := self.lane(name)) is not None and not lane.ready:
            lane.mend()

    @rule(names=st.sets(NAMES))
    def have(self, names: set[str]) -> None:
        for gone in self.rig.stages.keys() - names:
            lane = self.rig[gone].lane
            self.rig.have(*(name for name in self.rig.stages if name != gone))
            if lane.ready and not lane.closed:
                lane.cut()
        self.rig.have(*sorted(names))

    @precondition(lambda self: self.rig.works)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.rig.works) - 1))
        self.cancelled.add(index)
        self.rig.lane.cancel(index)

    @rule(upset=st.one_of(RULES, st.sampled_from(["pin", "unpin", "drain", "undrain", "unload", "load"])))
    def upset(self, upset: SchedulingRules | str) -> None:
        """Operators and placement do something."""
        rig = self.rig
        if isinstance(upset, SchedulingRules):
            self.changed, rig.rules.of_models = True, upset
        elif "pin" in upset:
            rig.rules.pinned = [PIN] if upset == "pin" else []
            rig.tick(PINS_S)
        elif "drain" in upset:
            rig.batcher.draining = upset == "drain"
        else:
            capacity, rig.capacity = rig.capacity, rig.capacity if upset == "load" else {}
            rig.have(*rig.stages)
            rig.capacity = capacity

    @rule(seconds=st.sampled_from([0.0, SHUT_S, LOOK_S, 1.5, AGE_S]))
    def tick(self, seconds: float) -> None:
        self.rig.tick(seconds)
        for pool in self.rig.book.pools.values():
            self.nobody_is_overlooked(pool)

    def nobody_is_overlooked(self, pool: Pool) -> None:
        """No work stands at the head of the queue for which there is a place."""
        now = self.rig.clock.monotonic()
        if (entry := pool.queue.peek(now, AGE_S)) is not None:
            held = self.rig.book.held[entry.key]
            assert self.rig.batcher._dispatch.choose(pool, held, now, pool.policy).seat is None
        assert pool.queue.unpark_due(now) == 0

    @invariant()
    def the_books_agree(self) -> None:
        rig = self.rig
        rig.book.check_integrity()
        placed = [held for executor in rig.book.executors.values() for held in executor.works.values()]
        numbers = {held.reservation for held in placed}
        assert rig.memory.reserved.keys() <= numbers, "a reservation has outlived its work"
        for pool in rig.book.pools.values():
            self.pools[id(pool)] = pool
        for stage in rig.stages.values():
            self.sent |= {one.request_id for one in stage.lane.sent}

    @invariant()
    def nothing_is_exceeded(self) -> None:
        rules = self.rig.rules.of_models
        if self.changed or rules.dispatch is not Dispatch.PROMISE:
            return
        for executor in self.rig.book.executors.values():
            works = list(executor.works.values())
            assert len(works) <= SLOTS
            assert sum(held.blocks for held in works) <= BLOCKS * rules.overcommit
            for held in works:
                assert held.blocks * 4 >= min(held.given_tokens, held.total_tokens)
                assert rules.overcommit > 1 or held.pushes <= rules.max_pushes
        asked = Counter(ask.executor for ask in self.rig.memory.reserved.values())
        assert all(count <= SLOTS for name, count in asked.items() if name in self.rig.stages)

    @invariant()
    def nothing_is_lost(self) -> None:
        waiting = [held for held in self.rig.book.held.values() if not held.once]
        assert len(waiting) + len(self.rig.answers.outcomes) == len(self.rig.works)

    @invariant()
    def tokens_are_right(self) -> None:
        answers = self.rig.answers
        for index, tokens in answers.tokens.items():
            assert tokens == answer(self.rig.works[index])[: len(tokens)]
        for index, outcome in answers.outcomes.items():
            if outcome.finish is not None:
                assert answers.tokens[index] == answer(self.rig.works[index])
            elif isinstance(outcome.error, Cancelled):
                assert index in self.cancelled
            elif isinstance(outcome.error, DeadlinePassed):
                assert self.rig.works[index].deadline < 2e9
            else:
                assert isinstance(outcome.error, StageUnavailable | Overloaded), "given up, draining, or refused"

    def lane(self, name: str) -> HandLane | None:
        return self.rig[name].lane if name in self.rig.stages else None

    def teardown(self) -> None:
        rig = self.rig
        rig.rules.pinned = []
        rig.have("a", "b")
        rig.memory.reply = YES
        while rig.memory.asked:
            rig.memory.answer()
        for stage in rig.stages.values():
            if not stage.lane.ready:
                stage.lane.mend()
        self.the_books_agree()
        rig.run_all()
        rig.tick(10)
        rig.run_all()
        self.the_books_agree()
        assert set(rig.answers.outcomes) == set(range(len(rig.works)))
        rig.at_rest()
        assert not any(held.place is Place.LEAVING for pool in self.pools.values() for held in pool.waiting({}))
        if {one.tenant for one in rig.works} == {"t"}:
            self.was_paid_for()

    def was_paid_for(self) -> None:
        """A tenant that is alone paid for the prompts that engines had, and for each token of their answers."""
        due = 0
        for index, one in enumerate(self.rig.works):
            if one.request_id in self.sent:
                outcome = self.rig.answers.outcomes[index]
                due += len(one.prompt) + 2 * max(outcome.output_tokens, len(self.rig.answers.tokens.get(index, ())))
        assert sum(pool.counters.served("t") for pool in self.pools.values()) == due


AnyOrder.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
test_any_order = AnyOrder.TestCase
