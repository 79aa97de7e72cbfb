"""Quantiles of the answers' lengths, against the lengths themselves."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.batcher import lengths as lengths_module
from services.batcher.lengths import ERROR, HALF_LIFE, LEAST_SAMPLES, MOST_TOKENS, Lengths

LIMIT = 1 << 21


def filled(answers: list[int], tenant: str = "t", model: str = "m") -> Lengths:
    """All of one tenant, none cut."""
    lengths = Lengths()
    for tokens in answers:
        lengths.seen(tenant, model, tokens)
    return lengths


def weighted_quantile(answers: list[int], quantile: float) -> int:
    """The exact one, with the weights of forgetting."""
    weights = 2.0 ** (np.arange(len(answers)) / HALF_LIFE)
    order = np.argsort(answers, kind="stable")
    shares = np.cumsum(weights[order]) / weights.sum()
    return answers[int(order[np.searchsorted(shares, quantile - 1e-9)])]


@settings(deadline=None, max_examples=80)
@given(
    st.lists(st.integers(1, MOST_TOKENS), min_size=LEAST_SAMPLES, max_size=200),
    st.sampled_from([0.05, 0.25, 0.5, 0.9, 0.95, 0.99]),
)
def test_a_quantile_is_within_the_error(answers: list[int], quantile: float) -> None:
    exact = weighted_quantile(answers, quantile)
    assert abs(filled(answers).expected("t", "m", LIMIT, quantile) - exact) <= ERROR * exact + 0.5


def test_what_is_remembered_between_answers_is_close() -> None:
    """A quantile may be as old as 16 answers."""
    chance = np.random.default_rng(3)
    answers = [int(tokens) for tokens in chance.lognormal(5, 1, 3000) + 1]
    lengths = Lengths()
    for count, tokens in enumerate(answers, 1):
        lengths.seen("t", "m", tokens)
        now = lengths.expected("t", "m", LIMIT, 0.5)
        if count >= 200:
            assert now == pytest.approx(weighted_quantile(answers[:count], 0.5), rel=0.13)


def test_what_is_not_known_is_max_tokens() -> None:
    lengths = filled([10] * (LEAST_SAMPLES - 1))
    assert lengths.expected("t", "m", 500, 0.5) == 500
    assert lengths.expected("t", "other", 500, 0.5) == 500
    assert lengths.expected("t", "m", 0, 0.5) == 1
    lengths.seen("t", "m", 10)
    assert lengths.expected("t", "m", 500, 0.5) == 10
    assert lengths.expected("t", "other", 500, 0.5) == 500


def test_never_above_max_tokens_and_at_least_one() -> None:
    lengths = filled([1000] * 50)
    assert lengths.expected("t", "m", 64, 0.5) == 64
    assert filled([1] * 50).expected("t", "m", 64, 0.01) == 1
    assert filled([10 * MOST_TOKENS] * 50).expected("t", "m", 1 << 40, 0.5) == pytest.approx(MOST_TOKENS, rel=0.06)


def test_answers_without_a_token_do_not_count() -> None:
    lengths = filled([0] * 100)
    assert (len(lengths), lengths.expected("t", "m", 99, 0.5)) == (0, 99)


def test_a_tenant_that_is_new_has_the_model_s_lengths() -> None:
    lengths = filled([100] * 40)
    assert lengths.expected("new", "m", 4096, 0.5) == pytest.approx(100, rel=ERROR)
    for _ in range(LEAST_SAMPLES):
        lengths.seen("new", "m", 1000)
    assert lengths.expected("new", "m", 4096, 0.5) == pytest.approx(1000, rel=ERROR)
    assert lengths.expected("t", "m", 4096, 0.5) == pytest.approx(100, rel=ERROR)


def test_old_answers_lose_their_weight() -> None:
    lengths = filled([100] * 5000 + [1000] * HALF_LIFE)
    assert lengths.expected("t", "m", 4096, 0.45) == pytest.approx(100, rel=ERROR), "half of the weight is new"
    assert lengths.expected("t", "m", 4096, 0.55) == pytest.approx(1000, rel=ERROR)


def test_weights_do_not_overflow() -> None:
    """The weight of a sample grows; scaled down, all stays as it was."""
    lengths = filled([50] * 45_000 + [500] * HALF_LIFE)
    assert lengths.expected("t", "m", 4096, 0.45) == pytest.approx(50, rel=ERROR)
    assert lengths.expected("t", "m", 4096, 0.55) == pytest.approx(500, rel=ERROR)


def test_answers_that_were_cut_are_not_short_ones() -> None:
    """True lengths are geometric with mean 200; every other caller gives 100 tokens only."""
    chance = np.random.default_rng(5)
    true = chance.geometric(1 / 200, 4000)
    lengths = Lengths()
    for count, tokens in enumerate(true.tolist()):
        most = 100 if count % 2 else 4096
        lengths.seen("t", "m", min(tokens, most), cut=tokens > most)
    for quantile in (0.25, 0.5, 0.75, 0.9):
        exact = float(np.log(1 - quantile) / np.log(1 - 1 / 200))
        assert lengths.expected("t", "m", 8192, quantile) == pytest.approx(exact, rel=0.15)


def test_a_quantile_beyond_all_that_ended_is_not_known() -> None:
    lengths = Lengths()
    for count in range(100):
        lengths.seen("t", "m", 16 if count % 4 else 8, cut=bool(count % 4))
    assert lengths.expected("t", "m", 2000, 0.2) == 8
    assert lengths.expected("t", "m", 2000, 0.5) == 2000, "three of four were cut at 16"


def test_pairs_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lengths_module, "MOST_PAIRS", 4)
    lengths = Lengths()
    for tenant, tokens in (("a", 10), ("b", 100), ("c", 1000)):
        for _ in range(40):
            lengths.seen(tenant, "m", tokens)
    assert len(lengths) == 4, "three tenants and their model"
    assert lengths.expected("a", "m", 4096, 0.5) == 10
    lengths.seen("d", "m", 7)
    assert len(lengths) == 4
    assert lengths.expected("a", "m", 4096, 0.5) == 10, "used a moment ago; b was used least recently"
    model = lengths.expected("b", "m", 4096, 0.2)
    assert model == 10, "b's own are gone; the model's stay as long as any of its tenants"
