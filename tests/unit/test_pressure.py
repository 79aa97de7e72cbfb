"""Who is pushed out when, and that it helps: interactive work takes the places of async work; where blocks are given by
estimate, works grow, and leave before an executor has none left."""

import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libs.errors import Cancelled, DeadlinePassed, Overloaded
from libs.lane.work import FinishReason, Outcome, Tier
from services.batcher.held import Place
from services.batcher.memory import Ask, Reply
from services.batcher.pressure import LEAVE_S
from services.batcher.queue import AGE_S
from services.batcher.scheduling import Dispatch, Reserve, SchedulingRules
from services.batcher.seat import LEAST_MARGIN
from services.kvcache.ledger import Ledger
from tests.unit.batching import NO, Engine, Rig, knows
from tests.unit.lanes import answer

ASYNC = Tier.ASYNC
ESTIMATE = SchedulingRules(reserve=Reserve.ESTIMATE)
PUSHES = "headrace_batcher_pushes_total"


def obey(rig: Rig, name: str) -> None:
    """The executor stops what it was asked to stop."""
    lane = rig[name].lane
    for key in list(lane.cancels):
        if key in lane.works:
            lane.end(key, Outcome(error=Cancelled("as asked"), output_tokens=lane.made[key], cached_tokens=1))
    lane.cancels.clear()


def short_answers(rig: Rig, tokens: int = 4) -> None:
    """Answers of the tenant were so short until now."""
    for _ in range(40):
        rig.book.lengths.seen("t", "m", tokens)


def cancelled(rig: Rig, name: str) -> list[int]:
    """Indices of the works that an executor was asked to stop."""
    works = rig[name].lane.works
    return [int(works[key].request_id.rpartition("-")[2]) for key in rig[name].lane.cancels]


# --- interactive work, async work ----------------------------------------------------------------


def test_interactive_work_takes_the_place_of_async_work_which_goes_on_later() -> None:
    rig = Rig("a", slots=1)
    rig.submit(1, tier=ASYNC)
    rig["a"].lane.step(count=3)
    rig.submit(1)
    assert cancelled(rig, "a") == [0]
    assert rig.running("a") == [0], "it is still there"
    rig["a"].lane.step(count=1)
    assert len(rig.answers.tokens[0]) == 4, "its tokens go on passing until it has left"
    obey(rig, "a")
    assert rig.running("a") == [1]
    rig["a"].lane.run()
    assert rig.running("a") == [0]
    assert rig["a"].lane.sent[-1].resumed == tuple(answer(rig.works[0])[:4])
    rig.run_all()
    rig.all_right()
    assert rig.answers.outcomes[0].cached_tokens == 1, "of its first run: later it found its own"
    assert rig.count(PUSHES, model="m", cause="interactive") == 1
    assert rig.count("headrace_batcher_requeues_total", cause="pushed") == 1


def test_one_leaves_for_one() -> None:
    rig = Rig("a", slots=3)
    rig.submit(3, tier=ASYNC)
    rig["a"].lane.step()
    rig.submit(1)
    for _ in range(5):
        rig.tick(0.05)
    assert len(rig["a"].lane.cancels) == 1
    rig.submit(1)
    assert len(rig["a"].lane.cancels) == 2, "the second does not wait for the first to have its place"
    obey(rig, "a")
    assert len(rig["a"].lane.cancels) == 0
    rig.run_all()
    rig.all_right()


def test_nobody_leaves_while_there_is_a_place() -> None:
    rig = Rig("a", "b", slots=2)
    rig.submit(3, tier=ASYNC)
    rig.submit(1)
    assert not rig["a"].lane.cancels + rig["b"].lane.cancels


def test_async_work_pushes_nobody_out() -> None:
    rig = Rig("a", slots=1)
    rig.submit(2, tier=ASYNC)
    rig.tick()
    assert not rig["a"].lane.cancels


@pytest.mark.parametrize("waited", [AGE_S - 1, AGE_S])
def test_async_work_that_has_aged_keeps_its_place(waited: float) -> None:
    """It had its turn as any other. Else it would wait again, and what was computed of it would be lost."""
    rig = Rig("a", slots=1)
    rig.submit(1)
    rig.submit(1, tier=ASYNC, tenant="night")
    rig.tick(waited)
    rig["a"].lane.run()
    assert rig.running("a") == [1]
    assert rig.seat("a").patient == (waited < AGE_S)
    rig["a"].lane.step()
    rig.submit(1)
    rig.tick(0.05)
    assert cancelled(rig, "a") == ([1] if waited < AGE_S else [])
    obey(rig, "a")
    rig.run_all()
    rig.all_right()


def test_aged_work_whose_executor_went_away_keeps_its_place_on_the_next_one() -> None:
    rig = Rig("a", slots=1)
    rig.submit(1)
    rig.submit(1, tier=ASYNC)
    rig.tick(AGE_S)
    rig["a"].lane.run()
    rig["a"].lane.cut()
    rig["a"].lane.mend()
    rig.tick()
    assert rig.running("a") == [1]
    rig.submit(1)
    assert not rig["a"].lane.cancels
    rig.run_all()
    rig.all_right()


def test_where_it_would_lack_something_else_nobody_leaves() -> None:
    """A tenant with more than its share leaves a tenth of the slots to others: one of twenty would not help it."""
    rig = Rig("a", slots=20, blocks=1000, rules=SchedulingRules(headroom=0.1))
    rig.submit(1, tenant="other", tier=ASYNC)
    rig.submit(18)
    assert len(rig.running("a")) == 18, "two slots are not for this tenant"
    rig.submit(2, tenant="other")
    assert len(rig.running("a")) == 20
    rig.tick()
    assert not rig["a"].lane.cancels
    rig.submit(1, tenant="other")
    assert cancelled(rig, "a") == [0], "one that is below its share is helped by it"


def test_for_blocks_as_many_leave_as_are_needed() -> None:
    rig = Rig("a", slots=8, blocks=12)
    rig.submit(4, prompt=4, tokens=8, tier=ASYNC)  # 3 blocks each
    rig.submit(1, prompt=4, tokens=20)  # 6 blocks
    assert len(rig["a"].lane.cancels) == 2
    obey(rig, "a")
    assert 4 in rig.running("a")
    assert len(rig.running("a")) == 3
    rig.run_all()
    rig.all_right()


def test_nobody_is_pushed_out_too_often() -> None:
    rig = Rig("a", slots=1, rules=SchedulingRules(max_pushes=2))
    rig.submit(1, tokens=20, tier=ASYNC)
    for round_number in range(4):
        rig["a"].lane.step()
        rig.submit(1, tokens=1)
        assert len(rig["a"].lane.cancels) == (round_number < 2)
        obey(rig, "a")
        if round_number < 2:
            rig["a"].lane.run()
    rig.run_all()
    rig.all_right()
    assert rig.count(PUSHES, model="m", cause="interactive") == 2


def test_pushes_are_no_failed_attempts() -> None:
    rig = Rig("a", slots=1, rules=SchedulingRules(max_pushes=9))
    rig.submit(1, tier=ASYNC)
    for _ in range(8):
        rig.submit(1)
        obey(rig, "a")
        rig["a"].lane.run()
    rig["a"].lane.cut()
    rig["a"].lane.mend()
    rig.tick()
    assert rig.running("a") == [0], "it never came to anything, and not because it failed"
    rig.run_all()
    rig.all_right()


def test_an_executor_that_does_not_let_go_is_not_waited_for_for_ever() -> None:
    rig = Rig("a", "b", slots=1)
    rig.submit(2, tier=ASYNC)
    rig.submit(1)
    (stuck,) = [name for name in "ab" if rig[name].lane.cancels]
    rig.tick(LEAVE_S / 2)
    (other,) = {"a", "b"} - {stuck}
    assert not rig[other].lane.cancels
    rig.tick(LEAVE_S)
    obey(rig, other)
    assert rig.running(other) == [2]
    rig.run_all()
    rig.all_right()


@pytest.mark.parametrize("how", ["whole", "ended", "lost", "cancelled", "deadline", "given back", "hung up"])
def test_what_may_happen_to_a_work_that_is_leaving(how: str) -> None:
    rig = Rig("a", slots=1)
    rig.submit(1, tier=ASYNC, deadline=rig.clock.now() + 9)
    lane = rig["a"].lane
    lane.step(count=8 if how == "whole" else 3)
    rig.submit(1)
    (key,) = lane.cancels
    assert rig.book.held[key].place is Place.LEAVING
    rig.book.check_integrity()
    if how == "whole":
        lane.end(key, Outcome(error=Cancelled("as asked"), output_tokens=8))
        assert rig.answers.outcomes[0].finish is FinishReason.LENGTH, "its last token was on the way"
    elif how == "ended":
        lane.step(count=5)
        lane.end(key)
        assert rig.answers.outcomes[0].finish is FinishReason.LENGTH
    elif how == "lost":
        lane.cut()
        lane.mend()
        rig.tick()
        assert rig.running("a") == [1]
    elif how == "cancelled":
        rig.lane.cancel(0)
        lane.end(key, Outcome(error=Cancelled("as asked"), output_tokens=3))
        assert isinstance(rig.error(0), Cancelled)
    elif how == "deadline":
        rig.tick(10)
        assert isinstance(rig.error(0), DeadlinePassed)
        assert rig.running("a") == [0], "its slot is not free yet"
        lane.end(key, Outcome(error=Cancelled("as asked"), output_tokens=3))
    elif how == "given back":
        lane.end(key, Outcome(error=Overloaded("full after all")))
        rig.tick(0.1)
    else:
        rig.lane.close()
        lane.end(key, Outcome(error=Cancelled("as asked")))
        rig.at_rest()
        return
    assert rig.running("a") == [1]
    rig.run_all()
    rig.at_rest()
    assert len(rig.answers.outcomes) == 2
    if how in ("whole", "ended", "lost", "given back"):
        rig.all_right()


# --- blocks by estimate --------------------------------------------------------------------------


def test_by_estimate_more_works_run_and_get_more_blocks_in_time() -> None:
    rig = Rig("a", slots=8, blocks=40, rules=ESTIMATE)
    short_answers(rig)
    rig.submit(4, prompt=4, tokens=96)  # 25 blocks each in the worst case, 3 by estimate
    assert len(rig.running("a")) == 4
    assert rig.seat("a").reserved < 25
    for _ in range(8):
        rig["a"].lane.step(count=1)
        rig.tick(0.05)
        for held in rig.book.held.values():
            assert held.place is not Place.RUNNING or held.blocks * 4 >= held.prompt_tokens
    assert rig.seat("a").reserved <= 40
    obey(rig, "a")
    rig.run_all()
    rig.all_right()


def test_blocks_are_taken_while_the_manager_is_asked_for_more_and_given_back_if_it_refuses() -> None:
    rig = Rig("a", slots=8, blocks=40, rules=ESTIMATE)
    short_answers(rig)
    rig.submit(1, tokens=96)
    before = rig.seat("a").reserved
    rig.memory.reply = "later"
    rig.tick()
    ((ask, _),) = rig.memory.asked
    assert rig.seat("a").reserved == ask.blocks > before
    rig.tick()
    assert len(rig.memory.asked) == 1, "it is asked once"
    rig.memory.answer(NO)
    assert rig.seat("a").reserved == before
    assert cancelled(rig, "a") == [0], "another batcher has them: it has to wait"
    rig.memory.reply = knows()
    obey(rig, "a")
    rig.run_all()
    rig.all_right()


@pytest.mark.parametrize("how", ["ended", "lost"])
def test_an_answer_that_comes_when_the_growing_work_has_left_leaves_nothing_behind(how: str) -> None:
    rig = Rig("a", blocks=40, rules=ESTIMATE)
    short_answers(rig)
    rig.submit(1, tokens=96)
    rig.memory.reply = "later"
    rig.tick()
    if how == "ended":
        rig["a"].lane.run()
    else:
        rig["a"].lane.cut()
        rig["a"].lane.mend()
        rig.lane.cancel(0)
    rig.memory.answer()
    rig.at_rest()


def test_what_one_left_goes_to_whom_it_left_for() -> None:
    """Else it would take its own blocks again, and be pushed out again."""
    rig = Rig("a", slots=8, blocks=30, rules=ESTIMATE)
    short_answers(rig)
    rig.submit(2, prompt=40, tokens=60)
    assert rig.running("a") == [0, 1]
    rig["a"].lane.step()
    rig.tick()
    assert cancelled(rig, "a") == [1], "the younger leaves for the older"
    rig.tick()
    assert len(rig["a"].lane.cancels) == 1, "and nobody else while it is leaving"
    obey(rig, "a")
    assert rig.running("a") == [0]
    (held,) = (h for h in rig.book.held.values() if h.place is Place.RUNNING)
    assert held.given_tokens == 100
    rig.run_all()
    rig.all_right()


def test_one_that_was_pushed_out_too_often_is_given_all_that_it_can_need() -> None:
    rig = Rig("a", slots=8, blocks=30, rules=SchedulingRules(reserve=Reserve.ESTIMATE, max_pushes=1))
    short_answers(rig)
    rig.submit(2, prompt=40, tokens=60)
    rig["a"].lane.step()
    rig.tick()
    obey(rig, "a")
    rig["a"].lane.run()
    assert rig.running("a") == [1]
    assert rig.seat("a").reserved == 25
    assert rig.seat("a").partial == 0
    rig.run_all()
    rig.all_right()


def test_rules_may_change_while_works_run() -> None:
    rig = Rig("a", slots=8, blocks=60, rules=ESTIMATE)
    short_answers(rig)
    rig.submit(2, prompt=4, tokens=96)
    rig.rules.of_models = SchedulingRules()
    for _ in range(30):
        rig["a"].lane.step()
        rig.tick(0.05)
        for held in rig.book.held.values():
            assert held.blocks * 4 >= held.prompt_tokens, "what was given too little by the old rules still grows"
    rig.rules.of_models = SchedulingRules(dispatch=Dispatch.ROUND_ROBIN)
    rig.tick(0.05)
    rig.submit(20, tokens=8)
    assert len(rig.running("a")) == 22, "bound early, whatever is on it"
    rig.rules.of_models = SchedulingRules()
    rig.tick(0.05)
    rig.submit(1, tokens=8)
    assert len(rig.running("a")) == 22
    assert not rig["a"].lane.cancels, "what the engine queues is not what it has in its blocks"
    rig.run_all()
    rig.all_right()


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 10_000), overcommit=st.sampled_from([1.0, 1.0, 1.3, 2.0]), max_pushes=st.integers(1, 3),
    token_s=st.sampled_from([0.01, 0.05]),
)  # fmt: skip
def test_no_engine_runs_out_of_blocks_and_everything_comes_to_its_end(
    seed: int, overcommit: float, max_pushes: int, token_s: float
) -> None:
    """Answers of any length where short ones were expected, on an engine of constant speed."""
    chance, blocks = random.Random(seed), 60
    rules = SchedulingRules(reserve=Reserve.ESTIMATE, overcommit=overcommit, max_pushes=max_pushes)
    rig = Rig("a", slots=12, blocks=blocks, rules=rules)
    engine = Engine(rig["a"], prefill_rate=4000, token_s=token_s)
    short_answers(rig, 8)
    for _ in range(15):
        tier = chance.choice(list(Tier))
        rig.submit(1, prompt=chance.randint(1, 60), tokens=chance.choice([4, 8, 40, 100]), tier=tier)
    pushes: dict[str, int] = {}
    for step in range(4000):
        engine.run(0.05)
        rig.tick(0.05)
        if step % 10 == 0:
            rig.book.check_integrity()
        assert engine.most_used <= blocks
        assert rig.seat("a").reserved <= blocks * overcommit
        for held in rig.book.held.values():
            pushes[held.work.request_id] = held.pushes
        if not rig.batcher.in_flight:
            break
    rig.all_right()
    assert overcommit > 1 or max(pushes.values()) <= max_pushes


class Shared:
    """A batcher's share in one real ledger."""

    def __init__(self, ledger: Ledger, batcher: str) -> None:
        self._ledger = ledger
        self._batcher = batcher

    def ask(self, ask: Ask, done: Callable[[Reply | None], None]) -> None:
        granted = self._ledger.reserve(self._batcher, ask.reservation, ask.executor, ask.pool, ask.blocks)
        done(Reply(granted, (), self._ledger.free(ask.executor, ask.pool)))

    def release(self, reservation: int, found_blocks: int | None = None) -> None:
        self._ledger.release(self._batcher, reservation)


@pytest.mark.parametrize("seed", range(4))
def test_batchers_that_know_nothing_of_each_other_share_an_executor(seed: int) -> None:
    """Each believes that all blocks are its own; the ledger knows better."""
    chance, blocks, ledger = random.Random(seed), 60, Ledger()
    ledger.set_capacity("a", "m", blocks)
    rigs = [Rig("a", slots=12, blocks=blocks, rules=ESTIMATE, memory=Shared(ledger, name)) for name in "xy"]
    engines = [Engine(rig["a"], prefill_rate=4000, token_s=0.01) for rig in rigs]
    for rig in rigs:
        short_answers(rig, 8)
        for _ in range(12):
            rig.submit(1, prompt=chance.randint(1, 60), tokens=chance.choice([4, 8, 40, 100]))
    for _ in range(4000):
        for rig, engine in zip(rigs, engines, strict=True):
            engine.run(0.05)
            rig.tick(0.05)
        assert sum(engine.used for engine in engines) <= blocks
        if not any(rig.batcher.in_flight for rig in rigs):
            break
    for rig in rigs:
        rig.all_right()
    assert ledger.free("a", "m") == blocks


def test_the_margin_of_growth_is_that_of_the_seat() -> None:
    rig = Rig("a", blocks=400, rules=ESTIMATE)
    short_answers(rig, 8)
    rig.submit(1, prompt=4, tokens=1000)
    (held,) = rig.book.held.values()
    rig.tick()
    assert held.given_tokens == 4 + 4 * LEAST_MARGIN
    rig.seat("a").token_s = 0.001
    rig.tick()
    assert held.given_tokens == 4 + 4 * 200
    rig.run_all()
    rig.all_right()
