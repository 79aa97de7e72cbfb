"""Keeps the router's catalogue fresh: etcd's messages in, a `Catalogue` out."""

from collections import Counter
from contextlib import AsyncExitStack

from headrace.policy.v1 import policy_pb2
from headrace.registry.v1 import registry_pb2
from libs.clock import Clock
from libs.lane.neighbours import HOLD_S
from libs.registry import keys
from libs.registry.registry import Registry
from services.router.route import Catalogue, PoolState


class CatalogueSource:
    """Mirrors of everything that a route is decided by."""

    def __init__(self, registry: Registry, clock: Clock) -> None:
        self.catalogue = Catalogue()
        self._models = registry.mirror(keys.MODELS, registry_pb2.Model)
        self._routes = registry.mirror(keys.ROUTES, policy_pb2.Route)
        self._switches = registry.mirror(keys.SWITCHES, policy_pb2.Switch)
        self._executors = registry.mirror(keys.EXECUTORS, registry_pb2.Executor, hold_deletions_s=HOLD_S)
        self._clock = clock
        self._last_ready: dict[str, float] = {}
        self._ready: Counter[str] = Counter()
        self._stack = AsyncExitStack()

    async def start(self) -> None:
        """Returns once everything has been read, however long etcd takes to come."""
        mirrors = (self._models, self._routes, self._switches, self._executors)
        for mirror in mirrors:
            await self._stack.enter_async_context(mirror)
        self._apply()
        for mirror in mirrors:
            mirror.on_change(self._apply)

    async def close(self) -> None:
        """Stops following."""
        await self._stack.aclose()

    def _apply(self) -> None:
        now, models = self._clock.monotonic(), self._models.items
        ready: Counter[str] = Counter()
        loading: Counter[str] = Counter()
        for executor in self._executors.items.values():
            for held in executor.models:
                if held.state == registry_pb2.MODEL_STATE_READY and not executor.draining:
                    ready[held.model] += 1
                elif held.state == registry_pb2.MODEL_STATE_LOADING:
                    loading[held.model] += 1
        for model in {*ready, *self._ready}:  # also those that were ready until this moment
            self._last_ready[model] = now
        self._ready = ready
        self._last_ready = {model: when for model, when in self._last_ready.items() if model in models}
        self.catalogue = Catalogue(
            models=frozenset(models),
            aliases={alias: route.model for alias, route in self._routes.items.items()},
            switched_off={
                switch.name: switch.reason
                for switch in self._switches.items.values()
                if switch.kind == policy_pb2.SWITCH_KIND_MODEL
            },
            pools={model: PoolState(ready[model], loading[model], self._last_ready.get(model)) for model in models},
        )
