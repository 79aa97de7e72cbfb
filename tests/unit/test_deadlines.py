"""Deadlines: the living in order, the dead forgotten."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from libs.lane.deadlines import SLACK, Deadlines


@dataclass(eq=False)
class Work:
    deadline: float
    live: bool = True


@given(st.lists(st.tuples(st.integers(0, 20), st.booleans())), st.integers(0, 20))
def test_the_living_whose_time_has_come_are_given_in_order(works: list[tuple[int, bool]], now: int) -> None:
    deadlines: Deadlines[Work] = Deadlines()
    kept = [Work(deadline, live) for deadline, live in works]
    for work in kept:
        deadlines.add(work.deadline, work)
    passed = list(deadlines.passed(now))
    assert passed == sorted((w for w in kept if w.live and w.deadline <= now), key=lambda w: w.deadline)
    assert list(deadlines.passed(now)) == []


def test_the_dead_are_forgotten() -> None:
    deadlines: Deadlines[Work] = Deadlines()
    alive = Work(1.0)
    deadlines.add(alive.deadline, alive)
    for _ in range(SLACK + 10):
        deadlines.add(2.0, Work(2.0, live=False))
        deadlines.prune(alive=1)
    assert len(deadlines) <= SLACK + 2
    assert list(deadlines.passed(3.0)) == [alive]


def test_one_that_ends_while_others_are_given_is_left_out() -> None:
    deadlines: Deadlines[Work] = Deadlines()
    first, second = Work(1.0), Work(2.0)
    for work in (first, second):
        deadlines.add(work.deadline, work)
    passed = []
    for work in deadlines.passed(5.0):
        passed.append(work)
        second.live = False
    assert passed == [first]
