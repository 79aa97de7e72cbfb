"""Ten times more than a mesh can do, in virtual time: what it serves nevertheless, and how long that has to wait."""

from dataclasses import replace
from functools import cache

import pytest

from libs.catalogue.options import Simulation
from libs.lane.work import Tier
from services.batcher.queue import Limits
from services.batcher.rules import TARGET_S, TierRules
from services.simulator.measure import Spread
from services.simulator.values import OK, Result, Served, Setup
from services.simulator.world import simulate
from tests.sim.contest import BLOCK, Tenant

MESH = Setup(
    executors=2,
    step=Simulation(step_base_us=10_000, weights_us=20_000, prefill_token_us=100, sequence_us=150),
    slots=64,
    blocks=320,
    block_tokens=BLOCK,
    step_tokens=512,
    max_tokens=120,
    wire_s=0.001,
    ask_s=0.002,
)
"""Some 14 requests a second and executor, of the sizes below; its blocks are short before its slots are."""
SHARES = {"flood": 0.5, "torrent": 0.28, "brook": 0.02, "night": 0.2}
"""Of what is asked for. A fair share of a tenth of that would be a quarter of it: `brook` stays below."""
FACTOR = 10
TARGET = TARGET_S[Tier.INTERACTIVE]
LEARNED_S, FLOODED_S, SETTLED_S, END_S = 10.0, 15.0, 20.0, 55.0
"""Below its peak the mesh is measured; then nobody comes; then the flood, which counts once it has gone on for a
while."""


def tenant(name: str, per_s: float, begins: float = 0.0) -> Tenant:
    tier = Tier.ASYNC if name == "night" else Tier.INTERACTIVE
    return Tenant(name, per_s, (120, 520), (40, 120), tier=tier, begins=begins)


def throughput(result: Result, begin: float, end: float) -> float:
    """Prompt and answer tokens per second, of answers that ended then and are good: an interactive one has its first
    token within the target."""
    good = (each for each in result.served if each.outcome == OK and begin <= each.arrival.at + each.end_s < end)
    return sum(_tokens(each) for each in good if _in_time(each)) / (end - begin)


@cache
def peak() -> tuple[float, float]:
    """What the mesh can do when it always has enough to do: answers per second, and tokens per second."""
    nothing_refused = TierRules(Limits(works=100_000, tokens=10**9), target_s=1e6)
    mesh = replace(MESH, tiers={Tier.INTERACTIVE: nothing_refused})
    result = simulate(mesh, tenant("flood", 40.0).arrivals(30.0, seed=1))
    ended = [each for each in result.served if 10 <= each.arrival.at + each.end_s < 30]
    return len(ended) / 20, sum(_tokens(each) for each in ended) / 20


def flooded(seed: int) -> Result:
    """The flood, after a time in which rates are learned."""
    answers, _ = peak()
    coming = tenant("flood", 0.8 * answers).arrivals(LEARNED_S, seed)
    for name, share in SHARES.items():
        coming += tenant(name, FACTOR * answers * share, FLOODED_S).arrivals(END_S, seed)
    return simulate(replace(MESH, seed=seed), sorted(coming, key=lambda arrival: arrival.at))


@pytest.mark.parametrize("seed", [1, 2])
def test_ten_times_too_much_costs_no_goodput_and_what_is_accepted_comes_in_time(seed: int) -> None:
    result = flooded(seed)
    _, tokens_s = peak()
    assert throughput(result, SETTLED_S, END_S) >= 0.95 * tokens_s
    interactive = [
        each
        for each in result.served
        if each.outcome == OK and each.arrival.tier is Tier.INTERACTIVE and each.arrival.at >= FLOODED_S
    ]
    waited = Spread.of([each.queued_s for each in interactive]).p99
    assert waited is not None
    assert waited <= TARGET
    assert all(each.outcome == OK for each in result.served if each.arrival.tenant == "brook"), "it is below its share"
    assert result.engine_preemptions == 0
    pushes = sum(each.pushes for each in result.served)
    assert pushes <= 5, "async work hardly ever runs where an interactive one wants to be"


def _in_time(each: Served) -> bool:
    return each.arrival.tier is Tier.ASYNC or (each.first_token_s is not None and each.first_token_s <= TARGET)


def _tokens(each: Served) -> int:
    return each.arrival.prompt_tokens + each.output_tokens
