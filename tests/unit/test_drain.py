"""How fast a queue is worked off, measured and foreseen."""

import pytest

from services.batcher.drain import HALF_LIFE_S, PRIOR_S, Drain


def busy(drain: Drain, seconds: float, tokens_s: float, *, start: float = 0.0) -> float:
    """Works wait, and prompts go to executors at this rate; returns the time at the end."""
    steps = round(seconds / 0.1)
    for step in range(steps):
        drain.observe(True, start + step * 0.1)
        drain.left(round(tokens_s * 0.1), start + step * 0.1)
    drain.observe(True, start + seconds)
    return start + seconds


def test_while_works_wait_it_is_what_leaves() -> None:
    drain = Drain()
    busy(drain, 20.0, 3000)
    assert drain.rate(9999.0) == pytest.approx(3000, rel=0.05)


def test_nothing_is_known_before_enough_was_seen() -> None:
    drain = Drain()
    drain.observe(True, 0.0)
    drain.left(100_000, 0.001)
    drain.observe(True, 0.002)
    assert drain.forecast(8, 0.0, 1.0) == 0.0
    assert drain.rate(0.0) == 0.0
    busy(drain, 1.5 * PRIOR_S, 1000, start=0.002)
    assert drain.rate(0.0) > 1000


def test_the_forecast_is_what_it_starts_from_and_leaves_behind() -> None:
    drain = Drain()
    drain.observe(True, 0.0)
    assert drain.rate(5000.0) == 5000.0
    busy(drain, PRIOR_S / 2, 1000)
    assert drain.rate(5000.0) == pytest.approx(3000, rel=0.1)
    busy(drain, PRIOR_S / 2 + 0.1, 1000, start=PRIOR_S / 2)
    assert drain.rate(5000.0) == pytest.approx(1000, rel=0.1)


def test_what_leaves_while_none_waits_says_only_what_is_asked_for() -> None:
    drain = Drain()
    now = busy(drain, 10.0, 3000)
    drain.observe(False, now)
    assert not drain.busy
    assert drain.rate(8000.0) == 8000.0
    for step in range(20):
        drain.left(1, now + step * 0.1)
    drain.observe(True, now + 2.0)
    assert drain.rate(8000.0) == pytest.approx(3000, rel=0.1), "what was measured before, not the light load"


def test_what_was_measured_long_ago_gives_way_to_the_forecast() -> None:
    drain = Drain()
    now = busy(drain, 10.0, 3000)
    drain.observe(False, now)
    drain.observe(True, now + 20 * HALF_LIFE_S)
    assert drain.rate(8000.0) == pytest.approx(8000, rel=0.01)


def test_a_queue_that_stands_still_is_seen_to() -> None:
    drain = Drain()
    now = busy(drain, 10.0, 3000)
    busy(drain, 4 * HALF_LIFE_S, 0, start=now)
    assert drain.rate(8000.0) < 300


def test_it_is_foreseen_by_slots_and_stay_but_not_beyond_the_prefill_rate() -> None:
    drain = Drain()
    drain.left(1000, 0.0)
    assert drain.forecast(8, 4000.0, 1.0) == 4000.0, "nothing has ended yet"
    assert drain.forecast(8, 4000.0, 0.5) == 8000.0, "half of each prompt is remembered"
    drain.stayed(4.0)
    assert drain.forecast(8, 4000.0, 0.5) == 2000.0, "eight at once, each for four seconds"
    assert drain.forecast(8, 0.0, 1.0) == 2000.0
    assert drain.forecast(80, 4000.0, 0.5) == 8000.0


def test_time_that_goes_back_does_no_harm() -> None:
    drain = Drain()
    now = busy(drain, 5.0, 1000)
    drain.observe(True, now - 1.0)
    assert drain.rate(0.0) == pytest.approx(1000, rel=0.1)
