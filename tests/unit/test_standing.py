"""How fast those are served who always have something waiting."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.lane.work import Tier
from services.batcher.standing import MEASURED_S, Standing

INTERACTIVE, ASYNC = Tier.INTERACTIVE, Tier.ASYNC


def stands(standing: Standing, seconds: float, tokens: int = 100, *, tenant: str = "t", start: float = 0.0) -> float:
    """Ten works a second come, ten leave, and there is always one; returns the time at the end."""
    standing.came(tenant, INTERACTIVE, start)
    steps = round(seconds * 10)
    for step in range(1, steps + 1):
        standing.came(tenant, INTERACTIVE, start + step / 10)
        standing.left(tenant, INTERACTIVE, tokens, start + step / 10)
    return start + steps / 10


def test_nothing_is_known_of_who_has_not_waited_for_long() -> None:
    standing = Standing()
    assert standing.rate("t", INTERACTIVE, 0.0) is None
    standing.came("t", INTERACTIVE, 0.0)
    assert standing.rate("t", INTERACTIVE, 0.0) is None
    assert standing.rate("t", INTERACTIVE, 0.9 * MEASURED_S) is None
    assert standing.rate("t", INTERACTIVE, 1.1 * MEASURED_S) == 0.0, "it waits, and nothing moves"


def test_where_works_always_wait_it_is_the_rate_at_which_they_leave() -> None:
    standing = Standing()
    now = stands(standing, 20.0)
    assert standing.rate("t", INTERACTIVE, now) == pytest.approx(1000, rel=0.1)
    now = stands(standing, 20.0, tokens=10, start=now)
    slower = standing.rate("t", INTERACTIVE, now)
    assert slower is not None
    assert 100 <= slower < 200, "what was before is forgotten"


def test_a_burst_that_is_over_says_nothing_about_the_next_one() -> None:
    standing = Standing()
    now = stands(standing, 0.5)
    standing.left("t", INTERACTIVE, 100, now)
    standing.came("t", INTERACTIVE, now + 10)
    assert standing.rate("t", INTERACTIVE, now + 10) is None


def test_time_in_which_nothing_waits_does_not_count() -> None:
    """A tenant that sends a little is served as fast as it sends: that says nothing about how fast it could be."""
    standing = Standing()
    for second in range(60):
        standing.came("t", INTERACTIVE, second)
        standing.left("t", INTERACTIVE, 100, second + 0.01)
    standing.came("t", INTERACTIVE, 60.0)
    assert standing.rate("t", INTERACTIVE, 60.0) is None
    now = stands(standing, 5.0, start=61.0)
    assert standing.rate("t", INTERACTIVE, now) == pytest.approx(1000, rel=0.25)


def test_who_waits_no_more_has_no_rate() -> None:
    standing = Standing()
    now = stands(standing, 5.0)
    standing.left("t", INTERACTIVE, 100, now)
    assert standing.rate("t", INTERACTIVE, now) is None


def test_works_that_are_given_up_are_not_served() -> None:
    standing = Standing()
    now = stands(standing, 5.0)
    before = standing.rate("t", INTERACTIVE, now)
    for _ in range(1000):
        standing.came("t", INTERACTIVE, now)
        standing.left("t", INTERACTIVE, 0, now)
    assert standing.rate("t", INTERACTIVE, now) == before


def test_tenants_and_tiers_are_told_apart() -> None:
    standing = Standing()
    standing.came("t", ASYNC, 0.0)
    standing.came("u", INTERACTIVE, 0.0)
    now = stands(standing, 5.0)
    assert standing.rate("t", INTERACTIVE, now) == pytest.approx(1000, rel=0.25)
    assert standing.rate("t", ASYNC, now) == standing.rate("u", INTERACTIVE, now) == 0.0


def test_who_sends_now_and_then_does_not_stand_however_often() -> None:
    """A quarter of the time something of it waits, but never for long."""
    standing = Standing()
    for step in range(400):
        standing.came("t", INTERACTIVE, 0.1 * step)
        assert standing.rate("t", INTERACTIVE, 0.1 * step + 0.02) is None
        standing.left("t", INTERACTIVE, 100, 0.1 * step + 0.025)


steps = st.tuples(
    st.sampled_from(["came", "came", "left", "given up", "rate"]),
    st.sampled_from("abc"),
    st.sampled_from(Tier),
    st.sampled_from([0.0, 0.1, 5.0, 60.0]),
)


@given(st.lists(steps, max_size=60))
def test_what_waits_is_what_came_and_has_not_left(steps: list[tuple[str, str, Tier, float]]) -> None:
    standing, waits, now, most = Standing(), Counter[tuple[str, Tier]](), 0.0, 0
    for what, tenant, tier, seconds in steps:
        now += seconds
        if what == "came":
            standing.came(tenant, tier, now)
            waits[tenant, tier] += 1
        elif what in ("left", "given up") and waits[tenant, tier]:
            tokens = 100 if what == "left" else 0
            most += tokens
            standing.left(tenant, tier, tokens, now)
            waits[tenant, tier] -= 1
        rate = standing.rate(tenant, tier, now)
        assert rate is None or 0 <= rate <= most / MEASURED_S
        assert rate is None or waits[tenant, tier]
        assert standing.waiting() == dict(+waits)
