"""Which model, which adapter, and which pool? Pure.

A pool is one version of a base model; adapters run in the pool of their base. While a new version is rolled
out, new works go to the versions in proportion to the copies that answer for each. A work that has begun
stays with the version, and the adapter, that it began with: no answer mixes two.

What keeps prefixes apart follows the adapter that is chosen; a tenant that admission isolated stays isolated.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec
from msgspec.structs import replace

from libs.catalogue import ModelSpec, model_of, pin, salted, unpin, unsalted
from libs.errors import ModelUnknown, NoExecutor, SwitchedOff, Violation
from libs.lane.work import Work
from services.router.policy import DEFAULT, BreakerRule, RouteRules

GRACE_S = 10.0
"""A pool whose last executor has gone is still routed to for this long: it may be restarting, and works can
wait in the batcher's queue. Then callers are told at once."""


_BREAKER = BreakerRule()


@dataclass(frozen=True, slots=True)
class PoolState:
    """What is known of the copies of one pool."""

    ready: int = 0
    """Copies that can answer."""
    coming: int = 0
    """Copies that are placed and not there yet."""
    last_ready: float | None = None
    """When one could last answer, in monotonic seconds; None: never seen."""
    leaving: int = 0
    """Copies that end what they run and take nothing new."""


@dataclass(frozen=True, slots=True)
class Catalogue:
    """What a router knows when it decides; replaced as a whole when the registry changes."""

    models: Mapping[str, ModelSpec] = field(default_factory=dict)
    """Everything that can be asked for, adapters included."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Alias to model."""
    switched_off: Mapping[str, str] = field(default_factory=dict)
    """Models that a kill switch covers, with the reason."""
    pools: Mapping[str, PoolState] = field(default_factory=dict)
    """Of every pool that is placed anywhere."""
    unplaced: Mapping[str, str] = field(default_factory=dict)
    """Base models that lack copies, with placement's reason."""
    hopeless: frozenset[str] = frozenset()
    """Of these, those that no executor could ever hold."""
    placed: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Base models, and for each of their copies where it lies and why."""
    routes: Mapping[str, RouteRules] = field(default_factory=dict)
    """What runs behind an alias, and when."""
    breakers: Mapping[str, BreakerRule] = field(default_factory=dict)
    """Rules of breakers by base model, and DEFAULT."""
    features_off: Mapping[str, str] = field(default_factory=dict)
    """Features that a kill switch covers, with the reason."""
    waiting: Mapping[str, int] = field(default_factory=dict)
    """Works in the batchers' queues, by base model; only of models whose routes look at it."""
    versions: Mapping[str, Mapping[str, PoolState]] = field(init=False)
    """Of each base model its entries of `pools`, in order: sorted out once, not for every work."""
    ready: Mapping[str, Mapping[str, int]] = field(init=False)
    """Of each base model the copies that can answer, by pool, in order."""

    def __post_init__(self) -> None:
        versions: dict[str, dict[str, PoolState]] = {}
        ready: dict[str, dict[str, int]] = {}
        for pool, state in sorted(self.pools.items()):
            versions.setdefault(model_of(pool), {})[pool] = state
            if state.ready:
                ready.setdefault(model_of(pool), {})[pool] = state.ready
        object.__setattr__(self, "versions", versions)
        object.__setattr__(self, "ready", ready)

    def breaker(self, pool: str) -> BreakerRule:
        """The rule of a pool's breaker."""
        return self.breakers.get(model_of(pool)) or self.breakers.get(DEFAULT) or _BREAKER


class Route(msgspec.Struct, frozen=True):
    """Where a work goes, and why."""

    model: str
    pool: str
    adapter: str
    salt: str
    reason: str
    waiting: str = ""
    """Why it cannot run yet, for the caller; empty when it can."""

    @property
    def pin(self) -> str:
        """What the work is to be sent with should it have to be sent again."""
        return pin(self.pool, self.adapter)


def route(work: Work, catalogue: Catalogue, now: float) -> Route:
    """Decides for one work. Raises ModelUnknown, SwitchedOff or NoExecutor."""
    model = _begun(work, catalogue) or catalogue.aliases.get(work.model, work.model)
    named = model if model == work.model else f"{work.model} is an alias of {model}"
    spec = catalogue.models.get(model)
    if spec is None:
        raise ModelUnknown(f"no model or alias is called {work.model!r}", metadata={"model": work.model})
    for name in (model, spec.base):
        if (reason := catalogue.switched_off.get(name)) is not None:
            raise SwitchedOff(f"{name} is switched off: {reason}", violations=[Violation(f"model/{name}", reason)])
    if spec.adapter:
        named += f", an adapter of {spec.base}"
    begun = bool(work.resumed and work.pool)
    chosen = (_resumed if begun else _new)(work, spec, catalogue, named, now)
    _, tenant = unsalted(work.salt)
    return replace(chosen, salt=salted(chosen.salt, tenant)) if tenant else chosen


def batcher_for(work: Work, batchers: Sequence[str]) -> str:
    """The batcher of a work's pool: the one with the highest hash of pool and name.

    One pool has one queue that way, and when its batcher goes, only its pools move.
    Source: Thaler and Ravishankar, "Using name-based mappings to increase hit rates", 1998 (rendezvous hashing).
    """
    if len(batchers) == 1:
        return batchers[0]
    return max(batchers, key=lambda name: hashlib.blake2b(f"{work.pool}/{name}".encode(), digest_size=8).digest())


def _begun(work: Work, catalogue: Catalogue) -> str:
    """The model that began an answer that was asked of an alias: the alias may mean another one by now."""
    if not (work.resumed and work.pool and work.model in catalogue.aliases):
        return ""
    pool, adapter = unpin(work.pool)
    return model_of(adapter or pool)


def _resumed(work: Work, spec: ModelSpec, catalogue: Catalogue, named: str, now: float) -> Route:
    """A work that has begun goes to its version or nowhere."""
    pool, adapter = unpin(work.pool)
    if model_of(pool) != (spec.base or spec.name) or model_of(adapter) != (spec.name if spec.base else ""):
        raise NoExecutor(f"{work.pool} is no version of {spec.name}", metadata={"model": spec.name})
    salt = spec.salt if adapter == spec.adapter else adapter
    state = catalogue.pools.get(pool, PoolState())
    there = state.ready or state.coming or state.leaving or _recent(state, now)
    # The version that the catalogue has now will be there again: the work waits for it, within its deadline.
    if not there and (pool != spec.pool or (spec.base or spec.name) in catalogue.hopeless):
        raise NoExecutor(f"{pool}, which began this answer, is not there any more", metadata={"model": spec.name})
    return Route(spec.name, pool, adapter, salt, f"{named}; it began on {pool}")


def _new(work: Work, spec: ModelSpec, catalogue: Catalogue, named: str, now: float) -> Route:
    base = spec.base or spec.name
    if ready := catalogue.ready.get(base):
        pool = _share(work.request_id, ready)
        reason = f"{named}; {ready[pool]} copies of {pool} are ready"
        if len(ready) > 1:
            reason += f", {sum(ready.values())} of all versions"
        return Route(spec.name, pool, spec.adapter, spec.salt, reason)
    versions = catalogue.versions.get(base, {})
    recent = [pool for pool, state in versions.items() if _recent(state, now)]
    current = versions.get(spec.pool, PoolState())
    if recent and not current.coming:
        pool = spec.pool if spec.pool in recent else recent[0]
        return Route(spec.name, pool, spec.adapter, spec.salt, f"{named}; no copy is ready, but one was a moment ago")
    why = catalogue.unplaced.get(base, "")
    if current.coming:
        waiting = f"{base} is being loaded"
    elif work.resumed or (_on_demand(spec) and base not in catalogue.hopeless):
        waiting = f"{base} is loaded on demand" + (f": {why}" if why else "")
    else:
        why = why or "none holds it"
        raise NoExecutor(
            f"no executor can answer for {spec.name}: {why}", metadata={"model": spec.name}, retry_after_s=2.0
        )
    return Route(spec.name, spec.pool, spec.adapter, spec.salt, f"{named}; {waiting}", waiting)


def _share(request_id: str, ready: Mapping[str, int]) -> str:
    """One of the pools, each as likely as it has copies, the same for the same request."""
    if len(ready) == 1:
        return next(iter(ready))
    point = int.from_bytes(hashlib.blake2b(request_id.encode(), digest_size=8).digest()) % sum(ready.values())
    for pool, copies in ready.items():
        point -= copies
        if point < 0:
            return pool
    raise AssertionError("the shares do not add up")


def _on_demand(spec: ModelSpec) -> bool:
    return spec.scaling is not None and spec.scaling.max > 0


def _recent(state: PoolState, now: float) -> bool:
    return state.last_ready is not None and now - state.last_ready <= GRACE_S
