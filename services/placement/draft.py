"""A plan in the making: which copies lie where, and what memory that leaves. Pure, mutable."""

from collections import defaultdict

from libs.catalogue import ModelSpec
from services.placement.fit import obstacle
from services.placement.values import Copy, Failure, Load, Rules, State, World
from services.placement.wish import Wish, wish

HOLDS_MEMORY: tuple[State, ...] = ("loading", "ready", "draining")


class Draft:
    """Adds and removes copies, and keeps the accounts. Never holds more on an executor than fits."""

    def __init__(self, world: World, rules: Rules) -> None:
        self.world = world
        self.rules = rules
        self.free = {name: view.memory_bytes for name, view in world.executors.items()}
        """Of each executor, once all is as planned."""
        self.leaving = {
            name: sum(one.memory_bytes for one in view.residents.values() if one.state in HOLDS_MEMORY)
            for name, view in world.executors.items()
        }
        """Memory of copies that an executor holds and is to give up: nothing can be loaded there before."""
        self.on: dict[str, dict[str, Copy]] = {name: {} for name in world.executors}
        """By executor, then pool."""
        self.of: dict[str, dict[tuple[str, str], Copy]] = {name: {} for name in world.models}
        """By model, then (executor, pool)."""
        self.wishes: dict[str, Wish] = {
            name: wish(spec, self.load(name), world.now) for name, spec in world.models.items()
        }
        self.stories: dict[str, str] = {}
        """Models that had to make room, or were not needed any more: what happened."""
        self.failures: dict[str, dict[str, Failure]] = defaultdict(dict)
        """That are not forgotten yet: by pool, then executor."""
        for (executor, pool), failure in world.failures.items():
            self.failures[pool][executor] = failure
        for name, view in world.executors.items():
            for pool, resident in view.residents.items():
                if resident.state == "failed":
                    now = Failure(resident.since, max(resident.attempts, 1), resident.reason)
                    self.failures[pool].setdefault(name, now)
        self._eligible: dict[str, list[str]] = {}

    def add(self, copy: Copy) -> None:
        """Puts a copy on an executor that has room for it."""
        executor, pool = copy.key
        assert pool not in self.on[executor], f"{pool} lies on {executor} already"
        self.free[executor] -= copy.spec.copy_bytes
        assert self.free[executor] >= 0, f"{executor} is overfull"
        self.leaving[executor] -= self._resident_bytes(executor, pool)
        self.on[executor][pool] = self.of[copy.spec.name][copy.key] = copy

    def remove(self, copy: Copy) -> None:
        """Takes a copy away."""
        executor, pool = copy.key
        del self.on[executor][pool], self.of[copy.spec.name][copy.key]
        self.free[executor] += copy.spec.copy_bytes
        self.leaving[executor] += self._resident_bytes(executor, pool)

    def eligible(self, spec: ModelSpec) -> list[str]:
        """Executors that are there and could hold a model if they were empty."""
        names = self._eligible.get(spec.pool)
        if names is None:
            views = self.world.executors.items()
            names = [name for name, view in views if view.present and not obstacle(spec, view)]
            self._eligible[spec.pool] = names
        return names

    def load(self, model: str) -> Load:
        """What is asked of a model."""
        return self.world.loads.get(model, _NO_LOAD)

    def state(self, copy: Copy) -> State:
        """How far a copy is, as its executor said last; pending when it has said nothing."""
        view = self.world.executors.get(copy.executor)
        resident = view.residents.get(copy.spec.pool) if view else None
        return resident.state if resident else "pending"

    def ready(self, copy: Copy) -> bool:
        """Whether a copy answers."""
        view = self.world.executors.get(copy.executor)
        return view is not None and view.present and self.state(copy) == "ready"

    def failed(self, copy: Copy) -> bool:
        """Whether a copy could not be loaded."""
        return self.state(copy) == "failed"

    def working(self, model: str) -> list[Copy]:
        """Copies of a model, of any version, that answer or may do so soon."""
        return [copy for copy in self.of[model].values() if not self.failed(copy)]

    def old(self, model: str) -> list[Copy]:
        """Copies of other versions than the catalogue's."""
        pool = self.world.models[model].pool
        return [copy for copy in self.of[model].values() if copy.spec.pool != pool]

    def _resident_bytes(self, executor: str, pool: str) -> int:
        resident = self.world.executors[executor].residents.get(pool)
        return resident.memory_bytes if resident and resident.state in HOLDS_MEMORY else 0


_NO_LOAD = Load()
