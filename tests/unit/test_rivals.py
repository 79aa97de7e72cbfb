"""Which tenants contend, and who has more than its share."""

from hypothesis import given
from hypothesis import strategies as st

from services.batcher.rivals import RIVAL_S, Rivals


def test_alone_nobody_is_ahead() -> None:
    rivals = Rivals()
    rivals.came("a", 1.0, 0.0)
    for _ in range(9):
        rivals.placed("a")
    assert not rivals.ahead("a")
    rivals.came("b", 1.0, 1.0)
    assert rivals.ahead("a")
    assert not rivals.ahead("b")
    assert not rivals.ahead("never seen")


def test_shares_go_by_weight() -> None:
    rivals = Rivals()
    rivals.came("a", 3.0, 0.0)
    rivals.came("b", 1.0, 0.0)
    for tenant in "aaab":
        rivals.placed(tenant)
    assert not rivals.ahead("a"), "three quarters are its share"
    rivals.placed("a")
    assert rivals.ahead("a")
    rivals.came("a", 9.0, 0.0)
    assert not rivals.ahead("a"), "its weight was raised"


def test_a_share_is_that_among_all_that_contend() -> None:
    rivals = Rivals()
    assert rivals.share("a") == 1.0
    rivals.came("a", 3.0, 0.0)
    assert rivals.share("a") == rivals.share("never seen") == 1.0
    rivals.came("b", 1.0, RIVAL_S)
    assert (rivals.share("a"), rivals.share("b")) == (0.75, 0.25)
    rivals.forget(RIVAL_S + 0.1)
    assert rivals.share("b") == 1.0


def test_who_does_not_come_any_more_is_no_rival() -> None:
    rivals = Rivals()
    rivals.came("a", 1.0, 0.0)
    rivals.came("b", 1.0, 0.0)
    rivals.placed("a")
    rivals.came("a", 1.0, RIVAL_S)
    rivals.forget(RIVAL_S)
    assert rivals.ahead("a")
    rivals.forget(RIVAL_S + 0.1)
    assert not rivals.ahead("a")


steps = st.tuples(st.sampled_from(["came", "placed", "left", "forget"]), st.sampled_from("abc"), st.floats(0.1, 9))


@given(st.lists(steps))
def test_the_sums_stay_those_of_the_parts(steps: list[tuple[str, str, float]]) -> None:
    rivals, now = Rivals(), 0.0
    for what, tenant, figure in steps:
        now += figure
        if what == "came":
            rivals.came(tenant, figure, now)
        elif what == "placed":
            rivals.placed(tenant)
        elif what == "left" and rivals.running[tenant]:
            rivals.left(tenant)
        else:
            rivals.forget(now)
        rivals.check_integrity()
