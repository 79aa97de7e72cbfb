"""When a request is slow, and how many may be sent twice."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.router.hedge import BURST, HALF_S, MIN_TIMES, WIDTH, FirstTokens, Hedging
from services.router.policy import Hedge


@given(st.lists(st.floats(0.001, 600.0), min_size=MIN_TIMES, max_size=300), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_a_quantile_is_as_exact_as_its_bins(times: list[float], share: float) -> None:
    seen = FirstTokens()
    for time in times:
        seen.add(time, 0.0)
    ordered = sorted(times)
    found = seen.quantile(share, 0.0)
    assert found is not None
    below = sum(time <= found for time in ordered)
    assert below >= share * len(ordered) - 1e-9
    exact = next(time for rank, time in enumerate(ordered, 1) if rank >= share * len(ordered))
    assert found <= exact * (1 + WIDTH) ** 2


def test_with_few_times_there_is_no_quantile() -> None:
    seen = FirstTokens()
    for _ in range(MIN_TIMES - 1):
        seen.add(0.1, 0.0)
    assert seen.quantile(0.5, 0.0) is None
    seen.add(0.1, 0.0)
    assert seen.quantile(0.5, 0.0) == pytest.approx(0.1, rel=WIDTH)


def test_old_times_are_forgotten() -> None:
    seen = FirstTokens()
    for _ in range(100):
        seen.add(5.0, 0.0)
    for _ in range(100):
        seen.add(0.1, HALF_S)
    assert seen.quantile(0.95, HALF_S) == pytest.approx(5.0, rel=WIDTH)
    assert seen.quantile(0.95, 2 * HALF_S) == pytest.approx(0.1, rel=WIDTH)
    assert seen.quantile(0.95, 4 * HALF_S) is None


def test_times_beyond_all_measure_are_the_longest() -> None:
    seen = FirstTokens()
    for time in (0.0, 1e9) * 20:
        seen.add(time, 0.0)
    low, high = seen.quantile(0.1, 0.0), seen.quantile(0.9, 0.0)
    assert low == pytest.approx(0.001, rel=2 * WIDTH)
    assert high == pytest.approx(600.0, rel=2 * WIDTH)


@given(st.lists(st.booleans(), max_size=600))
def test_copies_stay_within_their_share(asks: list[bool]) -> None:
    """Whatever the order of requests and wishes for a copy."""
    rule, hedging, requests, copies = Hedge(max_share=0.05), Hedging(), 0, 0
    for ask in asks:
        if ask:
            requests += 1
            hedging.asked(rule, 0.0)
        elif hedging.spend():
            copies += 1
        assert copies <= 0.05 * requests + 1e-6


def test_a_quiet_time_saves_up_no_more_than_a_burst() -> None:
    rule, hedging = Hedge(max_share=1.0), Hedging()
    for _ in range(1000):
        hedging.asked(rule, 0.0)
    assert sum(hedging.spend() for _ in range(1000)) == BURST


def test_the_time_after_which_a_copy_goes_out_follows_the_route() -> None:
    rule, hedging = Hedge(quantile=0.9), Hedging()
    assert hedging.asked(rule, 0.0) is None
    for _ in range(50):
        hedging.answered(0.2, 0.5)
    assert hedging.asked(rule, 0.5) is None, "it is looked at once a second"
    assert hedging.asked(rule, 1.0) == pytest.approx(0.2, rel=WIDTH)
