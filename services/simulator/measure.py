"""What a simulation showed, in figures. Pure.

The first WARM_UP of the time in which requests arrive, and the last COOL_DOWN, are simulated but not counted: in the
first the caches are empty and nothing is in the way, in the last nothing follows. A request counts where it arrived;
throughput counts requests where they ended, so that a backlog worked off later adds nothing.

Percentiles are nearest ranks: each is a time that some request had. Requests that were refused, or ended with another
error, have no first token and are in no percentile; they are in the shares and in goodput.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from libs.catalogue.options import Simulation
from libs.lane.work import Tier
from services.simulator import fairness_index
from services.simulator.fairness_index import OUTPUT_WEIGHT, Fairness, Use
from services.simulator.values import OK, Arrival, Result, Served, Setup

WARM_UP = 0.1
COOL_DOWN = 0.05
WINDOW_S = 10.0
MOST_TENANTS = 16
"""Tenants that are shown one by one: those with most requests."""
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


@dataclass(frozen=True, slots=True)
class Slo:
    """What an answer has to be to be good. An async one has to be whole, and no more."""

    first_token_s: float = 2.0
    stretch: float = 5.0
    """Or this many times what the first token takes on an idle executor that remembers nothing, if that is longer."""
    gap_s: float = 0.05
    """The mean time between its tokens."""


class Verdict(Enum):
    """What an answer is to whoever asked."""

    GOOD = "within the SLO"
    LATE = "late first token"
    SLOW = "slow tokens"
    UNANSWERED = "not answered"


@dataclass(frozen=True, slots=True)
class Spread:
    """Percentiles of a time in seconds; None when no request had it."""

    p50: float | None
    p90: float | None
    p99: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """By nearest rank."""
        if not values:
            return cls(None, None, None)
        ranked = np.quantile(np.array(values), list(QUANTILES.values()), method="inverted_cdf")
        return cls(*map(float, ranked))


@dataclass(frozen=True, slots=True)
class Group:
    """Requests that are looked at together."""

    requests: int
    answered: int
    good: int
    """Within the SLO."""
    late: int
    """Answered, but their first token came too late."""
    slow: int
    """Answered in time, but their tokens were too far apart."""
    offered_per_s: float
    goodput_per_s: float
    good_share: float
    """Of the requests."""
    first_token: Spread
    gap: Spread
    """Mean time between tokens of a request."""
    worst_gap: Spread
    end_to_end: Spread
    queued: Spread
    """In the batcher's queue. A policy that binds early has its queues in the engines, which this does not show."""
    waited: Spread
    """First token, less what it takes on an idle executor that remembers nothing; not below 0."""
    hit_rate: float
    """Prompt tokens that the engine did not have to compute, of those of answered requests."""
    refusals: Mapping[str, int]
    """Requests that were not answered, by reason."""
    pushed: int
    """Requests that were taken off an executor at least once."""
    pushes: int


@dataclass(frozen=True, slots=True)
class Measures:
    """Everything that is said of a simulation."""

    start_s: float
    """Requests that arrive from here…"""
    end_s: float
    """… to here are counted."""
    all: Group
    tiers: Mapping[str, Group]
    """By tier, where there are several."""
    tenants: Mapping[str, Group]
    """Where there are several; those with most requests."""
    prompt_tokens_per_s: float
    output_tokens_per_s: float
    fairness: Fairness
    evictions: int
    """Of the whole simulation, as are the next two."""
    engine_preemptions: int
    steps: int


Unloaded = Callable[[Arrival], float]


def idle_first_token_s(setup: Setup) -> Unloaded:
    """How long the first token of a request takes on an idle executor that remembers nothing, by the step model."""
    known: dict[int, float] = {}

    def of(arrival: Arrival) -> float:
        tokens = arrival.prompt_tokens
        if tokens not in known:
            known[tokens] = prefill_s(setup.step, tokens, setup.step_tokens)
        return known[tokens]

    return of


def prefill_s(step: Simulation, tokens: int, step_tokens: int) -> float:
    """Seconds to compute a prompt alone, in chunks of at most `step_tokens`."""
    total = 0.0
    for start in range(0, tokens, step_tokens):
        count = min(step_tokens, tokens - start)
        total += step.step_s(count, count * start + count * (count - 1) / 2, 0, 0)
    return total


def verdict(served: Served, slo: Slo, unloaded: Unloaded) -> Verdict:
    """Whether an answer is within the SLO, and if not, the first reason why."""
    if served.outcome != OK or served.first_token_s is None:
        return Verdict.UNANSWERED
    if served.arrival.tier is Tier.ASYNC:
        return Verdict.GOOD
    if served.first_token_s > max(slo.first_token_s, slo.stretch * unloaded(served.arrival)):
        return Verdict.LATE
    return Verdict.SLOW if served.mean_gap_s > slo.gap_s else Verdict.GOOD


def window(served: Sequence[Served]) -> tuple[float, float]:
    """From when to when requests are counted. With fewer than two moments of arrival, all of them."""
    if not served:
        return 0.0, 0.0
    first, last = served[0].arrival.at, served[-1].arrival.at
    length = last - first
    return (first + WARM_UP * length, last - COOL_DOWN * length) if length else (first, first)


def measure(result: Result, setup: Setup, slo: Slo) -> Measures:
    """The figures of a simulation."""
    start, end = window(result.served)
    length = end - start
    unloaded = idle_first_token_s(setup)
    counted = [each for each in result.served if start <= each.arrival.at <= end]
    ended = [each for each in result.served if each.outcome == OK and start <= each.arrival.at + each.end_s <= end]

    def group(of: Sequence[Served]) -> Group:
        return _group(of, length, slo, unloaded)

    tiers = {tier.name.lower(): [each for each in counted if each.arrival.tier is tier] for tier in Tier}
    tiers = {name: of for name, of in tiers.items() if of}
    names = Counter(each.arrival.tenant for each in counted)
    largest = [name for name, _ in names.most_common(MOST_TENANTS)] if len(names) > 1 else []
    tenants = {name: [each for each in counted if each.arrival.tenant == name] for name in sorted(largest)}
    return Measures(
        start_s=start,
        end_s=end,
        all=group(counted),
        tiers={name: group(of) for name, of in tiers.items()} if len(tiers) > 1 else {},
        tenants={name: group(of) for name, of in tenants.items()},
        prompt_tokens_per_s=_per_s(sum(each.arrival.prompt_tokens for each in ended), length),
        output_tokens_per_s=_per_s(sum(each.output_tokens for each in ended), length),
        fairness=fairness_of(result.served, unloaded, start, end),
        evictions=result.evictions,
        engine_preemptions=result.engine_preemptions,
        steps=result.steps,
    )


def fairness_of(served: Sequence[Served], unloaded: Unloaded, start: float, end: float) -> Fairness:
    """How evenly the tenants were served between two times, in windows of WINDOW_S."""
    weights = {each.arrival.tenant: each.arrival.weight for each in served}
    return fairness_index.judge(uses(served, unloaded), weights, fairness_index.edges(start, end, WINDOW_S))


def uses(served: Sequence[Served], unloaded: Unloaded) -> dict[str, Use]:
    """What each tenant was served, and when it waited."""
    service: dict[str, list[tuple[float, float, float]]] = {}
    waiting: dict[str, list[tuple[float, float]]] = {}
    for each in served:
        arrival = each.arrival
        own, waits = service.setdefault(arrival.tenant, []), waiting.setdefault(arrival.tenant, [])
        if each.first_token_s is None:
            waits.append((arrival.at, arrival.at + each.end_s))
            continue
        waited = _waited(each, unloaded)
        first = arrival.at + each.first_token_s
        waits.append((arrival.at, arrival.at + max(each.queued_s, waited)))
        own.append((min(arrival.at + waited, first), first, float(arrival.prompt_tokens)))
        own.append((first, max(arrival.at + each.end_s, first), OUTPUT_WEIGHT * each.output_tokens))
    return {
        name: Use(np.array(service[name], float).reshape(-1, 3), np.array(waiting[name], float).reshape(-1, 2))
        for name in service
    }


def _group(served: Sequence[Served], length_s: float, slo: Slo, unloaded: Unloaded) -> Group:
    answered = [each for each in served if each.outcome == OK]
    begun = [each for each in served if each.first_token_s is not None and each.outcome == OK]
    several = [each for each in answered if each.output_tokens > 1]
    verdicts = Counter(verdict(each, slo, unloaded) for each in served)
    good = verdicts[Verdict.GOOD]
    prompts = sum(each.arrival.prompt_tokens for each in answered)
    return Group(
        requests=len(served),
        answered=len(answered),
        good=good,
        late=verdicts[Verdict.LATE],
        slow=verdicts[Verdict.SLOW],
        offered_per_s=_per_s(len(served), length_s),
        goodput_per_s=_per_s(good, length_s),
        good_share=good / len(served) if served else 0.0,
        first_token=Spread.of([each.first_token_s for each in begun if each.first_token_s is not None]),
        gap=Spread.of([each.mean_gap_s for each in several]),
        worst_gap=Spread.of([each.worst_gap_s for each in several]),
        end_to_end=Spread.of([each.end_s for each in answered]),
        queued=Spread.of([each.queued_s for each in answered]),
        waited=Spread.of([_waited(each, unloaded) for each in begun]),
        hit_rate=sum(each.cached_tokens for each in answered) / prompts if prompts else 0.0,
        refusals=dict(sorted(Counter(each.outcome for each in served if each.outcome != OK).items())),
        pushed=sum(each.pushes > 0 for each in served),
        pushes=sum(each.pushes for each in served),
    )


def _waited(served: Served, unloaded: Unloaded) -> float:
    return max((served.first_token_s or 0.0) - unloaded(served.arrival), 0.0)


def _per_s(count: int, length_s: float) -> float:
    """A rate; 0 where all is at one moment, which has none."""
    return count / length_s if length_s else 0.0
