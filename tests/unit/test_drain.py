"""How fast a queue is worked off, measured and foreseen."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.batcher.drain import HALF_LIFE_S, PRIOR_S, Drain, Flow


def busy(drain: Drain, seconds: float, tokens_s: float, *, start: float = 0.0) -> float:
    """Works wait, and prompts go to executors at this rate; returns the time at the end."""
    steps = round(seconds / 0.1)
    for step in range(steps):
        drain.observe(True, start + step * 0.1)
        drain.left(round(tokens_s * 0.1), start + step * 0.1)
    drain.observe(True, start + seconds)
    return start + seconds


def rate(drain: Drain, foreseen: float = 0.0) -> float:
    """With a forecast that rests on the prefill rate alone."""
    return drain.rate(0, foreseen, 1.0)


# --- measured and foreseen -----------------------------------------------------------------------


def test_while_works_wait_it_is_what_leaves() -> None:
    drain = Drain()
    busy(drain, 20.0, 3000)
    assert rate(drain, 9999.0) == pytest.approx(3000, rel=0.05)


def test_nothing_is_known_before_enough_was_seen() -> None:
    drain = Drain()
    drain.observe(True, 0.0)
    drain.left(100_000, 0.001)
    drain.observe(True, 0.002)
    assert drain.rate(8, 0.0, 1.0) == 0.0, "nothing has ended, and no prefill rate is known"
    busy(drain, 1.5 * PRIOR_S, 1000, start=0.002)
    assert rate(drain) > 1000


def test_the_forecast_is_what_it_starts_from_and_leaves_behind() -> None:
    drain = Drain()
    drain.observe(True, 0.0)
    assert rate(drain, 5000.0) == 5000.0
    busy(drain, PRIOR_S / 2, 1000)
    assert rate(drain, 5000.0) == pytest.approx(3000, rel=0.1)
    busy(drain, PRIOR_S / 2 + 0.1, 1000, start=PRIOR_S / 2)
    assert rate(drain, 5000.0) == pytest.approx(1000, rel=0.1)


def test_what_leaves_while_none_waits_says_only_what_is_asked_for() -> None:
    drain = Drain()
    now = busy(drain, 10.0, 3000)
    drain.observe(False, now)
    assert not drain.busy
    assert rate(drain, 8000.0) == 8000.0
    for step in range(20):
        drain.left(1, now + step * 0.1)
    drain.observe(True, now + 2.0)
    assert rate(drain, 8000.0) == pytest.approx(3000, rel=0.1), "what was measured before, not the light load"


def test_what_was_measured_long_ago_gives_way_to_the_forecast() -> None:
    drain = Drain()
    now = busy(drain, 10.0, 3000)
    drain.observe(False, now)
    drain.observe(True, now + 20 * HALF_LIFE_S)
    assert rate(drain, 8000.0) == pytest.approx(8000, rel=0.01)


def test_a_queue_that_stands_still_is_seen_to() -> None:
    drain = Drain()
    now = busy(drain, 10.0, 3000)
    busy(drain, 4 * HALF_LIFE_S, 0, start=now)
    assert rate(drain, 8000.0) < 300


def test_it_is_foreseen_by_slots_and_stay_but_not_beyond_the_prefill_rate() -> None:
    drain = Drain()
    drain.left(1000, 0.0)
    assert drain.rate(8, 4000.0, 1.0) == 4000.0, "nothing has ended yet"
    assert drain.rate(8, 4000.0, 0.5) == 8000.0, "half of each prompt is remembered"
    drain.stayed(4.0)
    assert drain.rate(8, 4000.0, 0.5) == 2000.0, "eight at once, each for four seconds"
    assert drain.rate(8, 0.0, 1.0) == 2000.0
    assert drain.rate(80, 4000.0, 0.5) == 8000.0


def test_time_that_goes_back_does_no_harm() -> None:
    drain = Drain()
    now = busy(drain, 5.0, 1000)
    drain.observe(True, now - 1.0)
    assert rate(drain) == pytest.approx(1000, rel=0.1)


# --- bounded by Little's law ---------------------------------------------------------------------


def test_what_an_empty_mesh_takes_in_is_not_what_leaves_the_queue_from_then_on() -> None:
    """Of 20 slots each is taken at once, for ten seconds: from the second second on nothing leaves."""
    drain = Drain()
    drain.left(1000, 0.0)
    drain.stayed(10.0)
    drain.observe(True, 0.0)
    for step in range(20):
        drain.left(1000, step * 0.1)
    drain.observe(True, 2.0)
    assert drain.rate(20, 10_000.0, 1.0) == pytest.approx(2000), "20 at once, each for ten seconds"


def test_the_works_that_run_now_bound_it_not_the_slots() -> None:
    """Blocks may be what is scarce, or an executor has gone: fewer run than there are slots for."""
    drain = Drain()
    drain.left(1000, 0.0)
    drain.stayed(4.0)
    now = busy(drain, 10.0, 5000)
    assert drain.rate(40, 0.0, 1.0) == pytest.approx(5000, rel=0.1), "in the bounds of what 40 works explain"
    before = drain.rate(40, 0.0, 1.0)
    assert drain.rate(4, 0.0, 1.0) <= before * 4 / 20
    busy(drain, 1.0, 5000, start=now)
    assert drain.rate(0, 0.0, 1.0) == pytest.approx(5000, rel=0.1), "no work runs: nothing is foreseen by them"


seen = st.tuples(st.booleans(), st.integers(1, 5000), st.floats(0.001, 3), st.floats(0.001, 60))


@given(st.lists(seen, min_size=1, max_size=30), st.integers(1, 500), st.floats(0, 1e5), st.floats(0, 1))
def test_no_more_leaves_than_those_that_run_make_room_for(
    seen: list[tuple[bool, int, float, float]], at_once: int, prefill_rate: float, share: float
) -> None:
    drain, now = Drain(), 0.0
    for stuck, tokens, seconds, stayed in seen:
        now += seconds
        drain.left(tokens, now)
        drain.observe(stuck, now)
        drain.stayed(stayed)
    found = drain.rate(at_once, prefill_rate, share)
    assert found == drain.rate(at_once, prefill_rate, share), "to ask changes nothing"
    drain.observe(False, now)
    assert 0 <= found <= drain.rate(at_once, 0.0, share), "which is by Little's law alone, while nobody waits"


# --- what passes ---------------------------------------------------------------------------------


def test_a_flow_is_what_passes_per_second_that_counts() -> None:
    flow = Flow()
    flow.observe(True, 100.0)
    for step in range(1, 21):
        flow.add(50, 100 + step * 0.1)
    assert flow.amount / flow.seconds == pytest.approx(500, rel=0.15)
    assert flow.seconds == pytest.approx(2.0, rel=0.15), "what is older counts a little less"


def test_time_that_does_not_count_and_what_passes_in_it_are_left_out() -> None:
    flow = Flow()
    flow.add(1_000_000, 0.0)
    assert (flow.amount, flow.seconds) == (0.0, 0.0)
    flow.observe(True, 0.0)
    flow.add(300, 1.0)
    flow.observe(False, 1.0)
    assert flow.amount / flow.seconds == pytest.approx(300)
    flow.add(1_000_000, 3.0)
    flow.observe(True, 3.0)
    assert flow.amount / flow.seconds == pytest.approx(300), "it has become less certain, and not another one"
    assert flow.seconds == pytest.approx(0.5 ** (2 / HALF_LIFE_S))


def test_a_flow_forgets_by_half() -> None:
    flow = Flow()
    flow.observe(True, 0.0)
    flow.add(800, 0.0)
    flow.observe(True, HALF_LIFE_S)
    assert flow.amount == pytest.approx(400)
    flow.observe(False, 3 * HALF_LIFE_S)
    flow.observe(False, 9 * HALF_LIFE_S)
    assert flow.amount == pytest.approx(800 / 2**9)
