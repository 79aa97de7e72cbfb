"""When a pool is left alone, and when it gets works again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.errors import (
    Cancelled,
    DeadlinePassed,
    HeadraceError,
    InternalError,
    NoExecutor,
    Overloaded,
    RequestInvalid,
    StageUnavailable,
    ToolFailed,
)
from libs.lane.forwarder import DRAINING, NOBODY
from libs.lane.work import POOL_GONE
from services.router.breaker import IDLE_S, MOST_TIMES, Breaker, Breakers, Position, verdict
from services.router.policy import BreakerRule

RULE = BreakerRule(error_share=0.5, min_works=4, window_s=10.0, open_s=5.0, probes=2)


def ended(breaker: Breaker, now: float, *wells: bool | None) -> None:
    """Works that were let through and ended at once."""
    for well in wells:
        assert breaker.refused_s(now) is None
        breaker.leave(breaker.enter(), well, now)


def opened(now: float = 0.0) -> Breaker:
    breaker = Breaker(RULE)
    ended(breaker, now, False, False, False, False)
    assert breaker.position(now) is Position.OPEN
    return breaker


def test_it_opens_at_its_share_of_failures_and_not_before_enough_works() -> None:
    breaker = Breaker(RULE)
    ended(breaker, 0.0, False, False, False)
    assert breaker.position(0.0) is Position.CLOSED
    assert breaker.counts(0.0) == (3, 3)
    ended(breaker, 0.0, True)
    assert breaker.position(0.0) is Position.CLOSED, "a success opens nothing"
    ended(breaker, 0.0, False)
    assert breaker.position(0.0) is Position.OPEN


def test_below_its_share_it_stays_closed() -> None:
    breaker = Breaker(RULE)
    for _ in range(50):
        ended(breaker, 1.0, True, True, False)
    assert breaker.position(1.0) is Position.CLOSED


def test_what_is_long_ago_is_forgotten() -> None:
    breaker = Breaker(RULE)
    ended(breaker, 0.0, False, False, False)
    ended(breaker, 11.0, False)
    assert breaker.counts(11.0) == (1, 1)
    assert breaker.position(11.0) is Position.CLOSED


def test_what_says_nothing_counts_nothing() -> None:
    breaker = Breaker(RULE)
    ended(breaker, 0.0, *[None] * 20)
    assert breaker.counts(0.0) == (0, 0)


def test_open_it_says_for_how_long() -> None:
    breaker = opened()
    assert breaker.refused_s(1.0) == 4.0
    assert breaker.probes_in_s(1.0) == 4.0
    assert breaker.refused_s(5.0) is None
    assert breaker.position(5.0) is Position.HALF_OPEN
    assert breaker.probes_in_s(5.0) == 0.0


def test_half_open_only_probes_pass_and_enough_of_them_close_it() -> None:
    breaker = opened()
    assert breaker.refused_s(5.0) is None
    first = breaker.enter()
    assert breaker.probes(first)
    assert breaker.refused_s(5.0) is None
    second = breaker.enter()
    assert breaker.refused_s(5.0) == 1.0, "both probes are under way"
    breaker.leave(first, True, 6.0)
    assert breaker.refused_s(6.0) == 1.0, "one has succeeded, the other one may"
    breaker.leave(second, True, 6.0)
    assert breaker.position(6.0) is Position.CLOSED
    assert breaker.counts(6.0) == (0, 0), "it begins anew"


def test_a_probe_that_says_nothing_makes_room_for_another_one() -> None:
    breaker = opened()
    for _ in range(5):
        ended(breaker, 5.0, None)
    ended(breaker, 5.0, True, True)
    assert breaker.position(5.0) is Position.CLOSED


def test_each_time_it_opens_again_at_once_it_stays_open_twice_as_long_up_to_a_bound() -> None:
    breaker, now, stays = opened(), 0.0, []
    for _ in range(7):
        stays.append(breaker.probes_in_s(now))
        now += stays[-1]
        ended(breaker, now, False)
    assert stays == [5.0, 10.0, 20.0, 40.0, 50.0, 50.0, 50.0]
    assert stays[-1] == MOST_TIMES * RULE.open_s
    now += 50.0
    ended(breaker, now, True, True)
    ended(breaker, now, False, False, False, False)
    assert breaker.probes_in_s(now) == 5.0, "once closed, it begins anew"


def test_a_work_from_before_the_last_change_counts_no_more() -> None:
    breaker = Breaker(RULE)
    old = [breaker.enter() for _ in range(6)]
    for ticket in old[:4]:
        breaker.leave(ticket, False, 0.0)
    assert breaker.refused_s(5.0) is None
    breaker.leave(old[4], False, 5.0)
    breaker.leave(old[5], True, 5.0)
    assert breaker.position(5.0) is Position.HALF_OPEN
    ended(breaker, 5.0, True, True)


def test_a_copy_that_comes_back_lets_probes_through_at_once() -> None:
    breaker = opened()
    breaker.came_back()
    assert breaker.position(0.0) is Position.HALF_OPEN
    ended(breaker, 0.0, True, True)
    breaker.came_back()
    assert breaker.position(0.0) is Position.CLOSED


@given(st.lists(st.tuples(st.floats(0, 8), st.sampled_from([True, False, None]))))
def test_whatever_ends_a_breaker_lets_works_through_again(events: list[tuple[float, bool | None]]) -> None:
    breaker, now = Breaker(RULE), 0.0
    running: list[int] = []
    for passed, well in events:
        now += passed
        if breaker.refused_s(now) is None:
            running.append(breaker.enter())
        if running and len(running) % 2:
            breaker.leave(running.pop(0), well, now)
        works, failed = breaker.counts(now)
        assert 0 <= failed <= works
        assert len(breaker._buckets) <= 11
    for ticket in running:
        breaker.leave(ticket, None, now)
    now += MOST_TIMES * RULE.open_s
    for _ in range(RULE.probes):
        if breaker.position(now) is Position.HALF_OPEN:
            ended(breaker, now, True)
    assert breaker.position(now) is Position.CLOSED
    assert breaker.refused_s(now) is None


@pytest.mark.parametrize(
    ("error", "well"),
    [
        (None, True),
        (StageUnavailable("it failed"), False),
        (NoExecutor("nobody is there"), False),
        (InternalError("a bug"), False),
        (ToolFailed("not its fault"), None),
        (Overloaded("full"), None),
        (RequestInvalid("wrong"), None),
        (Cancelled("gone"), None),
        (DeadlinePassed("late"), None),
        (NoExecutor("withdrawn", metadata={POOL_GONE: "true"}), None),
        (StageUnavailable("draining", metadata={DRAINING: "true"}), None),
        (StageUnavailable("nobody took it", metadata={NOBODY: "true"}), None),
    ],
)
def test_only_what_a_pool_did_counts(error: HeadraceError | None, well: bool | None) -> None:
    assert verdict(error) is well


def test_breakers_are_told_apart_shown_and_forgotten() -> None:
    breakers = Breakers("router-0")
    bad, good = breakers.of("bad@1", RULE), breakers.of("good@1", RULE)
    ended(bad, 100.0, False, False, False, False)
    ended(good, 100.0, True)
    assert breakers.of("bad@1", RULE) is bad
    states = breakers.states(101.0)
    assert [(s.instance, s.pool, s.position, s.works, s.failed, s.probes_in_s) for s in states] == [
        ("router-0", "bad@1", 2, 4, 4, 4.0),
        ("router-0", "good@1", 1, 1, 0, 0.0),
    ]
    later = 100.0 + IDLE_S + 1
    assert [s.pool for s in breakers.states(later)] == ["bad@1"], "what is not closed is shown"
    breakers.forget({"good@1"}, later)
    assert breakers.positions(later) == {"good@1": Position.CLOSED}


def test_a_rule_may_change_while_it_is_open() -> None:
    breakers = Breakers("router-0")
    ended(breakers.of("p", RULE), 0.0, False, False, False, False)
    patient = BreakerRule(probes=1)
    breaker = breakers.of("p", patient)
    assert breaker.position(5.0) is Position.HALF_OPEN
    ended(breaker, 5.0, True)
    assert breaker.position(5.0) is Position.CLOSED
