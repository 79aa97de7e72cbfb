"""Keeps the router's catalogue fresh: etcd's messages in, a `Catalogue` out."""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace

from headrace.policy.v1 import policy_pb2
from headrace.registry.v1 import registry_pb2
from libs.catalogue import resolve
from libs.clock import Clock
from libs.lane.neighbours import HOLD_S
from libs.registry import keys
from libs.registry.registry import Registry
from services.router import policy_values
from services.router.route import GRACE_S, Catalogue, PoolState

_COMING = (registry_pb2.MODEL_STATE_PENDING, registry_pb2.MODEL_STATE_LOADING)


class CatalogueSource:
    """Mirrors of everything that a route is decided by.

    Args:
        changed: Called after each change, with the new catalogue in place.
    """

    def __init__(
        self, registry: Registry, clock: Clock, changed: Callable[[Catalogue], None] = lambda catalogue: None
    ) -> None:
        self.catalogue = Catalogue()
        self._models = registry.mirror(keys.MODELS, registry_pb2.Model)
        self._routes = registry.mirror(keys.ROUTES, policy_pb2.Route)
        self._switches = registry.mirror(keys.SWITCHES, policy_pb2.Switch)
        self._executors = registry.mirror(keys.EXECUTORS, registry_pb2.Executor, hold_deletions_s=HOLD_S)
        self._placements = registry.mirror(keys.PLACEMENTS, registry_pb2.Placement)
        self._unplaced = registry.mirror(keys.UNPLACED, registry_pb2.Unplaced)
        self._breakers = registry.mirror(keys.BREAKERS, policy_pb2.Breaker)
        self._demand = registry.mirror(keys.DEMAND, registry_pb2.Demand)
        self._changed = changed
        self._clock = clock
        self._last_ready: dict[str, float] = {}
        self._ready: Counter[str] = Counter()
        self._stack = AsyncExitStack()

    async def start(self) -> None:
        """Returns once everything has been read, however long etcd takes to come."""
        mirrors = (
            self._models, self._routes, self._switches, self._executors, self._placements, self._unplaced,
            self._breakers,
        )  # fmt: skip
        for mirror in (*mirrors, self._demand):
            await self._stack.enter_async_context(mirror)
        self._apply()
        for mirror in mirrors:
            mirror.on_change(self._apply)
        self._demand.on_change(self._count_waiting)

    async def close(self) -> None:
        """Stops following."""
        await self._stack.aclose()

    def _apply(self) -> None:
        placed = defaultdict(list)
        for placement in self._placements.items.values():
            placed[placement.model.name].append(f"{placement.executor}: {placement.reason}")
        self.catalogue = Catalogue(
            models=resolve(self._models.items),
            aliases={alias: route.model for alias, route in self._routes.items.items()},
            switched_off=self._off(policy_pb2.SWITCH_KIND_MODEL),
            features_off=self._off(policy_pb2.SWITCH_KIND_FEATURE),
            routes={alias: policy_values.route(route) for alias, route in self._routes.items.items()},
            breakers={name: policy_values.breaker(rule) for name, rule in self._breakers.items.items()},
            waiting=self._waiting(),
            pools=self._pools(),
            unplaced={model: lack.reason for model, lack in self._unplaced.items.items()},
            hopeless=frozenset(model for model, lack in self._unplaced.items.items() if lack.hopeless),
            placed={model: sorted(copies) for model, copies in placed.items()},
        )
        self._changed(self.catalogue)

    def _off(self, kind: "policy_pb2.SwitchKind.ValueType") -> Mapping[str, str]:
        return {switch.name: switch.reason for switch in self._switches.items.values() if switch.kind == kind}

    def _count_waiting(self) -> None:
        """Demand changes every second: what nobody looks at changes nothing."""
        waiting = self._waiting()
        if waiting != self.catalogue.waiting:
            self.catalogue = replace(self.catalogue, waiting=waiting)

    def _waiting(self) -> Mapping[str, int]:
        """Works in the queues of all batchers, of models whose routes look at it."""
        looked_at = {
            route.model for route in self._routes.items.values() if any(rule.min_waiting for rule in route.rules)
        }
        if not looked_at:
            return {}
        waiting: Counter[str] = Counter()
        for demand in self._demand.items.values():
            for model in demand.models:
                waiting[model.model] += model.waiting
        return {model: waiting[model] for model in looked_at}

    def _pools(self) -> dict[str, PoolState]:
        now = self._clock.monotonic()
        ready: Counter[str] = Counter()
        coming: Counter[str] = Counter()
        leaving: Counter[str] = Counter()
        for executor in self._executors.items.values():
            for copy in executor.models:
                if copy.state == registry_pb2.MODEL_STATE_READY and not executor.draining:
                    ready[copy.pool] += 1
                elif copy.state in _COMING:
                    coming[copy.pool] += 1
                elif copy.state == registry_pb2.MODEL_STATE_DRAINING:
                    leaving[copy.pool] += 1
        for placement in self._placements.items.values():  # also what its executor has not begun yet
            if placement.pool not in ready and placement.executor in self._executors.items:
                coming[placement.pool] += not _known(self._executors.items[placement.executor], placement.pool)
        for pool in {*ready, *self._ready}:  # also those that were ready until this moment
            self._last_ready[pool] = now
        self._ready = ready
        self._last_ready = {pool: when for pool, when in self._last_ready.items() if now - when <= GRACE_S}
        return {
            pool: PoolState(ready[pool], coming[pool], self._last_ready.get(pool), leaving[pool])
            for pool in {*ready, *coming, *leaving, *self._last_ready}
        }


def _known(executor: registry_pb2.Executor, pool: str) -> bool:
    return any(copy.pool == pool for copy in executor.models)
