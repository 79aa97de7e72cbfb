"""The executor's metrics."""

from collections.abc import Callable, Mapping

from libs.catalogue import model_of
from libs.clock import Clock
from libs.telemetry import names
from libs.telemetry.metrics import Metrics
from services.executor.engine import RunnerStats, Step
from services.executor.state import CopyStatus, State


class Observer:
    """Turns steps into metrics, and passes them on. Models are those of the catalogue: a bounded set."""

    def __init__(self, metrics: Metrics, clock: Clock, then: Callable[[str, Step], None]) -> None:
        self._works = metrics.counter(names.EXECUTOR_WORKS)
        self._running = metrics.gauge(names.EXECUTOR_RUNNING)
        self._waiting = metrics.gauge(names.EXECUTOR_WAITING)
        self._step = metrics.histogram(names.EXECUTOR_STEP)
        self._batch = metrics.histogram(names.EXECUTOR_BATCH)
        self._blocks = metrics.gauge(names.EXECUTOR_BLOCKS)
        self._clock = clock
        self._tokens = metrics.counter(names.EXECUTOR_TOKENS)
        self._used = metrics.gauge(names.EXECUTOR_USED_BLOCKS)
        self._cached = metrics.gauge(names.EXECUTOR_CACHED_BLOCKS)
        self._preemptions = metrics.counter(names.EXECUTOR_PREEMPTIONS)
        self._swap = metrics.histogram(names.EXECUTOR_ADAPTER_SWAP)
        self._adapters = metrics.gauge(names.EXECUTOR_ADAPTERS)
        self._adapter_asks = metrics.counter(names.EXECUTOR_ADAPTER_ASKS)
        self._adapter_load = metrics.histogram(names.EXECUTOR_ADAPTER_LOAD)
        self._cost = metrics.counter(names.EXECUTOR_COST)
        self._breaker = metrics.gauge(names.EXECUTOR_BREAKER)
        self._copies = metrics.gauge(names.EXECUTOR_COPIES)
        self._load = metrics.histogram(names.EXECUTOR_LOAD)
        self._then = then
        self._models: dict[str, _Model] = {}
        self._held: set[str] = set()

    def on_step(self, pool: str, step: Step) -> None:
        """Once per engine step: everything is bound beforehand."""
        model = model_of(pool)
        known = self._models.get(model)
        if known is None:
            known = self._models[model] = _Model(self, model)
        known.observe(step, self._clock.monotonic())
        for _, outcome in step.outcomes:
            self._works.labels(model, "OK" if outcome.error is None else outcome.error.reason).inc()
        for _, cached_tokens in step.started:
            self._tokens.labels(model, "cached").inc(cached_tokens)
        if step.preempted:
            self._preemptions.labels(model).inc(step.preempted)
        for seconds in step.swaps:
            self._swap.labels(model).observe(seconds)
        self._then(pool, step)

    def adapter_asked(self, model: str, result: str, seconds: float) -> None:
        """A work asked for an adapter; `result` is "hit", "load" or "failed"."""
        self._adapter_asks.labels(model, result).inc()
        if result == "load":
            self._adapter_load.labels(model).observe(seconds)

    def on_cost(self, model: str, currency: str, amount: float) -> None:
        """A work cost this much at an endpoint."""
        self._cost.labels(model, currency).inc(amount)

    def on_breaker(self, model: str, state: int) -> None:
        """An endpoint's breaker is closed (0), half-open (1) or open (2)."""
        self._breaker.labels(model).set(state)

    def loaded(self, model: str, seconds: float) -> None:
        """A copy was loaded."""
        self._load.labels(model).observe(seconds)

    def copies(self, statuses: Mapping[str, CopyStatus]) -> None:
        """The copies that are held changed. A model may have two, of two versions: they are added up."""
        held: dict[str, list[CopyStatus]] = {model: [] for model in self._held}
        for status in statuses.values():
            held.setdefault(status.model, []).append(status)
        self._held = set(held)
        for model, copies in held.items():
            capacities = [copy.capacity for copy in copies if copy.capacity is not None]
            self._blocks.labels(model).set(sum(capacity.blocks for capacity in capacities))
            self._adapters.labels(model).set(sum(a.loaded for copy in copies for a in copy.adapters.values()))
            for state in State:
                self._copies.labels(model, state.name).set(sum(copy.state is state for copy in copies))


class _Model:
    """The metrics of one model."""

    def __init__(self, observer: Observer, model: str) -> None:
        self._running = observer._running.labels(model)
        self._waiting = observer._waiting.labels(model)
        self._used = observer._used.labels(model)
        self._cached = observer._cached.labels(model)
        self._step = observer._step.labels(model)
        self._batch = observer._batch.labels(model)
        self._output = observer._tokens.labels(model, "output")
        self._stats = RunnerStats()
        self._last = 0.0

    def observe(self, step: Step, now: float) -> None:
        if self._stats.running:  # else the time since the last step was idleness
            self._step.observe(now - self._last)
        self._last = now
        if step.frame.work_ids:
            self._batch.observe(len(step.frame.work_ids))
            self._output.inc(len(step.frame.token_ids))
        if step.stats is not self._stats and step.stats != self._stats:
            self._stats = stats = step.stats
            self._running.set(stats.running)
            self._waiting.set(stats.waiting)
            self._used.set(stats.blocks_used)
            self._cached.set(stats.blocks_cached)
