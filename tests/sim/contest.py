"""Tenants that compete for a mesh in virtual time: what they send, and what one of them sees of the others."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

from libs.lane.work import Tier
from services.batcher.scheduling import SchedulingRules
from services.simulator.fairness_index import Fairness
from services.simulator.measure import Spread, fairness_of, idle_first_token_s
from services.simulator.step_times import gpu_class
from services.simulator.values import OK, Arrival, Result, Setup
from services.simulator.world import simulate

GPU = "h100-8b"
BLOCK = 64
WARM_S = 10.0
"""Not counted: what runs fills up, and rates are learned."""
CAPACITY_PER_S = 20.0
"""Requests of the default sizes that one executor of that kind answers per second, when it is never idle."""


@dataclass(frozen=True, slots=True)
class Tenant:
    """Somebody who sends requests at random, whatever becomes of them."""

    name: str
    per_s: float
    prompts: tuple[int, int] = (200, 2000)
    """Tokens, uniform from … to …; no two prompts have a prefix in common."""
    answers: tuple[int, int] = (50, 300)
    weight: float = 1.0
    tier: Tier = Tier.INTERACTIVE
    begins: float = 0.0
    """When it begins to send."""

    def arrivals(self, seconds: float, seed: int) -> list[Arrival]:
        """Up to this time; the same for the same name, rate and seed."""
        chance, at, found = random.Random(f"{seed} {self.name}"), self.begins, list[Arrival]()
        while (at := at + chance.expovariate(self.per_s)) < seconds:
            prompt, answer = chance.randint(*self.prompts), chance.randint(*self.answers)
            first = chance.getrandbits(62)
            hashes = tuple(range(first, first - (-prompt // BLOCK)))
            found.append(Arrival(at, self.name, self.tier, prompt, answer, hashes, BLOCK, weight=self.weight))
        return found


def setup(executors: int, rules: SchedulingRules | None = None) -> Setup:
    """Executors of one GPU and a model of 8 billion parameters each."""
    gpu = gpu_class(GPU)
    return Setup(
        executors=executors,
        step=gpu.step,
        slots=gpu.slots,
        blocks=gpu.blocks_tokens // BLOCK,
        block_tokens=BLOCK,
        step_tokens=gpu.step_tokens,
        max_tokens=512,
        scheduling=rules or SchedulingRules(),
    )


def play(
    executors: int, tenants: Sequence[Tenant], seconds: float, seed: int, rules: SchedulingRules | None = None
) -> Result:
    """All of them at once."""
    coming = chain.from_iterable(tenant.arrivals(seconds, seed) for tenant in tenants)
    mesh = replace(setup(executors, rules), seed=seed)
    return simulate(mesh, sorted(coming, key=lambda arrival: arrival.at))


@dataclass(frozen=True, slots=True)
class View:
    """What one tenant saw, and what all were given."""

    requests: int
    refused: int
    first_token: Spread
    queued: Spread
    served_per_s: float
    """Prompt tokens, and answer tokens twice, of all answers that ended while requests came."""
    preemptions: int


def view(results: Sequence[Result], tenant: str, seconds: float) -> View:
    """Of one tenant, over several seeds."""
    own = [
        each
        for result in results
        for each in result.served
        if each.arrival.tenant == tenant and each.arrival.at >= WARM_S
    ]
    served = sum(
        each.arrival.prompt_tokens + 2 * each.output_tokens
        for result in results
        for each in result.served
        if each.outcome == OK and WARM_S <= each.arrival.at + each.end_s < seconds
    )
    well = [each for each in own if each.outcome == OK]
    return View(
        requests=len(own),
        refused=len(own) - len(well),
        first_token=Spread.of([each.first_token_s for each in well if each.first_token_s is not None]),
        queued=Spread.of([each.queued_s for each in well]),
        served_per_s=served / (seconds - WARM_S) / len(results),
        preemptions=sum(result.engine_preemptions for result in results),
    )


def evenness(result: Result, seconds: float, executors: int) -> Fairness:
    """Jain's index of what tenants were served, by weight. Where all send more than their share all the time, its
    `whole` is that of backlogged tenants, also of those whose line is empty for moments because they are refused."""
    return fairness_of(result.served, idle_first_token_s(setup(executors)), WARM_S, seconds)
