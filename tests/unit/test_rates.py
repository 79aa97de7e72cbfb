"""What is measured of a copy's speed, against engines whose speed is known."""

import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.batcher.rates import HALF_LIFE_S, Rates


def warm(rates: Rates, now: float = 0.0) -> float:
    """Has the first work of all behind it; returns the time. Whatever it said of the speed does not count."""
    rates.placed(-1, 100, now)
    rates.first_token(-1, now + 1.0)
    rates.ended(-1, now + 1.0, 1)
    assert (rates.prefill_rate, rates.token_s) == (0.0, 0.0)
    return now + 1.0


def in_turn(rates: Rates, arrivals: Sequence[tuple[float, int]], rate: float, now: float) -> float:
    """An engine that computes one prompt after the other; returns when it has done the last.

    Args:
        arrivals: Seconds after the one before, and tokens.
    """
    events = []
    at = free = now
    for key, (pause, tokens) in enumerate(arrivals):
        at += pause
        free = max(free, at) + tokens / rate
        events += [(at, key, tokens), (free, key, 0)]
    for when, key, tokens in sorted(events):
        if tokens:
            rates.placed(key, tokens, when)
        else:
            rates.first_token(key, when)
            rates.ended(key, when, 1)
    return free


def in_steps(
    rates: Rates, arrivals: Sequence[tuple[float, int]], step_tokens: int, rate: float, slots: int, answer: int
) -> None:
    """A batch in steps: a token of each running work, the rest for prompts (chunked prefill). A step takes the time
    of its tokens, and no less than that of a quarter of them: an empty one still reads the weights."""
    waiting = list(enumerate(arrivals))
    left: dict[int, int] = {}
    made: dict[int, int] = {}
    now = next_at = 1.0
    while waiting or left or made:
        while waiting and next_at + waiting[0][1][0] <= now and len(left) + len(made) < slots:
            key, (pause, tokens) = waiting.pop(0)
            next_at += pause
            left[key] = tokens
            rates.placed(key, tokens, now)
        if not left and not made:
            now = next_at + waiting[0][1][0]
            continue
        spent, budget = len(made), step_tokens - len(made)
        decoding, done = list(made), []
        for key in list(left):
            count = min(budget, left[key])
            budget, spent, left[key] = budget - count, spent + count, left[key] - count
            if not left[key]:
                done.append(key)
        now += max(spent, step_tokens / 4) / rate
        for key in done:
            del left[key]
            made[key] = 1
            rates.first_token(key, now)
        for key in decoding:
            made[key] += 1
            if made[key] >= answer:
                del made[key]
                rates.ended(key, now, answer)


arrivals = st.lists(
    st.tuples(st.floats(0.0, 2.0), st.integers(1, 20_000)), min_size=5, max_size=60
)  # seconds after the one before, tokens


@settings(deadline=None, max_examples=60)
@given(arrivals, st.floats(200.0, 100_000.0))
def test_the_rate_of_an_engine_that_computes_in_turn(arrivals: list[tuple[float, int]], rate: float) -> None:
    rates = Rates()
    in_turn(rates, arrivals, rate, warm(rates))
    assert rates.prefill_rate == pytest.approx(rate, rel=0.15)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 1 << 32), st.floats(2_000.0, 60_000.0), st.sampled_from([512, 2048, 8192]))
def test_the_rate_of_an_engine_in_steps(seed: int, rate: float, step_tokens: int) -> None:
    """Backlogged, so that its steps are full: then it computes `rate` tokens a second, prompts and answers."""
    rates, chance = Rates(), random.Random(seed)
    arrivals = [(0.0, chance.randint(step_tokens // 4, step_tokens * 8)) for _ in range(200)]
    warm(rates)
    in_steps(rates, arrivals, step_tokens, rate, slots=32, answer=20)
    assert rates.prefill_rate == pytest.approx(rate, rel=0.15)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 1 << 32), st.floats(0.001, 0.2))
def test_the_pace_of_answers(seed: int, token_s: float) -> None:
    rates, chance, now = Rates(), random.Random(seed), 100.0
    ends = []
    now = warm(rates, now)
    for key in range(60):
        now += chance.expovariate(2.0)
        tokens = 1 + int(chance.expovariate(1 / 50))
        ends.append((now, 0, key, tokens))
        ends.append((now + (tokens - 1) * token_s * chance.uniform(0.8, 1.2), 1, key, tokens))
    for when, end, key, tokens in sorted(ends):
        if end:
            rates.ended(key, when, tokens)
        else:
            rates.placed(key, 10, when - 1e-4)
            rates.first_token(key, when)
    assert rates.token_s == pytest.approx(token_s, rel=0.15)


def test_pauses_do_not_count() -> None:
    rates = Rates()
    now = in_turn(rates, [(3600.0, 5000)] * 20, 10_000.0, warm(rates))
    assert rates.prefill_rate == pytest.approx(10_000.0)
    rates.placed(99, 5000, now + 86_400)
    rates.first_token(99, now + 86_400.5)
    assert rates.prefill_rate == pytest.approx(10_000.0)


def test_many_prompts_in_one_step_are_one_stretch() -> None:
    rates = Rates()
    now = warm(rates)
    for key in range(8):
        rates.placed(key, 1000, now)
    for key in range(8):
        rates.first_token(key, now + 0.4 + key * 1e-6)  # of one frame
    assert rates.prefill_rate == pytest.approx(20_000.0, rel=1e-3)


def test_a_copy_that_is_never_without_a_prompt_is_measured() -> None:
    rates, now = Rates(), 0.0
    rates.placed(0, 1000, now)
    for key in range(1, 40):
        rates.placed(key, 1000, now)
        now += 0.25
        rates.first_token(key - 1, now)
    assert rates.prefill_rate == pytest.approx(4000.0)


def test_small_prompts_do_not_make_a_copy_slow() -> None:
    """Nine of ten prompts are short, and take as long as a step; the long ones show what it can do."""
    rates = Rates()
    now = warm(rates)
    for key in range(200):
        tokens = 4000 if key % 10 == 0 else 20
        rates.placed(key, tokens, now)
        rates.first_token(key, now + max(tokens / 40_000, 0.02))
        now += 1.0
    assert rates.prefill_rate == pytest.approx(40_000, rel=0.1)


def test_a_cold_start_is_forgotten_at_once() -> None:
    rates, now = Rates(), 0.0
    for key in range(8):
        rates.placed(key, 1000, now)
    now += 30.0  # kernels are compiled, graphs captured
    for key in range(8):
        rates.first_token(key, now)
    assert rates.prefill_rate == 0.0, "nothing is known, so nothing is refused"
    for key in range(8):
        rates.ended(key, now + 10.0, 11)
    assert rates.token_s == pytest.approx(1.0), "better than nothing"
    now = in_turn(rates, [(1.0, 1000)] * 4, 5_000.0, now + 10)
    assert rates.prefill_rate == pytest.approx(5_000.0)
    rates.placed(100, 10, now)
    rates.first_token(100, now + 0.1)
    rates.ended(100, now + 1.1, 101)
    assert rates.token_s == pytest.approx(0.01)


def test_a_change_of_speed_is_followed() -> None:
    rates = Rates()
    now = in_turn(rates, [(0.5, 3000)] * 100, 10_000.0, warm(rates))
    count = int(2 * HALF_LIFE_S)  # of a second each: two half-lives
    in_turn(rates, [(2.0, 2500)] * count, 2_500.0, now)
    assert 2_500 < rates.prefill_rate <= 0.25 * 10_000 + 0.75 * 2_500


def test_what_was_lost_or_cancelled_was_not_computed() -> None:
    rates = Rates()
    now = in_turn(rates, [(0.5, 3000)] * 10, 10_000.0, warm(rates))
    for key in range(100, 120):
        rates.placed(key, 50_000, now)
    now += 60.0  # it hung
    for key in range(100, 120):
        rates.ended(key, now, 0)
    assert rates.prefill_rate == pytest.approx(10_000.0)
    rates.placed(200, 3000, now)
    rates.placed(201, 100_000, now + 0.1)
    rates.ended(201, now + 0.2, 0)  # it stood behind, and has cost nothing
    rates.first_token(200, now + 0.3)
    assert rates.prefill_rate == pytest.approx(10_000.0)
    rates.placed(300, 97_000, now + 1)
    rates.placed(301, 3000, now + 1)
    rates.ended(300, now + 6, 0)  # it stood in front, and has cost 5 s
    rates.first_token(301, now + 6.15)
    assert rates.prefill_rate == pytest.approx(10_000.0, rel=0.02)


def test_answers_that_do_not_count() -> None:
    rates = Rates()
    now = warm(rates)
    for key, tokens in enumerate((0, 1)):  # lost; a single token says nothing of the pace
        rates.placed(key, 10, now)
        rates.first_token(key, now + 1)
        rates.ended(key, now + 500, tokens)
    assert rates.token_s == 0.0


def test_strangers_are_ignored() -> None:
    rates = Rates()
    rates.first_token(1, 1.0)
    rates.ended(1, 2.0, 50)
    now = warm(rates, 10.0)
    rates.placed(2, 1000, now)
    rates.first_token(2, now + 0.1)
    rates.first_token(2, now + 5.0)
    rates.ended(2, now + 1.1, 11)
    rates.ended(2, now + 9.0, 500)
    assert rates.prefill_rate == pytest.approx(10_000.0)
    assert rates.token_s == pytest.approx(0.1)
