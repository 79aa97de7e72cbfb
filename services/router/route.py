"""Which model, and which pool? Pure."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from libs.errors import ModelUnknown, NoExecutor, SwitchedOff, Violation
from libs.lane.work import Work

GRACE_S = 10.0
"""A pool whose last executor has gone is still routed to for this long: it may be restarting, and works can
wait in the batcher's queue. Then callers are told at once."""


@dataclass(frozen=True, slots=True)
class PoolState:
    """What is known of the executors of one pool."""

    ready: int
    """Executors that can answer."""
    loading: int
    """Executors that are getting ready to."""
    last_ready: float | None
    """When one could last answer, in monotonic seconds; None: never seen."""


@dataclass(frozen=True, slots=True)
class Catalogue:
    """What a router knows when it decides; replaced as a whole when the registry changes."""

    models: frozenset[str] = frozenset()
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Alias to model."""
    switched_off: Mapping[str, str] = field(default_factory=dict)
    """Models that a kill switch covers, with the reason."""
    pools: Mapping[str, PoolState] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Route:
    """Where a work goes, and why."""

    model: str
    pool: str
    reason: str


def route(work: Work, catalogue: Catalogue, now: float) -> Route:
    """Decides for one work. A work that has begun is never refused for a pool that is away: it waits.

    Raises ModelUnknown, SwitchedOff or NoExecutor.
    """
    model = catalogue.aliases.get(work.model, work.model)
    named = model if model == work.model else f"{work.model} is an alias of {model}"
    if model not in catalogue.models:
        raise ModelUnknown(f"no model or alias is called {work.model!r}", metadata={"model": work.model})
    if (reason := catalogue.switched_off.get(model)) is not None:
        raise SwitchedOff(f"{model} is switched off: {reason}", violations=[Violation(f"model/{model}", reason)])
    state = catalogue.pools.get(model, PoolState(0, 0, None))
    if state.ready:
        return Route(model, model, f"{named}; {state.ready} executors are ready")
    recently = state.last_ready is not None and now - state.last_ready <= GRACE_S
    if recently or work.resumed:
        return Route(model, model, f"{named}; no executor is ready, but one was a moment ago")
    why = f"{state.loading} are loading it" if state.loading else "none holds it"
    raise NoExecutor(f"no executor can answer for {model}: {why}", metadata={"model": model}, retry_after_s=2.0)


def batcher_for(work: Work, batchers: Sequence[str]) -> str:
    """The batcher of a work's pool: the one with the highest hash of pool and name.

    One pool has one queue that way, and when its batcher goes, only its pools move.
    Source: Thaler and Ravishankar, "Using name-based mappings to increase hit rates", 1998 (rendezvous hashing).
    """
    return max(batchers, key=lambda name: hashlib.blake2b(f"{work.pool}/{name}".encode(), digest_size=8).digest())
