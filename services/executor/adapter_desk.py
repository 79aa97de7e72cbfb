"""Loads adapters when works ask for them, and unloads what has to make room: the shell around AdapterCache."""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence

import structlog

from libs.catalogue import ModelSpec, model_of
from libs.clock import Clock
from libs.errors import HeadraceError, NoExecutor, StageUnavailable
from libs.tasks import Tasks
from services.executor.adapter_cache import AdapterCache, Place, Resident
from services.executor.engine import LoadFailed, Runner

log = structlog.get_logger()

FAILED_S = 10.0
"""An adapter that could not be loaded is not tried again this long."""
PATIENCE_S = 1.0
"""So long may works whose adapter is here overtake one that finds everything full; then they wait behind it, so
that some adapter becomes idle and makes room. Else a few busy adapters would keep all others out."""

Done = Callable[[HeadraceError | None], None]
"""Told once that the adapter is there, or why it will not be."""


class AdapterDesk:
    """The adapters of one copy.

    What waits is bounded by the works that the copy's host holds: who gives up is forgotten at once. The engine
    loads and unloads in the order in which the books changed, one after the other: an adapter that goes and
    is asked for again must not be unloaded behind its second load.

    Args:
        model: The base's name, for metrics and logs.
        loads: Told of each ask: "hit", "load" or "failed"; and of each load's seconds.
        changed: Called when what lies in memory has changed.
    """

    def __init__(
        self,
        runner: Runner,
        budget_bytes: int,
        model: str,
        tasks: Tasks,
        clock: Clock,
        loads: Callable[[str, str, float], None],
        changed: Callable[[], None],
    ) -> None:
        self.known: Mapping[str, ModelSpec] = {}
        """Adapters that may be asked for."""
        self._runner = runner
        self._cache = AdapterCache(budget_bytes)
        self._model = model
        self._tasks = tasks
        self._clock = clock
        self._loads = loads
        self._changed = changed
        self._coming: dict[str, list[Done]] = {}
        self._queue: deque[tuple[float, str, Done]] = deque()  # since when, in monotonic seconds
        self._failed: dict[str, tuple[float, str]] = {}
        self._engine_turn = asyncio.Lock()
        self._closed = False

    @property
    def residents(self) -> Mapping[str, Resident]:
        """Adapters in memory or on their way there."""
        return self._cache.residents

    def know(self, adapters: Mapping[str, ModelSpec], budget_bytes: int) -> None:
        """Replaces what may be asked for. What is not known any more goes when nobody uses it."""
        self.known = dict(adapters)
        self._cache.budget_bytes = budget_bytes
        self._failed = {name: failed for name, failed in self._failed.items() if name in adapters}
        for adapter in [name for name in self._cache.residents if name not in adapters]:
            if self._cache.forget(adapter):
                self._unload([adapter])
        self._unload(self._cache.excess())
        self._serve_queue()

    def take(self, adapter: str, done: Done) -> None:
        """Asks for an adapter on behalf of a work; without an error, `release` has to follow."""
        now = self._clock.monotonic()
        if self._queue and now - self._queue[0][0] >= PATIENCE_S:
            self._queue.append((now, adapter, done))
        else:
            self._ask(adapter, done, now)

    def _ask(self, adapter: str, done: Done, since: float) -> None:
        spec, resident = self.known.get(adapter), self._cache.residents.get(adapter)
        if spec is None and (resident is None or not resident.loaded):
            done(NoExecutor(f"this executor does not know the adapter {adapter}", retry_after_s=1.0))
            return
        if (failed := self._failed.get(adapter)) is not None:
            if self._clock.monotonic() < failed[0]:
                done(_cannot(adapter, failed[1]))
                return
            del self._failed[adapter]
        asked = self._cache.ask(adapter, spec.memory_bytes if spec is not None else 0)
        match asked.place:
            case Place.HERE:
                self._loads(self._model, "hit", 0.0)
                self._cache.begin(adapter)
                done(None)
            case Place.COMING:
                self._coming[adapter].append(done)
            case Place.FULL:
                self._queue.append((since, adapter, done))
            case Place.TOO_LARGE:
                done(_cannot(adapter, "it is larger than adapter_memory_bytes of its base"))
            case Place.LOAD:
                assert spec is not None
                self._coming[adapter] = [done]
                self._tasks.spawn(self._load(spec, list(asked.evict)), f"load {adapter}")

    def give_up(self, adapter: str, done: Done) -> None:
        """A work has ended before `done` was told; it will not be, and nothing is to be released."""
        self._queue = deque(waiting for waiting in self._queue if waiting[2] is not done)
        if (waiting := self._coming.get(adapter)) is not None:
            self._coming[adapter] = [other for other in waiting if other is not done]

    def release(self, adapter: str) -> None:
        """A work has ended for which the adapter was taken."""
        self._cache.end(adapter)
        if self._closed:
            return
        self._let_go(adapter)
        self._unload(self._cache.excess())
        self._serve_queue()

    def close(self) -> None:
        """Nothing is loaded any more; what waits is told nothing."""
        self._closed = True
        self._coming.clear()
        self._queue.clear()

    def _serve_queue(self) -> None:
        """Those that found everything full try again, in order; who still finds no room is in front again."""
        waiting, self._queue = self._queue, deque()
        while waiting:
            since, adapter, done = waiting.popleft()
            self._ask(adapter, done, since)
            if self._queue:
                self._queue.extend(waiting)
                return

    def _let_go(self, adapter: str) -> None:
        """Unloads an adapter that nobody may ask for any more, once nobody uses it."""
        if adapter not in self.known and self._cache.forget(adapter):
            self._unload([adapter])

    async def _load(self, spec: ModelSpec, evict: list[str]) -> None:
        adapter, fault, start = spec.adapter, "", self._clock.monotonic()
        try:
            async with self._engine_turn:
                for name in evict:
                    await self._runner.unload_adapter(name)
                    log.info("adapter unloaded", model=self._model, adapter=name, reason="least recently used")
                await self._runner.load_adapter(spec)
        except LoadFailed as failed:
            fault = str(failed)
        except Exception as error:  # a bug in an engine must not leave works that wait for ever
            log.exception("the engine failed on an adapter", model=self._model, adapter=adapter)
            fault = f"{type(error).__name__} in the engine"
        if self._closed:
            return
        if fault:
            log.error("adapter failed to load", model=self._model, adapter=adapter, reason=fault)
            self._cache.failed(adapter)
            self._failed[adapter] = self._clock.monotonic() + FAILED_S, fault
        else:
            self._cache.loaded(adapter)
        self._loads(self._model, "failed" if fault else "load", self._clock.monotonic() - start)
        for done in self._coming.pop(adapter):
            if not fault:
                self._cache.begin(adapter)
            done(_cannot(adapter, fault) if fault else None)
        self._let_go(adapter)  # where everybody has given up, and it may not be asked for any more
        self._unload(self._cache.excess())  # where the budget has shrunk meanwhile
        self._changed()
        self._serve_queue()

    def _unload(self, adapters: Sequence[str]) -> None:
        if not adapters:
            return

        async def unload() -> None:
            async with self._engine_turn:
                for adapter in adapters:
                    await self._runner.unload_adapter(adapter)

        self._tasks.spawn(unload(), "unload adapters")
        self._changed()


def _cannot(adapter: str, why: str) -> StageUnavailable:
    return StageUnavailable(f"the adapter {model_of(adapter)} cannot be loaded: {why}", retry_after_s=FAILED_S)
