"""What is promised to a work that comes now, and what is refused."""

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from services.batcher.promise import (
    ACCEPTED,
    STANDING,
    Estimate,
    broken,
    due,
    estimate,
    measured,
    retry_after,
    token_limit,
    unkept,
)

rate = st.one_of(st.just(0.0), st.floats(1.0, 1e6))
tokens = st.integers(0, 1 << 20)


def test_the_parts_of_an_estimate() -> None:
    promised = estimate(48_000, 16_384, 4096, 40, 16_500.0, 15_360.0, 0.0128)
    assert promised is not None
    assert promised.first_token_s == pytest.approx(48_000 / 16_500 + 12_288 / 15_360)
    assert promised.end_s == pytest.approx(promised.first_token_s + 39 * 0.0128)
    assert broken(promised, 3.0) == (
        "needs about 4.2 s (2.9 s behind 48,000 prompt tokens, 0.8 s for its own 12,288, 0.5 s for 40 tokens) "
        "and has 3.0 s"
    )
    assert broken(promised, 4.3) is None


def test_figures_of_all_sizes() -> None:
    promised = estimate(0, 1, 0, 1000, 100.0, 50.0, 0.5)
    assert broken(promised, -1.0) == (
        "needs about 500 s (0 s behind 0 prompt tokens, 20.0 ms for its own 1, 500 s for 1,000 tokens) and has 0 s"
    )


def test_nothing_measured_nothing_refused() -> None:
    assert estimate(1_000_000, 1_000_000, 0, 1_000_000, 0.0, 0.0, 0.0) is None
    assert broken(None, -5.0) is None


def test_what_was_not_measured_counts_as_nothing() -> None:
    promised = estimate(1000, 500, 0, 100, 1000.0, 0.0, 0.0)
    assert promised is not None
    assert (promised.first_token_s, promised.end_s) == (1.0, 1.0)
    promised = estimate(1000, 500, 0, 101, 0.0, 0.0, 0.02)
    assert promised is not None
    assert promised.first_token_s == 0.0
    assert promised.end_s == pytest.approx(2.0)


def test_a_prompt_that_is_remembered_whole_still_has_its_last_token_computed() -> None:
    promised = estimate(0, 4096, 4096, 1, 100.0, 100.0, 0.0)
    assert promised is not None
    assert promised.end_s == pytest.approx(0.01)


@given(tokens, tokens, tokens, tokens, rate, rate, rate, st.floats(-10.0, 1e7))
def test_more_to_do_takes_longer(
    ahead: int, prompt: int, matched: int, output: int, pool: float, seat: float, pace: float, left_s: float
) -> None:
    token_s = 1 / pace if pace else 0.0
    less = estimate(ahead, prompt, matched, output, pool, seat, token_s)
    more = estimate(ahead + 100, prompt + 100, matched, output + 100, pool, seat, token_s)
    assert (less is None) == (more is None) == (pool == seat == pace == 0)
    if less is not None and more is not None:
        assert 0 <= less.first_token_s <= less.end_s
        assert less.first_token_s <= more.first_token_s
        assert less.end_s <= more.end_s
        if more.end_s <= left_s:
            assert broken(less, left_s) is None
        assert (broken(less, left_s) is None) == (less.end_s <= left_s)


# --- what a tenant's own queue says --------------------------------------------------------------


def behind(ahead: int, prompt: int = 1000) -> Estimate:
    """In a pool that works 1,000 tokens a second off, and computes as many."""
    found = estimate(ahead, prompt, 0, 1, 1000.0, 1000.0, 0.0)
    assert found is not None
    return found


def test_how_slowly_its_own_queue_moves_counts_when_it_is_more() -> None:
    counted = behind(3000)
    slower = measured(counted, 500, 100.0)
    assert (slower.ahead_s, slower.ahead_tokens) == (5.0, 500)
    assert slower.first_token_s == pytest.approx(6.0), "its own prompt is computed as before"
    assert "5.0 s behind 500 prompt tokens" in slower.reason
    assert measured(counted, 500, 1000.0) == counted, "others are before it, whom nobody has served yet"


def test_however_slowly_it_moves_a_turn_comes_within_a_bound() -> None:
    counted = behind(3000)
    assert measured(counted, 500, 100.0, 4.0).ahead_s == 4.0
    assert measured(counted, 500, 100.0, 2.0) == counted
    assert measured(counted, 500, 0.0, 30.0).ahead_s == 30.0, "it stands still"
    assert measured(counted, 500, 0.0) == counted, "none has left yet: nobody is refused for what is not known"
    assert measured(counted, 0, 0.0, 30.0) == counted, "nothing of its own is in front of it"


@given(tokens, st.integers(0, 1 << 20), st.floats(0, 1e6), st.floats(0, 1e6))
def test_what_was_measured_makes_no_estimate_shorter(ahead: int, own: int, passing: float, most_s: float) -> None:
    counted = behind(ahead)
    found = measured(counted, own, passing, most_s)
    assert counted.ahead_s <= found.ahead_s <= max(counted.ahead_s, most_s)
    assert replace(found, ahead_s=counted.ahead_s, ahead_tokens=ahead) == counted


def test_in_a_queue_that_stands_less_is_accepted_than_of_a_burst() -> None:
    for ahead in (0, 3900, 4100, 6400, 6600):
        burst = behind(ahead)
        assert (unkept(burst, 10.0) is None) == (ahead + 1000 <= ACCEPTED * 10_000)
        assert (unkept(replace(burst, standing=True), 10.0) is None) == (ahead <= STANDING * 10_000)
    assert unkept(None, 0.0) is None, "nothing was measured"


def test_a_long_prompt_may_join_a_queue_that_stands_as_long_as_its_target_allows() -> None:
    """Its own tokens are not what stands."""
    assert unkept(replace(behind(3900, prompt=3000), standing=True), 10.0) is None
    assert unkept(replace(behind(3900, prompt=4000), standing=True), 10.0) is not None


def test_why_a_promise_would_not_be_kept() -> None:
    assert unkept(behind(7000), 10.0) == (
        "the first token is due within 10 s, so works are accepted that need 7.5 s for it; one that comes now "
        "needs about 8.0 s (7.0 s behind 7,000 prompt tokens, 1.0 s for its own 1,000, 0 s for 1 tokens)"
    )
    assert unkept(replace(behind(5000), standing=True), 10.0) == (
        "the first token is due within 10 s, so works are accepted that wait for 4.0 s, when their tenant has had "
        "others waiting for a while; one that comes now "
        "needs about 6.0 s (5.0 s behind 5,000 prompt tokens, 1.0 s for its own 1,000, 0 s for 1 tokens)"
    )


# --- bounds of the queue, and when to come back --------------------------------------------------


def test_the_bound_of_the_queue() -> None:
    assert token_limit(2.0, 16_000.0, 4_000_000) == 32_000
    assert token_limit(2.0, 16_000.0, 20_000) == 20_000
    assert token_limit(2.0, 0.0, 4_000_000) == 4_000_000, "nothing measured"
    assert token_limit(0.0, 16_000.0, 4_000_000) == 4_000_000, "no target"


def test_when_the_first_token_is_due() -> None:
    assert due(100.0, 2.0, 5.0, 1000, 10_000.0) == 102.0
    assert due(100.0, 2.0, 5.0, 100_000, 10_000.0) == 150.0, "a long prompt has longer"
    assert due(100.0, 2.0, 5.0, 100_000, 0.0) == 102.0
    assert due(100.0, inf, 5.0, 1000, 10_000.0) == inf


@given(tokens, tokens, rate)
def test_when_to_come_back(waiting: int, limit: int, pool: float) -> None:
    assert 0.05 <= retry_after(waiting, limit, pool) <= 30.0


def test_a_refused_caller_comes_back_when_there_is_room() -> None:
    assert retry_after(33_000, 32_000, 16_000.0) == pytest.approx(17 / 16)
    assert retry_after(33_000, 32_000, 0.0) == 1.0
    assert retry_after(4_000_000, 32_000, 100.0) == 30.0
    assert retry_after(100, 32_000, 100.0) == 0.05
