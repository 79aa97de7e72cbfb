"""How saturated a pool is: what works waited, what was refused, for each tier."""

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.lane.work import Tier
from services.batcher import saturation as module
from services.batcher.asked import risen
from services.batcher.queue import Entry
from services.batcher.rules import TierRules
from services.batcher.saturation import CAME_S, WAITED_S, Load, Saturation, refused_share
from tests.unit.batching import Rig

INTERACTIVE, ASYNC = Tier


def entry(key: int, arrived: float, tier: Tier = INTERACTIVE, due: float = inf) -> Entry:
    return Entry(key, tier, 4, arrived, due=due)


def waited(load: Load, tier: Tier, queue: list[Entry], target_s: float, now: float) -> float:
    return load.waits(queue, dict.fromkeys(Tier, target_s), now)[tier]


def test_the_wait_is_that_of_the_work_that_has_used_up_most_of_what_it_is_promised() -> None:
    load = Load()
    queue = [entry(1, 7.0, due=27.0), entry(2, 9.0), entry(3, 2.0, ASYNC)]
    assert waited(load, INTERACTIVE, queue, 2.0, 10.0) == 0.5, "3 s of 20 s that a long prompt may take are less"
    assert waited(load, ASYNC, queue, 60.0, 10.0) == pytest.approx(8 / 60)


def test_what_has_left_the_queue_counts_for_two_seconds() -> None:
    load = Load()
    load.left(entry(1, 0.0), 2.0, 1.8)
    load.left(entry(2, 1.5), 2.0, 1.8)
    assert waited(load, INTERACTIVE, [], 2.0, 1.8 + WAITED_S - 0.3) == pytest.approx(0.9)
    assert waited(load, ASYNC, [], 2.0, 2.0) == 0.0
    assert waited(load, INTERACTIVE, [], 2.0, 2.0 + WAITED_S + 0.3) == 0.0


def test_one_that_came_back_is_promised_nothing_new_but_waits_anew() -> None:
    assert waited(Load(), INTERACTIVE, [entry(1, 100.0, due=2.0)], 2.0, 101.0) == 0.5


def test_the_time_for_which_no_executor_was_up_does_not_count() -> None:
    load = Load()
    load.follow(False, 20.0)
    load.follow(True, 20.1)
    waits = [entry(1, 1.0)]
    assert waited(load, INTERACTIVE, waits, 2.0, 21.0) == 0.5
    load.left(waits[0], 2.0, 21.0)
    assert waited(load, INTERACTIVE, [], 2.0, 21.0) == 0.5


def test_each_tenant_counts_the_same_among_the_refused() -> None:
    load = Load()
    for _ in range(900):
        load.arrived("flood", INTERACTIVE, True, 3.0)
    for _ in range(100):
        load.arrived("flood", INTERACTIVE, False, 3.0)
    assert refused_share([load], INTERACTIVE, 3.0) == pytest.approx(0.9, abs=0.01)
    for name in ("a", "b"):
        load.arrived(name, INTERACTIVE, False, 4.0)
    assert refused_share([load], INTERACTIVE, 4.0) == pytest.approx(0.3, abs=0.01)
    assert refused_share([load], ASYNC, 4.0) == 0.0
    assert refused_share([load], INTERACTIVE, 7.0) == 0.0


def test_the_share_that_was_refused_does_not_rise_when_a_flood_is_over() -> None:
    load = Load()
    for at in range(600):
        load.arrived("a", INTERACTIVE, at >= 200, at / 100)
    during = refused_share([load], INTERACTIVE, 5.99)
    assert 0.8 < during < 0.95
    after = [refused_share([load], INTERACTIVE, 6.0 + tenths / 10) for tenths in range(150)]
    assert max(after) <= during + 0.03
    assert after[30:] == [0.0] * 120


def test_the_share_that_was_refused_falls_as_soon_as_there_is_room() -> None:
    load = Load()
    for at in range(500):
        load.arrived("a", INTERACTIVE, True, at / 100)
    for at in range(50, 70):
        load.arrived("a", INTERACTIVE, False, at / 10)
    assert refused_share([load], INTERACTIVE, 6.9) < 0.1


def test_a_single_refusal_is_half_of_what_came() -> None:
    load = Load()
    load.arrived("a", INTERACTIVE, True, 0.0)
    assert refused_share([load], INTERACTIVE, 0.0) == 0.5


def test_of_too_many_tenants_the_rest_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_TENANTS", 3)
    load = Load()
    for number in range(10):
        load.arrived(f"t{number}", INTERACTIVE, False, 0.0)
    ((age, came),) = load.came(INTERACTIVE, 0.5)
    assert age == 0.0
    assert sorted(came) == ["", "t0", "t1", "t2"]
    assert came[""].works == 7


@given(st.lists(st.tuples(st.floats(0, 3), st.booleans(), st.sampled_from(Tier), st.floats(0, 100)), max_size=200))
def test_what_is_remembered_is_bounded_and_nothing_lasts(steps: list[tuple[float, bool, Tier, float]]) -> None:
    load, now = Load(), 0.0
    for passed, refused, tier, ago in steps:
        now += passed
        load.arrived("t", tier, refused, now)
        load.left(entry(1, now - ago, tier), 2.0, now)
        assert len(load._came[tier]) <= CAME_S / module.SLICE_S + 1
        assert len(load._waits[tier]) <= WAITED_S / module.SLOT_S + 2
        assert waited(load, tier, [], 2.0, now) >= ago / 2.0 - 1e-6
    for tier in Tier:
        assert waited(load, tier, [], 2.0, now + CAME_S + 1) == 0.0
        assert not load.came(tier, now + CAME_S + 1)


def test_worse_is_news_and_blocks_are_not() -> None:
    calm = Saturation(INTERACTIVE)
    assert Saturation(INTERACTIVE, wait=0.1).risen(calm)
    assert Saturation(INTERACTIVE, refused=0.1).risen(calm)
    assert not Saturation(INTERACTIVE, waiting=3, blocks=1.0, wait=0.01).risen(calm)
    assert not calm.risen(Saturation(INTERACTIVE, wait=1.0))


# --- in a batcher --------------------------------------------------------------------------------


def seen(rig: Rig, tier: Tier = INTERACTIVE) -> Saturation:
    (demand,) = rig.batcher.demands()
    return next(each for each in demand.saturations if each.tier is tier)


def test_a_batcher_tells_what_it_sees() -> None:
    rig = Rig("a", slots=1, blocks=10, tier=TierRules(target_s=4.0), works=2)
    rig.submit(1, tokens=16)
    assert seen(rig) == Saturation(INTERACTIVE, blocks=0.5), "20 tokens are 5 blocks of 4 tokens"
    before = rig.batcher.demands()
    rig.submit(5)
    rig.clock.advance(1.0)
    assert seen(rig) == Saturation(INTERACTIVE, 2, 0.25, 0.5, 3 / 7)
    assert seen(rig, ASYNC) == Saturation(ASYNC, blocks=0.5)
    assert risen(before, rig.batcher.demands())
    rig["a"].lane.run()
    assert seen(rig) == Saturation(INTERACTIVE, 1, 0.25, 0.3, 3 / 7)
    rig.run_all()
    rig.clock.advance(CAME_S + 1)
    assert seen(rig) == Saturation(INTERACTIVE)


def test_what_fits_nowhere_is_no_saturation() -> None:
    rig = Rig("a", blocks=10)
    rig.submit(1)
    rig.submit(5, prompt=400)
    assert seen(rig).refused == 0.0


def test_a_work_that_waits_for_its_model_saturates_nothing() -> None:
    rig = Rig()
    rig.submit(1)
    for _ in range(3):
        rig.tick(10.0)
        assert seen(rig) == Saturation(INTERACTIVE, 1)
    rig.clock.advance(0.5)
    rig.have("a")
    assert seen(rig).wait == 0.25, "half a second of two, since the last look without an executor"


def test_a_work_that_was_given_up_has_waited_too() -> None:
    rig = Rig("a", slots=1)
    rig.submit(2)
    rig.clock.advance(1.0)
    rig.lane.cancel(1)
    assert seen(rig) == Saturation(INTERACTIVE, 0, 0.5, 0.03)
