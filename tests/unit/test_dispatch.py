"""From the queue to an executor: who is held back for what, and that all come back; who goes where once it is known who
remembers what."""

from typing import Any

import pytest

from libs.errors import Cancelled, DeadlinePassed, Overloaded
from libs.kvcache.values import PrefixMatch
from libs.lane.work import Outcome, Tier
from services.batcher.dispatch import AWAY_S, LOOK_S, SHUT_S
from services.batcher.executors import ExecutorInfo
from services.batcher.policies.policy import Match
from services.batcher.remembered import matches_of
from services.batcher.scheduling import Dispatch, SchedulingRules
from services.batcher.seat import ModelCapacity
from tests.unit.batching import NO, YES, Engine, Rig, knows


def prompt(*hashes: int) -> dict[str, object]:
    """What a work has whose blocks have these hashes: so long that it matters who remembers them."""
    return {"prompt": 1000 * len(hashes), "block_hashes": hashes, "block_tokens": 1000}


def large(*executors: str, **settings: Any) -> Rig:
    """Executors with room for such prompts."""
    return Rig(*executors, blocks=100_000, **settings)


def waiting(rig: Rig) -> list[int]:
    """Indices of the works in the queue."""
    return [rig.book.held[entry.key].down_id for entry in rig.pool.queue]


# --- looking before placing ----------------------------------------------------------------------


def test_where_several_could_remember_a_prefix_the_manager_is_asked_first() -> None:
    rig = large("a", "b", reply="later")
    rig.submit(1, **prompt(1, 2))
    ((ask, _),) = rig.memory.asked
    assert (ask.executor, ask.blocks, tuple(ask.block_hashes)) == ("", 0, (1, 2))
    rig.memory.answer(knows(b=2))
    ((ask, _),) = rig.memory.asked
    assert ask.executor == "b"
    rig.memory.answer(knows(b=2))
    assert rig.running("b") == [0]
    rig.run_all()
    rig.all_right()


def test_who_is_heard_of_together_is_placed_in_the_order_of_the_queue() -> None:
    rig = large("a", "b", reply="later")
    rig.submit(tier=Tier.ASYNC, **prompt(1))
    rig.submit(**prompt(2))
    with rig.batcher.together():
        rig.memory.answer(knows(a=1))
        rig.memory.answer(knows(a=1))
        assert waiting(rig) == [1, 0]
        assert not rig.memory.asked
    assert [tuple(ask.block_hashes) for ask, _ in rig.memory.asked] == [(2,), (1,)]


@pytest.mark.parametrize("late", [False, True])
def test_without_an_answer_in_time_it_goes_on_without(late: bool) -> None:
    rig = large("a", "b", reply="later")
    rig.submit(1, **prompt(1))
    if late:
        rig.tick(LOOK_S)
    else:
        rig.memory.answer(None)
    assert rig.memory.asked[-1][0].executor == "a"
    rig.memory.answer(YES, len(rig.memory.asked) - 1)
    assert rig.running("a") == [0]
    while rig.memory.asked:
        rig.memory.answer(knows(b=1))
    assert rig.running("a") == [0], "an answer that comes later still changes nothing"
    rig.run_all()
    rig.all_right()


def test_one_executor_needs_no_look() -> None:
    rig = large("a", reply="later")
    rig.submit(1, **prompt(1))
    assert rig.memory.asked[0][0].executor == "a"


def test_one_that_was_placed_without_a_look_moves_to_who_remembers_more_once() -> None:
    rig = large("a", "b", reply="later")
    rig.submit(1, **prompt(1, 2, 3))
    rig.memory.answer(None)
    waited = rig.count("headrace_batcher_wait_seconds_count", model="m", tier="interactive")
    rig.memory.answer(knows(a=1, b=3))
    ((ask, _),) = rig.memory.asked
    assert ask.executor == "b"
    assert not rig.memory.reserved, "what was reserved on the first one is given back"
    rig.memory.answer(knows(a=3, b=0))
    assert rig.running("b") == [0], "once is enough"
    assert rig.count("headrace_batcher_wait_seconds_count", model="m", tier="interactive") == waited
    rig.run_all()
    rig.all_right()


def test_where_it_moves_to_it_may_be_refused() -> None:
    rig = large("a", "b", reply="later")
    rig.submit(1, **prompt(1, 2, 3))
    rig.memory.answer(None)
    rig.memory.answer(knows(b=3))
    rig.memory.answer(NO)
    assert rig.memory.asked[0][0].executor == "a", "at once, not at the next tick"
    rig.memory.answer(YES)
    assert rig.running("a") == [0]
    rig.run_all()
    rig.all_right()


def test_all_may_refuse() -> None:
    rig = large("a", "b", "c", reply=NO)
    rig.submit(5)
    assert [ask.executor for ask in rig.memory.used.values()] == ["a", "b", "c"], "each is asked once, then left alone"
    rig.book.check_integrity()
    rig.memory.reply = YES
    rig.tick(SHUT_S)
    rig.run_all()
    rig.all_right()


# --- a prefix that nobody has yet ----------------------------------------------------------------


def flock(rig: Rig, followers: int = 2) -> None:
    """A leader that computes two blocks, and works that have both in common with it."""
    rig.submit(1, **prompt(1, 2, 10))
    for index in range(followers):
        rig.submit(1, **prompt(1, 2, 20 + index))


def test_one_computes_a_new_prefix_and_the_others_wait_for_it() -> None:
    rig = large("a", "b", slots=4)
    flock(rig)
    assert (rig.running("a"), rig.running("b"), waiting(rig)) == ([0], [], [1, 2])
    rig.submit(1, **prompt(7, 8))
    assert rig.running("b") == [3], "others pass"
    rig["a"].lane.step()
    assert set(rig.running("a")) == {0, 1, 2}, "where the prefix is, before the manager knows"
    assert rig.count("headrace_batcher_holds_total", model="m") == 2
    rig.run_all()
    rig.all_right()


@pytest.mark.parametrize("how", ["ended", "cancelled", "refused", "lost", "pushed", "time"])
def test_who_waits_for_a_leader_comes_back(how: str) -> None:
    rig = large("a", "b", slots=4, rules=SchedulingRules(max_hold_s=0.5))
    flock(rig)
    lane = rig["a"].lane
    (key,) = lane.works
    if how == "ended":
        lane.end(key)
    elif how == "cancelled":
        rig.lane.cancel(0)
        lane.end(key, Outcome(error=Cancelled("as asked")))
    elif how == "refused":
        rig["a"].lane.end(key, Outcome(error=Overloaded("full after all")))
    elif how == "lost":
        lane.cut()
    elif how == "pushed":
        rig.batcher._pressure._push(rig.pool, rig.book.executors["a"], [key], "memory")
        lane.end(key, Outcome(error=Cancelled("as asked")))
    else:
        rig.tick(0.4)
        assert waiting(rig) == [1, 2]
        rig.tick(0.1)
        assert 1 not in waiting(rig)
    rig.book.check_integrity()
    if not rig["a"].lane.ready:
        rig["a"].lane.mend()
    rig.run_all()
    assert len(rig.answers.outcomes) == 3
    rig.at_rest()


def test_a_leader_that_finds_the_prefix_lets_the_others_go() -> None:
    rig = large("a", "b", slots=4, reply="later")
    for _ in range(2):
        rig.submit(1, **prompt(1, 2, 3))
    rig.memory.answer(None)
    rig.memory.answer(None)
    ((ask, _),) = rig.memory.asked
    assert (ask.executor, waiting(rig)) == ("a", [1])
    rig.memory.answer(knows(a=3))
    assert waiting(rig) == [], "nothing is left to compute"
    (held,) = (held for held in rig.book.held.values() if held.down_id == 1)
    assert held.matches["a"].tokens == 3000
    rig.memory.reply = YES
    while rig.memory.asked:
        rig.memory.answer(YES)
    rig.run_all()
    rig.all_right()


def test_what_the_others_have_to_wait_for_may_lie_further_on() -> None:
    rig = large("a", "b", slots=4, reply="later")
    for tail in (3, 4):
        rig.submit(1, **prompt(1, 2, 9, tail))
    rig.memory.answer(None)
    rig.memory.answer(None)
    rig.memory.answer(knows(a=2))
    assert waiting(rig) == [1], "two blocks are there, and the third, which both have, is computed now"
    rig["a"].lane.step()
    assert rig.memory.asked[0][0].executor == "a"
    rig.memory.reply = YES
    rig.memory.answer(YES)
    rig.run_all()
    rig.all_right()


def test_nobody_is_held_back_past_the_time_when_its_first_token_is_due() -> None:
    rig = large("a", "b", slots=4)
    rig.submit(1, **prompt(1, 2, 3))
    rig.clock.advance(1.0)
    rig.submit(1, **prompt(1, 2, 4))
    (held,) = (held for held in rig.book.held.values() if held.down_id == 1)
    assert held.hold_until is not None
    rig.tick(held.due - rig.clock.monotonic())
    assert waiting(rig) == []
    rig.run_all()
    rig.all_right()


# --- a holder that is busy -----------------------------------------------------------------------


def busy_holder(works: int = 3) -> Rig:
    """Executor a remembers long prompts, and has a second of prefill ahead of it; works wait for it."""
    rig = Rig("a", "b", slots=100, blocks=100_000, rules=SchedulingRules(max_hold_s=3.0))
    rig.capacity = {"m": ModelCapacity(100, 100_000, 4, step_tokens=100)}
    rig.have("a", "b")
    for name in "ab":
        rig.seat(name).prefill_rate = 1000.0
    rig.memory.reply = knows(a=400)
    rig.submit(1, prompt=2600, block_hashes=list(range(650)), block_tokens=4)
    rig.clock.advance(0.3)
    for index in range(works):
        rig.submit(1, prompt=2400, block_hashes=[*range(400), *range(1000 * (index + 1), 1000 * (index + 1) + 200)],
                   block_tokens=4)  # fmt: skip
    return rig


def test_a_holder_that_is_worth_it_is_waited_for() -> None:
    rig = busy_holder()
    assert rig.running("a") == [0]
    assert rig.running("b") == []
    assert waiting(rig) == [1, 2, 3]
    rig.clock.advance(0.5)
    rig["a"].lane.step()
    assert rig.running("a")[:2] == [0, 1], "who waited longest goes first"
    rig.run_all()
    rig.tick(3)
    rig.run_all()
    rig.all_right()


@pytest.mark.parametrize("how", ["lost", "retired", "unloaded", "time"])
def test_who_waits_for_a_holder_goes_elsewhere_without_it(how: str) -> None:
    rig = busy_holder()
    if how == "lost":
        rig["a"].lane.cut()
        rig.tick(0.05)
    elif how == "retired":
        lane = rig["a"].lane
        rig.have("b")
        lane.cut()
        rig.tick(0.05)
    elif how == "unloaded":
        capacity, rig.capacity = rig.capacity, {}
        lane = rig["a"].lane
        rig.have("a", "b")
        rig.capacity = capacity
        lane.run()
        rig.have("b")
        rig.tick(3)
    else:
        rig.tick(3)
    rig.book.check_integrity()
    assert len(rig.running("b")) >= 1
    rig.tick(0.05)
    rig.run_all()
    rig.tick(3)
    rig.run_all()
    assert len(rig.answers.outcomes) == 4
    rig.at_rest()


def test_those_that_wait_for_a_holder_do_not_go_before_more_urgent_ones() -> None:
    rig = busy_holder(0)
    rig.submit(1, prompt=2400, block_hashes=[*range(400), *range(1000, 1200)], block_tokens=4, tier=Tier.ASYNC)
    assert waiting(rig) == [1]
    rig["b"].lane.cut()
    rig.memory.reply = YES
    rig.submit(1, prompt=500)
    assert waiting(rig) == [2, 1]
    rig.clock.advance(0.5)
    rig["a"].lane.step()
    assert rig.running("a") == [0, 2]


# --- nobody stands in the way ---------------------------------------------------------------------


def test_what_only_fits_elsewhere_lets_others_pass() -> None:
    rig = Rig("a", "b")
    rig.batcher.set_executors({
        "a": ExecutorInfo(rig["a"], {"m": ModelCapacity(2, 10, 4)}), "b": ExecutorInfo(rig["b"], rig.capacity)
    })  # fmt: skip
    rig["b"].lane.cut()
    rig.submit(1, tokens=100)
    rig.submit(2)
    assert rig.running("a") == [1, 2]
    rig["b"].lane.mend()
    rig.tick(AWAY_S)
    assert rig.running("b") == [0]
    rig.run_all()
    rig.all_right()


@pytest.mark.parametrize("dispatch", list(Dispatch))
def test_nothing_goes_where_it_could_never_fit(dispatch: Dispatch) -> None:
    rig = Rig("a", "b", rules=SchedulingRules(dispatch=dispatch))
    rig.batcher.set_executors({
        "a": ExecutorInfo(rig["a"], {"m": ModelCapacity(2, 10, 4)}), "b": ExecutorInfo(rig["b"], rig.capacity)
    })  # fmt: skip
    rig.submit(2, tokens=100)
    assert rig.running("b") == [0, 1]
    rig.run_all()
    rig.all_right()


def test_what_a_tenant_leaves_to_others_they_get() -> None:
    """Even from behind it: its turn may have come, but not for that."""
    rig = Rig("a", slots=20, blocks=1000, rules=SchedulingRules(headroom=0.1))
    rig.submit(1, tenant="other")
    rig.submit(19)
    assert len(rig.running("a")) == 18
    rig.submit(2, tenant="other")
    assert len(rig.running("a")) == 20
    assert waiting(rig) == [18, 19]
    rig.book.check_integrity()
    rig.run_all()
    rig.all_right()


def test_async_work_does_not_get_what_a_tenant_leaves_to_others() -> None:
    """It would be pushed out for the next of them."""
    rig = Rig("a", slots=20, blocks=1000, rules=SchedulingRules(headroom=0.1))
    rig.submit(1, tenant="other")
    rig.submit(19)
    rig.submit(3, tenant="night", tier=Tier.ASYNC)
    assert len(rig.running("a")) == 18
    rig.submit(2, tenant="other")
    assert len(rig.running("a")) == 20
    assert not rig["a"].lane.cancels
    rig.run_all()
    rig.all_right()


@pytest.mark.parametrize("dispatch", [one for one in Dispatch if one is not Dispatch.PROMISE])
def test_policies_that_bind_early_wait_for_nothing_but_an_executor(dispatch: Dispatch) -> None:
    rig = large("a", "b", slots=1, rules=SchedulingRules(dispatch=dispatch))
    for _ in range(9):
        rig.submit(1, **prompt(1, 2))
    assert waiting(rig) == []
    assert {ask.blocks for ask in rig.memory.used.values()} == {0}, "the engine queues, nothing is reserved"
    rig["a"].lane.cut()
    rig["b"].lane.cut()
    assert len(waiting(rig)) == 9
    rig["a"].lane.mend()
    rig.tick()
    assert len(rig.running("a")) == 9
    rig.run_all()
    rig.all_right()


# --- too late ------------------------------------------------------------------------------------


def test_what_cannot_meet_its_deadline_any_more_is_answered_and_counted_once() -> None:
    rig = Rig("a", slots=1, blocks=1000)
    engine = Engine(rig["a"], prefill_rate=1000, token_s=0.05)

    def play(seconds: float) -> None:
        for _ in range(round(seconds / 0.05)):
            engine.run(0.05)
            rig.tick(0.05)

    rig.submit(35, prompt=50, tokens=20)
    play(45)
    assert rig.batcher.in_flight == 0
    rig.submit(1, prompt=50, tokens=100)
    rig.submit(1, prompt=50, tokens=100, deadline=rig.clock.now() + 5)
    play(6)
    error = rig.error(36)
    assert isinstance(error, DeadlinePassed)
    assert error.metadata["stage"] == "queue"
    assert float(error.metadata["estimated_end_s"]) == pytest.approx(5, rel=0.2)
    assert "100 tokens" in error.message
    assert rig.count("headrace_batcher_expired_works_total", model="m") == 1
    assert rig.count("headrace_batcher_works_total", model="m", tier="interactive", result="DEADLINE_PASSED") == 1
    rig.at_rest()


# --- what it costs -------------------------------------------------------------------------------


def questions(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Grows with each question to the policy."""
    asked: list[object] = []
    choose = rig.pool.policy.choose

    def counted(*args: object) -> object:
        asked.append(args)
        return choose(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(rig.pool.policy, "choose", counted)
    return asked


@pytest.mark.parametrize("size", [100, 1000])
def test_an_event_does_not_cost_more_when_more_waits(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slot that comes free is one question to the policy, or two, however long the queue is."""
    rig = Rig("a", "b", slots=2)
    rig.submit(size)
    asked = questions(rig, monkeypatch)
    (key, _) = rig["a"].lane.works
    rig["a"].lane.step(key)
    rig["a"].lane.end(key)
    assert len(asked) <= 4
    rig.tick(0.05)
    assert len(asked) <= 6


@pytest.mark.parametrize("size", [10, 90])
def test_a_first_token_does_not_cost_more_when_more_are_held_back_for_its_executor(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = busy_holder(size)
    assert 5 < len(rig.pool.queue.waiting_for("a")) < 20, "the more wait for it, the less it is worth that"
    asked = questions(rig, monkeypatch)
    rig.clock.advance(0.5)
    rig["a"].lane.step()
    assert len(rig.running("a")) > 1
    assert len(asked) <= 4


def test_a_lane_that_closes_places_none_of_its_own_works() -> None:
    rig = Rig("a", slots=1)
    rig.submit(100)
    rig.lane.close()
    assert len(rig["a"].lane.sent) == 1
    rig.book.check_integrity()
    rig["a"].lane.end(next(iter(rig["a"].lane.works)), Outcome(error=Cancelled("as asked")))
    rig.at_rest()


def test_matches_are_in_tokens_by_tier() -> None:
    assert matches_of((), 16) == {}
    assert matches_of([PrefixMatch("a", 10, 3, 2)], 16) == {"a": Match(80, 48, 32)}
