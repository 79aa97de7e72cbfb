"""What is promised to a work that comes now, and what is refused."""

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.batcher.promise import broken, due, estimate, retry_after, token_limit

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
