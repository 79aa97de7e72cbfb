"""Deadlines: the living in order, the dead forgotten."""

from hypothesis import given
from hypothesis import strategies as st

from libs.lane.deadlines import SLACK, Deadlines


@given(st.lists(st.tuples(st.integers(0, 20), st.booleans())), st.integers(0, 20))
def test_the_living_whose_time_has_come_are_given_in_order(works: list[tuple[int, bool]], now: int) -> None:
    living = {number: deadline for number, (deadline, live) in enumerate(works) if live}
    deadlines = Deadlines(living)
    for number, (deadline, _) in enumerate(works):
        deadlines.add(deadline, number)
    assert list(deadlines.passed(now)) == sorted(deadline for deadline in living.values() if deadline <= now)
    assert list(deadlines.passed(now)) == []


def test_the_dead_are_forgotten() -> None:
    deadlines = Deadlines({0: "alive"})
    deadlines.add(1.0, 0)
    for number in range(1, SLACK + 11):
        deadlines.add(2.0, number)
        deadlines.prune()
    assert len(deadlines) <= SLACK + 2
    assert list(deadlines.passed(3.0)) == ["alive"]


def test_one_that_ends_while_others_are_given_is_left_out() -> None:
    living = {1: "first", 2: "second"}
    deadlines = Deadlines(living)
    deadlines.add(1.0, 1)
    deadlines.add(2.0, 2)
    passed = []
    for work in deadlines.passed(5.0):
        passed.append(work)
        living.pop(2, None)
    assert passed == ["first"]
