"""The figures of a simulation, against cases computed by hand."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.catalogue.options import Simulation
from libs.lane.work import Tier
from services.simulator.fairness_index import Use, covered, edges, jain, judge, served
from services.simulator.measure import (
    Slo,
    Spread,
    Verdict,
    idle_first_token_s,
    measure,
    prefill_s,
    uses,
    verdict,
    window,
)
from services.simulator.values import OK, Arrival, Result, Served, Setup

STEP = Simulation(step_base_us=1000, prefill_token_us=100, prefill_context_us=1000)
SETUP = Setup(executors=1, step=STEP, slots=4, blocks=100, block_tokens=16, step_tokens=100)


def request(at: float, **fields: object) -> Served:
    """An answer of 11 tokens to 100, that took 0.5 s to its first and 10 ms between them; fields change that."""
    mine = {key: fields.pop(key) for key in ("tenant", "tier", "weight", "prompt_tokens") if key in fields}
    arrival = Arrival(at, "a", Tier.INTERACTIVE, 100, 11, (), 16)
    usual = Served(
        arrival=replace(arrival, **mine),  # type: ignore[arg-type]
        outcome=OK,
        queued_s=0.1,
        first_token_s=0.5,
        end_s=0.6,
        cached_tokens=0,
        output_tokens=11,
        executor="executor-000",
        worst_gap_s=0.02,
        mean_gap_s=0.01,
        pushes=0,
    )
    return replace(usual, **fields)  # type: ignore[arg-type]


def refusal(at: float, reason: str = "OVERLOADED", **fields: object) -> Served:
    """One that was not answered."""
    return request(at, outcome=reason, first_token_s=None, output_tokens=0, mean_gap_s=0.0, worst_gap_s=0.0, **fields)


def result(*found: Served) -> Result:
    """Of a simulation."""
    return Result(found, evictions=5, engine_preemptions=2, steps=9, end_s=100.0, wall_s=0.1, samples=())


def test_percentiles_are_times_that_some_request_had() -> None:
    assert Spread.of([float(i) for i in range(1, 101)]) == Spread(50.0, 90.0, 99.0)
    assert Spread.of([1.0, 9.0]) == Spread(1.0, 9.0, 9.0)
    assert Spread.of([]) == Spread(None, None, None)


def test_an_idle_executor_computes_a_prompt_in_chunks() -> None:
    # 100 tokens: 1 ms + 10 ms + (0 + 1 + … + 99) tokens in front x 1 µs; 50 more: behind 100.
    assert prefill_s(STEP, 100, 100) == pytest.approx(0.011 + 4950e-6)
    assert prefill_s(STEP, 150, 100) == pytest.approx(0.011 + 4950e-6 + 0.006 + (50 * 100 + 1225) * 1e-6)


def test_the_slo_bounds_first_token_and_mean_gap() -> None:
    slo, unloaded = Slo(first_token_s=2.0, stretch=5.0, gap_s=0.05), idle_first_token_s(SETUP)
    assert verdict(request(0, first_token_s=2.0, mean_gap_s=0.05), slo, unloaded) is Verdict.GOOD
    assert verdict(request(0, first_token_s=2.01), slo, unloaded) is Verdict.LATE
    assert verdict(request(0, mean_gap_s=0.051), slo, unloaded) is Verdict.SLOW
    assert verdict(refusal(0), slo, unloaded) is Verdict.UNANSWERED
    assert verdict(request(0, outcome="DEADLINE_PASSED"), slo, unloaded) is Verdict.UNANSWERED


def test_a_long_prompt_may_take_its_stretch() -> None:
    slo, unloaded = Slo(), idle_first_token_s(SETUP)
    alone = prefill_s(STEP, 10_000, 100)
    assert 5 * alone > 2.0
    assert verdict(request(0, prompt_tokens=10_000, first_token_s=5 * alone), slo, unloaded) is Verdict.GOOD
    assert verdict(request(0, prompt_tokens=10_000, first_token_s=5.1 * alone), slo, unloaded) is Verdict.LATE


def test_an_async_answer_has_to_be_whole_and_no_more() -> None:
    slo, unloaded = Slo(), idle_first_token_s(SETUP)
    assert verdict(request(0, tier=Tier.ASYNC, first_token_s=500.0, mean_gap_s=3.0), slo, unloaded) is Verdict.GOOD
    assert verdict(refusal(0, tier=Tier.ASYNC), slo, unloaded) is Verdict.UNANSWERED


def test_warm_up_and_cool_down_are_left_out() -> None:
    found = [request(float(at)) for at in range(101)]
    assert window(found) == (10.0, 95.0)
    said = measure(result(*found), SETUP, Slo())
    assert (said.start_s, said.end_s) == (10.0, 95.0)
    assert said.all.requests == 86  # 10, 11, … 95
    assert said.all.offered_per_s == pytest.approx(86 / 85)


def test_the_figures_of_a_small_simulation() -> None:
    found = [
        request(0.0),
        request(20.0, cached_tokens=40, pushes=2),
        request(30.0, first_token_s=3.0, end_s=3.1, queued_s=2.5),
        refusal(40.0),
        request(50.0, output_tokens=1, mean_gap_s=0.0, worst_gap_s=0.0),
        refusal(60.0, "DEADLINE_PASSED"),
        request(80.0, end_s=25.0, worst_gap_s=2.0),  # its end is no longer counted
        request(100.0),
    ]
    said = measure(result(*found), SETUP, Slo())
    group = said.all
    assert (said.start_s, said.end_s) == (10.0, 95.0)
    assert (group.requests, group.answered, group.good, group.late, group.slow) == (6, 4, 3, 1, 0)
    assert group.goodput_per_s == pytest.approx(3 / 85)
    assert group.good_share == 0.5
    assert group.first_token == Spread(0.5, 3.0, 3.0)
    assert group.gap == Spread(0.01, 0.01, 0.01)  # the answer of one token has no gap
    assert group.worst_gap == Spread(0.02, 2.0, 2.0)
    assert group.end_to_end == Spread(0.6, 25.0, 25.0)
    assert group.queued == Spread(0.1, 2.5, 2.5)
    assert group.waited.p90 == pytest.approx(3.0 - prefill_s(STEP, 100, 100))
    assert group.hit_rate == pytest.approx(40 / 400)
    assert group.refusals == {"DEADLINE_PASSED": 1, "OVERLOADED": 1}
    assert (group.pushed, group.pushes) == (1, 2)
    assert said.output_tokens_per_s == pytest.approx((11 + 11 + 1) / 85)
    assert said.prompt_tokens_per_s == pytest.approx(300 / 85)
    assert (said.evictions, said.engine_preemptions, said.steps) == (5, 2, 9)
    assert said.tiers == said.tenants == {}


def test_tiers_and_tenants_are_told_apart() -> None:
    found = [request(float(at), tenant="ab"[at % 2], tier=Tier(1 + at % 2)) for at in range(100)]
    found[50] = refusal(50.0)
    said = measure(result(*found), SETUP, Slo())
    assert said.tenants["a"].requests + said.tenants["b"].requests == said.all.requests
    assert (said.tenants["a"].answered, said.tenants["b"].answered) == (
        said.tenants["a"].requests - 1, said.tenants["b"].requests,
    )  # fmt: skip
    assert said.tiers["async"].requests == said.tenants["b"].requests


def test_nothing_and_one_request_can_be_measured() -> None:
    assert measure(result(), SETUP, Slo()).all.requests == 0
    one = measure(result(request(3.0)), SETUP, Slo()).all
    assert (one.requests, one.good, one.goodput_per_s) == (1, 1, 0.0)


def test_jains_index() -> None:
    assert jain([3.0, 3.0, 3.0]) == 1.0
    assert jain([1.0, 0.0]) == 0.5
    assert jain([1.0, 3.0]) == pytest.approx(16 / 20)
    assert jain([]) == jain([0.0, 0.0]) == 1.0


@given(st.lists(st.floats(0.001, 1e6), min_size=1, max_size=20), st.floats(0.01, 100))
def test_jains_index_is_bounded_and_has_no_unit(values: list[float], scale: float) -> None:
    index = jain(values)
    assert 1 / len(values) - 1e-9 <= index <= 1 + 1e-9
    assert jain([scale * value for value in values]) == pytest.approx(index)


def test_service_is_spread_over_its_time() -> None:
    borders = edges(0.0, 30.0, 10.0)
    assert borders.tolist() == [0, 10, 20, 30]
    stretches = np.array([[5.0, 25.0, 20.0], [12.0, 12.0, 7.0], [40.0, 50.0, 1.0]])
    assert served(stretches, borders).tolist() == pytest.approx([5, 17, 5])


def test_time_that_is_covered_twice_counts_once() -> None:
    borders = edges(0.0, 30.0, 10.0)
    stretches = np.array([[12.0, 18.0], [0.0, 5.0], [2.0, 6.0], [17.0, 40.0]])
    assert covered(stretches, borders).tolist() == pytest.approx([0.6, 0.8, 1.0])
    assert covered(np.empty((0, 2)), borders).tolist() == [0, 0, 0]


def test_only_backlogged_tenants_compete() -> None:
    """In the first window both wait and a is served three times as much; in the second only a waits."""
    waiting = {"a": np.array([[0.0, 20.0]]), "b": np.array([[0.0, 10.0]])}
    service = {"a": np.array([[0.0, 10.0, 30.0], [10.0, 20.0, 100.0]]), "b": np.array([[0.0, 10.0, 10.0]])}
    both = {name: Use(service[name], waiting[name]) for name in "ab"}
    said = judge(both, {"a": 1.0, "b": 1.0}, edges(0.0, 20.0, 10.0))
    assert said.windows == 1
    assert said.mean == said.backlogged == pytest.approx(40**2 / (2 * (30**2 + 10**2)))
    assert said.whole == pytest.approx(140**2 / (2 * (130**2 + 10**2)))
    weighted = judge(both, {"a": 3.0, "b": 1.0}, edges(0.0, 20.0, 10.0))
    assert weighted.mean == pytest.approx(1.0)


def test_without_competition_nothing_is_said_of_it() -> None:
    alone = {"a": Use(np.array([[0.0, 10.0, 5.0]]), np.array([[0.0, 10.0]]))}
    said = judge(alone, {"a": 1.0}, edges(0.0, 10.0, 10.0))
    assert (said.windows, said.mean, said.backlogged, said.whole) == (0, None, None, 1.0)


def test_what_tenants_use_follows_from_their_answers() -> None:
    idle = idle_first_token_s(SETUP)
    alone = prefill_s(STEP, 100, 100)
    found = uses([request(10.0, first_token_s=2.0 + alone, end_s=4.0), refusal(20.0, end_s=3.0)], idle)["a"]
    assert found.waiting.tolist() == [[10.0, pytest.approx(12.0)], [20.0, 23.0]]
    assert found.service.tolist() == [
        [pytest.approx(12.0), pytest.approx(12.0 + alone), 100.0],
        [pytest.approx(12.0 + alone), 14.0, 22.0],
    ]
