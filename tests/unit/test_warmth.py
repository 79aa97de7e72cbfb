"""Prefixes that are brought to executors before they are asked for."""

import pytest
from msgspec.structs import replace

from libs.errors import Cancelled, StageUnavailable
from libs.lane.work import FinishReason, Outcome, Tier
from services.batcher.hot import Prefix
from services.batcher.rules import PinnedPrefix
from services.batcher.scheduling import Dispatch, SchedulingRules
from services.batcher.warmth import AGAIN_S, DEADLINE_S, PINS_S
from tests.unit.batching import NO, YES, Rig, knows
from tests.unit.lanes import work

WARM_UPS = "headrace_batcher_warm_ups_total"


def prefix(*hashes: int, block_tokens: int = 4) -> Prefix:
    tokens = tuple(value for value in hashes for _ in range(block_tokens))
    return Prefix(tokens, hashes, "x@1", "s", "m")


def hot(rig: Rig, *hashes: int) -> None:
    """This prefix was found again and again."""
    one = work(block_hashes=hashes, block_tokens=4, adapter="x@1", salt="s")
    for _ in range(3):
        rig.pool.hot.found(replace(one, prompt=prefix(*hashes).tokens), len(hashes))


def pin(rig: Rig, *hashes: int, copies: int = 0) -> None:
    rig.rules.pinned.append(PinnedPrefix(f"pin-{hashes}", prefix(*hashes), copies))


def warming(rig: Rig, name: str) -> list[tuple[int, ...]]:
    """Of the prefixes that an executor is computing, the hashes."""
    return [tuple(one.block_hashes) for one in rig[name].lane.works.values() if one.tenant == "headrace-warm-up"]


def test_an_executor_that_comes_gets_the_hottest_prefixes_one_at_a_time() -> None:
    rig = Rig("a")
    rig.tick()
    hot(rig, 1, 2)
    hot(rig, 7)
    rig.tick()
    assert warming(rig, "a") == [], "it was there before anything was hot"
    rig.have("a", "b")
    rig.tick()
    assert warming(rig, "b") == [(1, 2)]
    (one,) = rig["b"].lane.works.values()
    assert (one.tier, one.adapter, one.salt, one.model, one.pool) == (Tier.ASYNC, "x@1", "s", "m", "m")
    assert (list(one.prompt), one.block_tokens, one.sampling.max_tokens) == ([1] * 4 + [2] * 4, 4, 1)
    assert one.deadline <= rig.clock.now() + DEADLINE_S
    rig.tick()
    assert warming(rig, "b") == [(1, 2)]
    (key,) = rig["b"].lane.works
    rig["b"].lane.end(key, Outcome(FinishReason.LENGTH, output_tokens=1))
    rig.tick()
    assert warming(rig, "b") == [(7,)]
    (key,) = rig["b"].lane.works
    rig["b"].lane.end(key, Outcome(FinishReason.LENGTH, output_tokens=1))
    rig.tick()
    assert warming(rig, "b") == []
    assert rig.count(WARM_UPS, model="m") == 2
    rig.at_rest()


def test_a_warm_up_is_no_demand_and_nobody_pays_for_it() -> None:
    rig = Rig("a")
    pin(rig, 1)
    rig.tick(PINS_S)
    assert warming(rig, "a") == [(1,)]
    assert rig.pool.held == 0
    assert not rig.batcher.demands()
    assert rig.pool.counters.served("headrace-warm-up") == 0
    (key,) = rig["a"].lane.works
    rig["a"].lane.end(key, Outcome(FinishReason.LENGTH, output_tokens=1))
    assert len(rig.book.lengths) == 0
    assert rig.count("headrace_batcher_works_total", model="m", tier="async", result="OK") == 0
    assert rig.pool.computed_share == 1.0
    rig.at_rest()


@pytest.mark.parametrize(
    "rules", [SchedulingRules(cold_start=True), SchedulingRules(warm_prefixes=1), SchedulingRules()]
)
def test_how_much_is_warmed_is_the_operators_choice(rules: SchedulingRules) -> None:
    rig = Rig("a", rules=rules)
    hot(rig, 1, 2)
    hot(rig, 7)
    rig.have("a", "b")
    for _ in range(5):
        rig.tick(0.05)
        rig["b"].lane.run()
    warmed = [one for one in rig["b"].lane.sent if one.tenant == "headrace-warm-up"]
    assert len(warmed) == (0 if rules.cold_start else min(rules.warm_prefixes, 2))


def test_a_restarted_executor_is_warmed_again_at_once() -> None:
    rig = Rig("a")
    rig.tick()
    hot(rig, 1)
    for _ in range(2):
        rig.have("a", "b")
        rig.tick()
        assert warming(rig, "b") == [(1,)]
        rig["b"].lane.run()
        rig.have("a")
        rig.tick()


def test_a_lane_that_breaks_and_comes_back_is_no_new_executor() -> None:
    rig = Rig("a", "b")
    rig.tick()
    hot(rig, 1)
    rig["b"].lane.cut()
    rig.tick()
    rig["b"].lane.mend()
    rig.tick()
    assert warming(rig, "b") == []


def test_pins_go_where_they_lack() -> None:
    rig = Rig("a", "b", reply=knows(a=1))
    pin(rig, 1)
    rig.tick(PINS_S)
    assert (warming(rig, "a"), warming(rig, "b")) == ([], [(1,)])
    rig["b"].lane.run()
    rig.tick(PINS_S)
    assert warming(rig, "b") == [], "the manager may hear of it late"
    rig.tick(AGAIN_S)
    assert warming(rig, "b") == [(1,)], "but not as late as that"


def test_no_more_copies_of_a_pin_than_wanted() -> None:
    rig = Rig("a", "b", "c", reply=knows(c=1))
    pin(rig, 1, copies=2)
    rig.tick(PINS_S)
    assert (warming(rig, "a"), warming(rig, "b"), warming(rig, "c")) == ([(1,)], [], [])


def test_without_a_manager_nothing_is_known_and_nothing_pinned() -> None:
    rig = Rig("a", reply=None)
    pin(rig, 1)
    rig.tick(PINS_S)
    assert warming(rig, "a") == []


def test_it_runs_where_there_is_time_for_it() -> None:
    rig = Rig("a", slots=2)
    pin(rig, 1)
    rig.submit(1)
    rig.tick(PINS_S)
    assert warming(rig, "a") == [], "half of the slots are taken"
    rig["a"].lane.run()
    rig.tick()
    assert warming(rig, "a") == [(1,)]


def test_what_would_fill_the_cache_is_left_out() -> None:
    rig = Rig("a", blocks=10)
    pin(rig, 1, 2, 3)
    rig.tick(PINS_S)
    assert warming(rig, "a") == []


def test_it_is_the_first_to_go_and_does_not_come_back() -> None:
    rig = Rig("a", slots=3, blocks=1000)
    pin(rig, *range(20))
    rig.tick(PINS_S)
    rig.submit(2, tokens=1, prompt=1, tier=Tier.ASYNC)
    rig["a"].lane.step()
    rig.submit(1)
    (key,) = rig["a"].lane.cancels
    assert rig.book.held[key].once, "what is thrown away anyway is lost for least"
    rig["a"].lane.end(key, Outcome(error=Cancelled("as asked")))
    assert rig.running("a") == [0, 1, 2]
    rig.run_all()
    rig.all_right()


@pytest.mark.parametrize("how", ["refused", "lost", "gone", "given back", "deadline", "asked"])
def test_whatever_happens_to_a_warm_up_nothing_is_left_of_it(how: str) -> None:
    rig = Rig("a", "b", slots=4, reply="later" if how in ("refused", "asked") else knows(b=1))
    pin(rig, 1)
    rig.tick(PINS_S)
    if how in ("refused", "asked"):
        rig.memory.answer(knows(b=1))
        rig.tick()
    rig.rules.pinned.clear()
    lane = rig["a"].lane
    if how == "refused":
        rig.memory.answer(NO)
        assert rig.seat("a").open, "what does not fit for a warm-up may fit for others"
    elif how == "asked":
        rig.have("b")
        rig.memory.answer(YES)
    elif how == "lost":
        lane.cut()
        lane.mend()
    elif how == "gone":
        rig.have("b")
        lane.cut()
    elif how == "given back":
        lane.end(next(iter(lane.works)), Outcome(error=StageUnavailable("the engine died")))
    else:
        rig.tick(DEADLINE_S)
        assert lane.cancels
        lane.end(lane.cancels[0], Outcome(error=Cancelled("as asked")))
    rig.memory.reply = knows(a=1, b=1)
    while rig.memory.asked:
        rig.memory.answer(rig.memory.reply)
    rig.tick(0.1)
    rig.at_rest()
    rig.submit(2)
    rig.run_all()
    rig.all_right()


def test_a_batcher_that_drains_warms_nothing() -> None:
    rig = Rig("a")
    pin(rig, 1)
    rig.batcher.draining = True
    rig.tick(PINS_S)
    assert rig.batcher.in_flight == 0
    assert not rig.memory.used


def test_where_the_engine_queues_nothing_is_warmed() -> None:
    rig = Rig("a", rules=SchedulingRules(dispatch=Dispatch.ROUND_ROBIN))
    pin(rig, 1)
    rig.tick(PINS_S)
    assert warming(rig, "a") == []
