"""A whole mesh in virtual time: what must hold whatever the policy."""

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from libs.catalogue.options import Simulation
from libs.lane.work import Tier
from services.batcher.scheduling import Dispatch, SchedulingRules
from services.simulator.values import OK, Arrival, Result, Setup
from services.simulator.world import simulate

BLOCK = 64
TIMES = Simulation(
    step_base_us=1000, prefill_token_us=30, sequence_us=30, weights_us=6000, prefill_context_us=1, decode_context_us=50
)
SETUP = Setup(executors=4, step=TIMES, slots=16, blocks=400, block_tokens=BLOCK, step_tokens=512, max_tokens=400)


def load(seed: int, requests: int = 300, per_s: float = 20.0) -> list[Arrival]:
    """Conversations of several turns, in both tiers."""
    chance, at, found = random.Random(seed), 0.0, list[Arrival]()
    turns = dict[int, int]()
    for _ in range(requests):
        at += chance.expovariate(per_s)
        talk = chance.randrange(requests // 4)
        turns[talk] = turns.get(talk, 0) + chance.randint(1, 6)
        prompt = min(turns[talk], 60) * BLOCK + chance.randrange(BLOCK)
        hashes = tuple(talk * 1000 + index for index in range(-(-prompt // BLOCK)))
        tier = Tier.ASYNC if talk % 5 == 0 else Tier.INTERACTIVE
        found.append(Arrival(at, f"tenant-{talk % 3}", tier, prompt, chance.randint(1, 300), hashes, BLOCK))
    return found


def run(dispatch: Dispatch, coming: Sequence[Arrival], **changes: object) -> Result:
    """A simulation under a policy."""
    return simulate(replace(SETUP, scheduling=SchedulingRules(dispatch), **changes), coming)  # type: ignore[arg-type]


@pytest.mark.parametrize("dispatch", Dispatch)
def test_every_request_is_served_once_and_whole(dispatch: Dispatch) -> None:
    coming = load(1)
    result = run(dispatch, coming)
    assert [served.arrival for served in result.served] == coming
    for served in result.served:
        assert served.outcome == OK
        assert served.first_token_s is not None
        assert 0 <= served.queued_s <= served.first_token_s <= served.end_s
        assert served.output_tokens == served.arrival.output_tokens
        assert served.cached_tokens < served.arrival.prompt_tokens
        assert 0 <= served.mean_gap_s <= served.worst_gap_s or served.mean_gap_s == pytest.approx(served.worst_gap_s)
        assert served.executor.startswith("executor-")
    assert result.steps > 0
    assert result.end_s >= coming[-1].at
    assert sum(served.cached_tokens for served in result.served) > 0


@pytest.mark.parametrize("dispatch", [Dispatch.PROMISE, Dispatch.POWER_OF_TWO])
def test_the_same_seed_brings_the_same(dispatch: Dispatch) -> None:
    one, two = run(dispatch, load(2), seed=3), run(dispatch, load(2), seed=3)
    assert one.served == two.served
    assert one.samples == two.samples
    assert (one.steps, one.evictions, one.end_s) == (two.steps, two.evictions, two.end_s)


def test_reservations_keep_engines_from_running_out_and_early_binding_does_not() -> None:
    coming = load(3, requests=200, per_s=100.0)
    promise = run(Dispatch.PROMISE, coming, executors=2, blocks=100)
    early = run(Dispatch.ROUND_ROBIN, coming, executors=2, blocks=100)
    assert promise.engine_preemptions == 0
    assert early.engine_preemptions > 0
    assert max(sample.engine_waiting for sample in early.samples) > 0
    assert {served.outcome for served in early.served} == {OK}


def test_a_request_takes_a_step_of_its_own_and_the_way_there() -> None:
    arrival = Arrival(0.0, "t", Tier.INTERACTIVE, 100, 11, (), BLOCK)
    (served,) = run(Dispatch.PROMISE, [arrival], wire_s=0.002).served
    prefill_s = TIMES.step_s(100, 100 * 99 / 2, 0, 0)
    assert served.first_token_s == pytest.approx(0.002 + prefill_s)
    gaps = [TIMES.step_s(0, 0, 1, 100 + made) for made in range(1, 11)]
    assert served.end_s == pytest.approx(0.002 + prefill_s + sum(gaps) + 0.002)
    assert served.mean_gap_s == pytest.approx(sum(gaps) / 10)
    assert served.worst_gap_s == pytest.approx(gaps[-1])


def test_the_second_turn_finds_the_first() -> None:
    hashes = tuple(range(20))
    first = Arrival(0.0, "t", Tier.INTERACTIVE, 10 * BLOCK, 5, hashes[:10], BLOCK)
    second = Arrival(5.0, "t", Tier.INTERACTIVE, 20 * BLOCK, 5, hashes, BLOCK)
    served = run(Dispatch.PROMISE, [first, second]).served
    assert [s.cached_tokens for s in served] == [0, 10 * BLOCK]
    assert served[0].executor == served[1].executor


def test_what_is_late_is_told_so() -> None:
    coming = [replace(arrival, deadline_s=0.5) for arrival in load(4, requests=150, per_s=400.0)]
    result = run(Dispatch.PROMISE, coming, executors=1)
    outcomes = {served.outcome for served in result.served}
    assert "DEADLINE_PASSED" in outcomes
    late = [served for served in result.served if served.outcome == "DEADLINE_PASSED"]
    assert all(served.end_s <= 0.5 + 2 * SETUP.tick_s for served in late)


def test_answers_end_where_the_request_says() -> None:
    arrival = Arrival(0.0, "t", Tier.INTERACTIVE, 10, 100, (), BLOCK)
    coming = [arrival, replace(arrival, at=1.0, max_tokens=30), replace(arrival, at=2.0, output_tokens=1000)]
    assert [served.output_tokens for served in run(Dispatch.PROMISE, coming).served] == [100, 30, 400]


def test_progress_and_samples_follow_the_seconds() -> None:
    told = list[tuple[float, int]]()
    setup = replace(SETUP, scheduling=SchedulingRules(Dispatch.LEAST_REQUESTS), sample_s=0.5)
    result = simulate(setup, load(5), lambda at, ended: told.append((at, ended)))
    assert [sample.at for sample in result.samples] == [at for at, _ in told]
    assert told[0][0] == 0.5
    assert told == sorted(told)
    assert any(sample.running for sample in result.samples)
    assert all(0 <= sample.used_blocks + sample.cached_blocks <= 1 for sample in result.samples)


def test_a_trace_that_does_not_go_with_the_setup_is_refused() -> None:
    arrival = Arrival(0.0, "t", Tier.INTERACTIVE, 100, 5, (1, 2, 3), 32)
    with pytest.raises(ValueError, match="the trace has blocks of 32 tokens, the setup of 64"):
        run(Dispatch.PROMISE, [arrival])
    arrival = replace(arrival, block_hashes=(), at=1.0)
    with pytest.raises(ValueError, match="planned"):
        run(Dispatch.PROMISE, [arrival, replace(arrival, at=0.5)])
