"""Who may wait: refused at once, with the figures, or let in; and what that makes of an overload."""

from statistics import quantiles

import pytest

from libs.errors import DeadlinePassed, Overloaded
from libs.lane.work import Tier
from services.batcher.promise import ACCEPTED, LEAST_RETRY_S, MOST_RETRY_S, STANDING
from services.batcher.queue import AGE_S, Limits
from services.batcher.rules import TARGET_S, TierRules
from services.batcher.scheduling import Dispatch, SchedulingRules
from tests.unit.batching import Engine, Rig, knows
from tests.unit.lanes import work

REFUSALS = "headrace_batcher_works_total"


def refusal(rig: Rig, **changes: object) -> object:
    """With what one more work ends at once; None when it is let in."""
    rig.submit(1, **changes)
    outcome = rig.answers.outcomes.get(len(rig.works) - 1)
    return outcome.error if outcome is not None else None


def measured(rig: Rig, prefill_rate: float = 1000.0, token_s: float = 0.01) -> Rig:
    """The executors of a rig have been measured."""
    for executor in rig.book.executors.values():
        seat = executor.seats["m"]
        seat.prefill_rate, seat.token_s = prefill_rate, token_s
    rig.clock.advance(1)  # the speed of a pool is looked at now and then
    return rig


def test_while_nothing_was_measured_only_the_hard_limits_refuse() -> None:
    rig = Rig("a", slots=1, blocks=100_000)
    for _ in range(200):
        assert refusal(rig, prompt=2000) is None


def test_a_full_queue_says_by_how_much_and_when_to_come_back() -> None:
    rig = Rig("a", slots=1, blocks=100_000, tokens=5000)
    rig.submit(3, prompt=2000)
    error = refusal(rig, prompt=2000)
    assert isinstance(error, Overloaded)
    assert "4000 prompt tokens wait; with 2000 more the limit of 5000 is passed" in error.message
    assert error.metadata == {"stage": "arrival", "waiting_tokens": "4000", "limit_tokens": "5000"}
    assert error.retry_after_s == 1.0
    assert refusal(rig, prompt=1000) is None


def test_the_bound_is_what_can_be_worked_off_within_the_target() -> None:
    rig = measured(Rig("a", slots=1, blocks=100_000, tier=TierRules(target_s=4.0)))
    let_in = 0
    while refusal(rig, prompt=200, tokens=1) is None:
        let_in += 1
    assert 1 + 8 <= let_in <= 1 + 20, "one runs; what waits takes between half of the target and all of it"
    error = rig.answers.outcomes[let_in].error
    assert isinstance(error, Overloaded)
    assert error.retry_after_s is not None
    assert LEAST_RETRY_S <= error.retry_after_s <= MOST_RETRY_S


def test_a_promise_that_cannot_be_kept_is_not_made() -> None:
    rig = measured(Rig("a", slots=1, blocks=100_000, tier=TierRules(target_s=2.0)))
    rig.submit(1, prompt=1000)
    rig.submit(7, prompt=200)
    error = refusal(rig, prompt=300)
    assert isinstance(error, Overloaded)
    assert error.metadata["stage"] == "arrival"
    assert float(error.metadata["estimated_first_token_s"]) == pytest.approx(1.7, rel=0.01)
    assert float(error.metadata["due_s"]) == 2.0
    assert "1,400 prompt tokens" in error.message
    assert error.retry_after_s is not None
    assert rig.count(REFUSALS, model="m", tier="interactive", result="OVERLOADED") == 1


def test_an_unmeetable_deadline_is_said_at_once_and_counted_once() -> None:
    rig = measured(Rig("a", slots=1, blocks=100_000))
    for _ in range(40):
        rig.book.lengths.seen("t", "m", 500)
    assert refusal(rig, tokens=500, deadline=rig.clock.now() + 6) is None
    error = refusal(rig, tokens=500, deadline=rig.clock.now() + 3)
    assert isinstance(error, DeadlinePassed)
    assert error.metadata["stage"] == "arrival"
    assert float(error.metadata["estimated_end_s"]) == pytest.approx(5, rel=0.1)
    assert "has 3.0 s" in error.message
    assert rig.count("headrace_batcher_expired_works_total", model="m") == 1
    assert rig.count(REFUSALS, model="m", tier="interactive", result="DEADLINE_PASSED") == 1
    assert refusal(rig, tokens=50, deadline=rig.clock.now() + 3) is None, "no answer is longer than max_tokens"


def test_a_deadline_that_is_past_on_arrival() -> None:
    rig = Rig("a")
    error = refusal(rig, deadline=rig.clock.now() - 0.5)
    assert isinstance(error, DeadlinePassed)
    assert error.metadata["stage"] == "arrival"
    assert "past on arrival in the queue, by 0.500 s" in error.message


def test_what_fits_nowhere_says_what_would() -> None:
    rig = Rig("a", blocks=10)
    error = refusal(rig, prompt=4, tokens=37)
    assert isinstance(error, Overloaded)
    assert error.metadata == {"tokens": "41", "largest_tokens": "40"}
    assert "41 tokens" in error.message


def test_what_has_begun_is_let_in() -> None:
    rig = Rig("a", slots=1, works=1)
    rig.submit(2)
    assert isinstance(refusal(rig), Overloaded)
    assert refusal(rig, resumed=[3000]) is None


# --- what would become of a work -----------------------------------------------------------------


def state(rig: Rig) -> object:
    """What must not change."""
    pool = rig.pool
    return (
        [(entry.key, entry.due) for entry in pool.queue], pool.queue.parked(), pool.flock.leaders,
        pool.drain.rate(0, 0.0, 1.0), pool.standing.waiting(), pool.counters.served("t"), pool.held,
        dict(rig.book.held), set(rig.memory.reserved), set(rig.book.pools),
        [(seat.works, seat.reserved, seat.prefill_tokens) for seat in pool.seats], vars(pool.policy).copy(),
    )  # fmt: skip


@pytest.mark.parametrize("dispatch", list(Dispatch))
async def test_explain_changes_nothing(dispatch: Dispatch) -> None:
    rig = Rig("a", "b", slots=2, blocks=1000, rules=SchedulingRules(dispatch=dispatch))
    rig.submit(3, prompt=40, block_hashes=[1, 2], block_tokens=20)
    before = state(rig)
    for index in range(3):
        await rig.batcher.explain(work(index, block_hashes=[1, 2], block_tokens=20, prompt=40))
        await rig.batcher.explain(work(index, pool="never-heard-of"))
    assert state(rig) == before


async def test_explain_says_what_happens_in_each_case() -> None:
    rig = Rig("a", "b", slots=1, blocks=1000)

    async def said(**changes: object) -> list[tuple[str, str]]:
        return [(one.choice, one.reason) for one in await rig.batcher.explain(work(**changes))]  # type: ignore[arg-type]

    assert [choice for choice, _ in await said()] == ["no wait", "executor a", "run"]
    ((choice, reason),) = await said(tokens=5000)
    assert choice == "refuse"
    assert "5004 tokens" in reason
    measured(rig)
    assert [choice for choice, _ in await said()] == ["no wait", "promise", "executor a", "run"]
    chain = {"prompt": 80, "block_hashes": [1, 2, 3, 4], "block_tokens": 20}
    rig.submit(1, **chain)
    *_, (choice, reason) = await said(**chain)
    assert choice == "hold"
    assert "4 blocks of its prompt are being computed on a" in reason
    rig.submit(1)
    *_, (choice, reason) = await said()
    assert (choice, "all slots taken" in reason) == ("wait", True)
    rig.memory.reply = knows(b=4)
    *_, (choice, reason) = await said(**chain)
    assert choice == "wait", "whoever has it now, no slot is free"


# --- a queue that stands -------------------------------------------------------------------------


def drive(rig: Rig, engine: Engine, seconds: float, **changes: object) -> None:
    """So long, an engine computes; 40 short works a second come, if anything is said of them."""
    for _ in range(round(seconds / 0.05)):
        if changes:
            rig.submit(2, prompt=100, tokens=8, **changes)
        engine.run(0.05)
        rig.tick(0.05)


def burst(rig: Rig, **changes: object) -> tuple[int, object]:
    """How many more works are let in at once, and with what the next one ends."""
    let_in = 0
    while (error := refusal(rig, prompt=100, tokens=8, **changes)) is None:
        let_in += 1
    return let_in, error


def test_who_always_has_works_waiting_is_refused_earlier_than_a_burst() -> None:
    """A thousand tokens a second are computed, and the first token is due after four."""
    rig = Rig("a", slots=4, blocks=100_000, tier=TierRules(target_s=4.0))
    engine = Engine(rig["a"], prefill_rate=1000, token_s=0.01)
    drive(rig, engine, 10.0, tenant="day")
    waiting = len(rig.pool.queue)
    assert STANDING * 4000 - 200 <= 100 * waiting <= STANDING * 4000 + 100
    let_in, error = burst(rig, tenant="day")
    assert let_in <= 1
    assert isinstance(error, Overloaded)
    assert "when their tenant has had others waiting for a while" in error.message
    drive(rig, engine, 30.0)
    assert len(rig.pool.queue) == 0
    _, error = burst(rig, tenant="day")
    waiting = len(rig.pool.queue)
    assert ACCEPTED * 4000 - 200 <= 100 * waiting <= ACCEPTED * 4000 + 100, "what was is forgotten: a burst ends"
    assert isinstance(error, Overloaded)
    assert "need 3.0 s for it" in error.message


def test_a_queue_that_stands_is_that_of_one_tenant() -> None:
    rig = Rig("a", slots=4, blocks=100_000, tier=TierRules(target_s=4.0))
    engine = Engine(rig["a"], prefill_rate=1000, token_s=0.01)
    drive(rig, engine, 10.0, tenant="day")
    assert burst(rig, tenant="day")[0] <= 1
    assert burst(rig, tenant="other")[0] >= 8, "it takes turns with the first, from now on"


def beside_a_flood() -> tuple[Rig, Engine]:
    """Somebody sends four times as much as there is room for, so that async works wait until they age."""
    rig = measured(Rig("a", slots=1, blocks=100_000))
    rig.rules.tiers[Tier.ASYNC] = TierRules(Limits(), TARGET_S[Tier.ASYNC])
    engine = Engine(rig["a"], prefill_rate=1000, token_s=0.01)
    drive(rig, engine, 10.0, tenant="day")
    return rig, engine


def test_async_works_are_let_in_as_long_as_their_share_is_enough_once_they_have_aged() -> None:
    rig, engine = beside_a_flood()
    night: dict[str, object] = {"tenant": "night", "tier": Tier.ASYNC}
    assert refusal(rig, prompt=100, tokens=8, **night) is None
    drive(rig, engine, 3.0, tenant="day")
    now = rig.clock.monotonic()
    assert rig.pool.standing.rate("night", Tier.ASYNC, now) == 0.0, "nothing of it runs, and nothing will for a while"
    before = len(rig.works)
    let_in, error = burst(rig, **night)
    share = rig.pool.drain_rate(now) / 2
    assert AGE_S + 100 * let_in / share == pytest.approx(ACCEPTED * 60, abs=100 / share + 0.2)
    assert isinstance(error, Overloaded)
    drive(rig, engine, 60.0, tenant="day")
    assert all(rig.answers.tokens.get(before + index) for index in range(let_in)), "the promise is kept"


def test_an_async_tenant_alone_has_a_queue_of_its_target() -> None:
    """Its queue stands, but nobody waits for it: what counts is that its works come in time."""
    rig = measured(Rig("a", slots=1, blocks=100_000))
    rig.rules.tiers[Tier.ASYNC] = TierRules(Limits(), 20.0)
    engine = Engine(rig["a"], prefill_rate=1000, token_s=0.01)
    drive(rig, engine, 30.0, tenant="night", tier=Tier.ASYNC)
    waits = 100 * len(rig.pool.queue) / rig.pool.drain_rate(rig.clock.monotonic())
    assert waits == pytest.approx(ACCEPTED * 20.0, abs=0.5)


@pytest.mark.parametrize("tier", Tier)
@pytest.mark.parametrize("ran", [0, 2])
def test_who_has_had_no_turn_yet_is_not_refused_for_that(tier: Tier, ran: int) -> None:
    """One slot, held by another for longer than is needed to measure: that nothing has left says nothing."""
    rig = measured(Rig("a", slots=1, blocks=100_000, tier=TierRules(target_s=60.0)))
    rig.submit(2 + ran, prompt=100, tenant="x")
    for _ in range(ran):
        rig.tick(1.0)
        rig["a"].lane.run()
    assert refusal(rig, prompt=100, tenant="y", tier=tier) is None
    rig.tick(1.2)
    assert rig.pool.standing.rate("y", tier, rig.clock.monotonic()) == 0.0
    assert refusal(rig, prompt=100, tenant="y", tier=tier) is None


# --- ten times too much --------------------------------------------------------------------------


def test_from_a_cold_start_the_wait_stays_near_its_target_under_ten_times_the_load() -> None:
    """Two executors that compute 4,000 tokens a second each get prompts of 80,000; nothing was measured before."""
    rig = Rig("a", "b", slots=16, blocks=100_000)
    engines = [Engine(rig[name], prefill_rate=4000, token_s=0.02) for name in "ab"]
    waits: dict[int, float] = {}
    per_step, steps = 8, 400
    for step in range(steps):
        for index in range(per_step):
            rig.submit(1, prompt=500, tokens=8, tenant=f"tenant-{index % 2}")
        for engine in engines:
            engine.run(0.05)
        rig.tick(0.05)
        for index in rig.answers.tokens.keys() - waits.keys():
            waits[index] = (step - index // per_step) * 0.05
    assert len(waits) * 500 > 0.95 * 8000 * steps * 0.05, "nothing is lost by refusing"
    late = [wait for index, wait in waits.items() if index // per_step > steps // 2]
    p99 = quantiles(late, n=100)[98]
    assert p99 < 2.5, f"two seconds are promised; {p99:.1f} s"
    assert len(late) > 0.9 * 7 / 8 * 16 * (steps // 2 * 0.05 - 2.5), "of eight that run seven came lately"
    errors = [outcome.error for outcome in rig.answers.outcomes.values() if outcome.error is not None]
    assert len(errors) > 0.85 * len(rig.works)
    assert all(isinstance(error, Overloaded) and error.retry_after_s for error in errors)
    assert all(outcome.output_tokens == 0 for outcome in rig.answers.outcomes.values() if outcome.error is not None)


def test_by_how_long_works_stay_the_time_in_the_queue_does_not_count() -> None:
    rig = Rig("a", slots=1)
    rig.submit(3)
    for _ in range(3):
        rig.clock.advance(2.0)
        rig["a"].lane.run()
    rig.tick(1.0)
    assert rig.pool.drain_rate(rig.clock.monotonic()) == pytest.approx(2.0), "one at a time, 4 tokens, 2 s each"


def test_while_works_wait_slots_that_stay_empty_do_not_count() -> None:
    """Blocks are what is scarce: of forty slots four are taken, and each work stays for two seconds."""
    rig = Rig("a", slots=40, blocks=12, tier=TierRules(target_s=60.0))
    rig.submit(4)
    rig.clock.advance(2.0)
    rig["a"].lane.run()
    rig.submit(12)
    measured(rig)
    assert len(rig.running("a")) == 4
    rig.clock.advance(1.0)
    assert rig.pool.drain_rate(rig.clock.monotonic()) <= 8.0, "four at a time, 4 tokens, 2 s each"
    rig["a"].lane.run()
    assert rig.pool.drain_rate(rig.clock.monotonic()) == pytest.approx(8.0)


def test_who_was_cancelled_while_it_waited_was_not_served() -> None:
    rig = Rig("a", slots=1)
    rig.submit(1, tenant="x")
    rig.submit(9, tenant="y")
    rig.tick(2.0)
    for index in range(1, 9):
        rig.lane.cancel(index)
    assert len(rig.pool.queue) == 1
    assert rig.pool.standing.rate("y", Tier.INTERACTIVE, rig.clock.monotonic()) == 0.0


def test_who_comes_when_nobody_waits_is_not_measured_by_what_was_asked_for() -> None:
    rig = measured(Rig("a", "b", slots=8, blocks=1000, reply="later"))
    for _ in range(20):
        rig.clock.advance(0.5)
        rig.submit(1, prompt=40, block_hashes=[1], block_tokens=20)
        while rig.memory.asked:
            rig.memory.answer()
        for name in "ab":
            rig[name].lane.run()
        rig.batcher.tick()
    measured(rig)
    assert rig.pool.drain_rate(rig.clock.monotonic()) >= 2000, "80 tokens a second came; that is not what it can do"


def test_while_no_executor_is_up_nothing_is_measured_and_nobody_refused() -> None:
    rig = Rig("a", slots=2, blocks=1000)
    engine = Engine(rig["a"], prefill_rate=1000, token_s=0.01)
    for _ in range(100):
        rig.submit(1, prompt=50)
        engine.run(0.05)
        rig.tick(0.05)
    assert rig.pool.drain.rate(0, 0.0, 1.0) > 0
    waiting = len(rig.pool.queue)
    rig["a"].lane.cut()
    for _ in range(60):
        rig.tick(1.0)
    assert not rig.pool.drain.busy
    for _ in range(50):
        assert refusal(rig, prompt=50) is None
    assert len(rig.pool.queue) >= waiting + 50
