"""Makes arrivals of a trace: how much of it, how fast, by whom, and in which tier. Pure.

In this order: the trace is cut, its arrivals are spread where its clock was coarse, it is laid over itself `copies`
times, tenants, tiers and adapters are drawn, and time is scaled. What is drawn is drawn for a whole conversation (the
requests that share the first block behind what all requests share): its turns keep their tenant, tier and adapter,
so that they can find each other's prefixes. The same seed draws the same.

The first turns of a mix are alike at every rate: only the times differ. So the points of a sweep can be compared.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np

from libs.lane.work import Tier
from services.simulator.trace import Request, Trace
from services.simulator.values import Arrival

LONGEST_SHIFT_S = 60.0
MOST_ARRIVALS = 5_000_000


@dataclass(frozen=True, slots=True)
class Tenant:
    """Somebody who sends requests."""

    name: str
    share: float
    """Of the conversations, against those of the others."""
    weight: float = 1.0
    """Of what is scarce, against those of the others."""


@dataclass(frozen=True, slots=True)
class Mix:
    """What to make of a trace."""

    rate: float = 1.0
    """Time is compressed by this: 2.0 doubles the load. Of no effect where `requests_per_s` is given."""
    requests_per_s: float = 0.0
    """Mean offered load; 0 leaves it to `rate`."""
    copies: int = 1
    """The trace so many times, each shifted by a random time, up to a tenth of the trace or LONGEST_SHIFT_S, with
    prefixes of its own apart from the blocks that all its requests begin with (the system prompt). 0: so many that
    `requests_per_s` comes with the trace's own pace, as near as can be."""
    tenants: Sequence[Tenant] = (Tenant("default", 1.0),)
    async_share: float = 0.0
    """Share of the conversations that are async."""
    adapters: int = 0
    """So many LoRA adapters, in equal shares; prompts of different adapters share no prefix."""
    first_s: float = 0.0
    """Only what arrives before, in the trace's own time; 0 for all."""
    requests: int = 0
    """Only so many requests of the trace; 0 for all."""
    spread_s: float = 0.0
    """Each arrival is moved forward by a random time up to this, in the trace's own time: for traces whose clock is
    coarse (Mooncake's published times are multiples of 3 s)."""
    deadline_s: float = 600.0
    seed: int = 0


def tenants(text: str) -> tuple[Tenant, ...]:
    """Reads "4" (equal shares), "4:zipf" (shares 1, 1/2, 1/3, 1/4) or "a=100,b=1" (names and shares, each with a
    weight if it is not 1: "a=100:2"). Raises ValueError."""
    head, _, law = text.partition(":")
    if head.isdecimal():
        count = int(head)
        if not 1 <= count <= 10_000 or law not in ("", "zipf"):
            raise ValueError(f'"{text}": a number of tenants is from 1 to 10,000, alone or with ":zipf"')
        return tuple(Tenant(f"tenant-{i}", 1 / i if law else 1.0) for i in range(1, count + 1))
    found = []
    for part in text.split(","):
        name, _, figures = part.strip().partition("=")
        share, _, weight = figures.partition(":")
        try:
            tenant = Tenant(name, float(share), float(weight or 1))
        except ValueError:
            raise ValueError(f'"{part}" is not like a=100 or a=100:2') from None
        if not (name and 0 < tenant.share < float("inf") and 0 < tenant.weight < float("inf")):
            raise ValueError(f'"{part}" needs a name, and a share and a weight above 0')
        found.append(tenant)
    names = [tenant.name for tenant in found]
    if len(set(names)) < len(names):
        raise ValueError(f'"{text}" names a tenant twice')
    return tuple(found)


def arrivals(trace: Trace, mix: Mix, block_tokens: int) -> list[Arrival]:
    """The arrivals, in order of time.

    Args:
        block_tokens: Of the executors. A block of the trace is cut into as many; it cannot be made larger.

    Raises ValueError for a mix that makes none, or more than MOST_ARRIVALS.
    """
    _check(mix)
    if trace.block_tokens and (trace.block_tokens < block_tokens or trace.block_tokens % block_tokens):
        whole = f"{trace.block_tokens} tokens"
        raise ValueError(f"the trace tells prefixes by {whole}: blocks of {block_tokens} are no whole part of that")
    requests = _cut(trace, mix)
    length = max(each.at_s for each in requests)
    copies = mix.copies or max(1, round(mix.requests_per_s * length / len(requests)))
    if len(requests) * copies > MOST_ARRIVALS:
        raise ValueError(f"{len(requests):,} requests x {copies} copies are more than {MOST_ARRIVALS:,}")
    draw = np.random.default_rng(mix.seed)
    common = shared_blocks(requests)
    stride = 1 + max((max(each.prefix, default=0) for each in requests), default=0)
    made = []
    for copy in range(copies):
        shift = float(draw.uniform(0, min(LONGEST_SHIFT_S, length / 10))) if copy else 0.0
        spread = draw.uniform(0, mix.spread_s, len(requests)) if mix.spread_s else np.zeros(len(requests))
        casts = _casts(requests, common, mix, draw)
        for request, cast, moved in zip(requests, casts, spread.tolist(), strict=True):
            made.append((request.at_s + shift + moved, request, cast, copy))
    made.sort(key=lambda each: each[0])
    start = made[0][0]
    scale = _scale(len(made), made[-1][0] - start, mix)
    parts = (trace.block_tokens or block_tokens) // block_tokens
    return [
        Arrival(
            at=(at - start) / scale,
            tenant=cast.tenant.name,
            tier=cast.tier,
            prompt_tokens=request.prompt_tokens,
            output_tokens=request.output_tokens,
            block_hashes=_hashes(
                request,
                common,
                stride * (copy * (mix.adapters + 1) + cast.adapter),
                stride * cast.adapter,
                parts,
                block_tokens,
            ),
            block_tokens=block_tokens,
            weight=cast.tenant.weight,
            deadline_s=mix.deadline_s,
            adapter=f"adapter-{cast.adapter}" if cast.adapter else "",
        )
        for at, request, cast, copy in made
    ]


def shared_blocks(requests: Sequence[Request]) -> int:
    """Leading blocks that all the requests have in common: their system prompt."""
    first = requests[0].prefix
    if len(requests) == 1:
        return 0
    depths = (
        sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, each.prefix, strict=False)))
        for each in requests
    )
    return min(depths)


@dataclass(frozen=True, slots=True)
class _Cast:
    tenant: Tenant
    tier: Tier
    adapter: int
    """From 1 on; 0 for none."""


def _check(mix: Mix) -> None:
    wrong = []
    if not 0 < mix.rate < float("inf"):
        wrong.append(f"the rate is above 0, not {mix.rate:g}")
    if not 0 <= mix.requests_per_s < float("inf"):
        wrong.append(f"requests per second are above 0, not {mix.requests_per_s:g}")
    if not (0 if mix.requests_per_s else 1) <= mix.copies <= 10_000:
        wrong.append(f"the copies are from 1 to 10,000, or 0 with requests per second, not {mix.copies}")
    if not 0 <= mix.async_share <= 1:
        wrong.append(f"the share of async work is from 0 to 1, not {mix.async_share:g}")
    if not 0 <= mix.adapters <= 10_000:
        wrong.append(f"the adapters are from 0 to 10,000, not {mix.adapters}")
    if min(mix.first_s, mix.requests, mix.spread_s) < 0 or mix.deadline_s <= 0:
        wrong.append("times and numbers are not negative, and the deadline is above 0")
    if not mix.tenants:
        wrong.append("there is at least one tenant")
    if wrong:
        raise ValueError("; ".join(wrong))


def _cut(trace: Trace, mix: Mix) -> Sequence[Request]:
    requests = trace.requests
    if mix.first_s:
        requests = [each for each in requests if each.at_s < mix.first_s]
    if mix.requests:
        requests = requests[: mix.requests]
    if not requests:
        raise ValueError("no request of the trace is left")
    return requests


def _casts(requests: Sequence[Request], common: int, mix: Mix, draw: np.random.Generator) -> list[_Cast]:
    """Who sends each request, one draw for each conversation."""
    heads = [each.prefix[common] if len(each.prefix) > common else -1 - index for index, each in enumerate(requests)]
    conversations = {head: index for index, head in enumerate(dict.fromkeys(heads))}
    shares = np.array([tenant.share for tenant in mix.tenants])
    who = draw.choice(len(shares), len(conversations), p=shares / shares.sum())
    later = draw.random(len(conversations)) < mix.async_share
    which = (
        draw.integers(1, mix.adapters + 1, len(conversations)) if mix.adapters else np.zeros(len(conversations), int)
    )
    drawn = [
        _Cast(mix.tenants[tenant], Tier.ASYNC if is_async else Tier.INTERACTIVE, adapter)
        for tenant, is_async, adapter in zip(who.tolist(), later.tolist(), which.tolist(), strict=True)
    ]
    return [drawn[conversations[head]] for head in heads]


def _scale(count: int, length_s: float, mix: Mix) -> float:
    """What times are divided by."""
    if not mix.requests_per_s:
        return mix.rate
    if not length_s:
        raise ValueError("the arrivals are all at one moment: no rate can be given to them")
    return mix.requests_per_s * length_s / count


def _hashes(request: Request, common: int, own: int, shared: int, parts: int, block_tokens: int) -> tuple[int, ...]:
    """A prefix moved to where ids are its copy's and its adapter's own, each block cut into `parts`; `shared` is for
    the common blocks."""
    moved = [each + (shared if depth < common else own) for depth, each in enumerate(request.prefix)]
    if parts == 1 or not moved:
        return tuple(moved)
    cut = [each * parts + part for each in moved for part in range(parts)]
    return tuple(cut[: -(-request.prompt_tokens // block_tokens)])
