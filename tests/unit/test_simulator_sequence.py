"""The longest step since a given one, against looking at all of them."""

from hypothesis import given
from hypothesis import strategies as st

from services.simulator.sequence import TRIM, Longest


@given(st.lists(st.integers(1, 20), min_size=1, max_size=60), st.data())
def test_the_longest_step_is_found(durations: list[int], data: st.DataObject) -> None:
    longest = Longest()
    for step, duration in enumerate(durations):
        longest.add(step, duration)
        since = data.draw(st.integers(0, step + 2))
        assert longest.since(since) == max(durations[since : step + 1], default=0)


def test_steps_are_forgotten_when_there_are_many() -> None:
    longest = Longest()
    for step in range(TRIM * 3):
        longest.add(step, TRIM * 3 - step)
    assert longest.since(TRIM * 3 - 1) == 1
    assert longest.since(TRIM * 3 - TRIM // 2) == TRIM // 2
    assert longest.since(0) <= 1.5 * TRIM
