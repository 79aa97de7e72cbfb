"""One point of a sweep: a policy at a load, with everything that is shown of it. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from services.simulator import fairness_index
from services.simulator.measure import Measures, Slo, idle_first_token_s, measure, uses
from services.simulator.values import OK, Result, Sample, Setup

CURVE_POINTS = 201
MOST_SAMPLES = 600
MOST_STRIPS = 30
"""Stretches of time in which the tenants' service is shown."""
SHOWN_TENANTS = 8


@dataclass(frozen=True, slots=True)
class Load:
    """How much is asked of the mesh."""

    name: str
    """As it was asked for: "x2" of the trace's pace, "12/s"."""
    requests_per_s: float
    """On average."""
    requests: int


@dataclass(frozen=True, slots=True)
class Service:
    """What the tenants were served over time: weighted tokens per second (fairness_index) and weight."""

    at: Sequence[float]
    """The middle of each stretch."""
    tenants: Mapping[str, Sequence[float]]
    """The largest; the rest is not shown."""


@dataclass(frozen=True, slots=True)
class Point:
    """A policy at a load."""

    policy: str
    load: Load
    measures: Measures
    first_token_curve: Sequence[float]
    """Quantiles 0, 0.005, … 1 of the times to first token, in seconds; empty when nothing was answered."""
    samples: Sequence[Sample]
    service: Service | None
    """Where there are several tenants."""
    simulated_s: float
    wall_s: float


def point(policy: str, load: Load, setup: Setup, slo: Slo, result: Result) -> Point:
    """What is kept of a simulation."""
    measures = measure(result, setup, slo)
    first = [
        each.first_token_s
        for each in result.served
        if each.outcome == OK
        and each.first_token_s is not None
        and measures.start_s <= each.arrival.at <= measures.end_s
    ]
    quantiles = np.linspace(0, 1, CURVE_POINTS)
    curve = np.quantile(np.array(first), quantiles, method="inverted_cdf").tolist() if first else []
    every = max(1, -(-len(result.samples) // MOST_SAMPLES))
    return Point(
        policy=policy,
        load=load,
        measures=measures,
        first_token_curve=curve,
        samples=result.samples[::every],
        service=_service(result, setup, measures),
        simulated_s=result.end_s,
        wall_s=result.wall_s,
    )


def _service(result: Result, setup: Setup, measures: Measures) -> Service | None:
    if len(measures.tenants) < 2:
        return None
    last = result.served[-1].arrival.at
    borders = fairness_index.edges(0.0, last, max(last / MOST_STRIPS, 1e-9))
    if len(borders) < 2:
        return None
    weights = {each.arrival.tenant: each.arrival.weight for each in result.served}
    used = uses(result.served, idle_first_token_s(setup))
    largest = sorted(measures.tenants, key=lambda name: -measures.tenants[name].requests)[:SHOWN_TENANTS]
    length = borders[1] - borders[0]
    rates = {
        name: (fairness_index.served(used[name].service, borders) / (weights[name] * length)).tolist()
        for name in sorted(largest)
    }
    return Service(((borders[1:] + borders[:-1]) / 2).tolist(), rates)


def knee(points: Sequence[Point], share: float = 0.9) -> Load:
    """The load that is shown in detail: the highest at which some policy keeps the SLO for `share` of the requests;
    without such a one the lowest. Raises ValueError without points."""
    loads = sorted({each.load for each in points}, key=lambda load: load.requests_per_s)
    if not loads:
        raise ValueError("a sweep without points has no knee")
    held = {each.load for each in points if each.measures.all.good_share >= share}
    return max(held, key=lambda load: load.requests_per_s) if held else loads[0]
