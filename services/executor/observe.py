"""The executor's metrics."""

from collections.abc import Callable, Mapping

from libs.clock import Clock
from libs.telemetry import names
from libs.telemetry.metrics import Metrics
from services.executor.engine import RunnerStats, Step
from services.executor.state import ModelStatus


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
        self._then = then
        self._models: dict[str, _Model] = {}

    def on_step(self, model: str, step: Step) -> None:
        """Once per engine step: everything is bound beforehand."""
        known = self._models.get(model)
        if known is None:
            known = self._models[model] = _Model(self, model)
        known.observe(step, self._clock.monotonic())
        for _, outcome in step.outcomes:
            self._works.labels(model, "OK" if outcome.error is None else outcome.error.reason).inc()
        for _, cached_tokens in step.started:
            self._tokens.labels(model, "cached").inc(cached_tokens)
        self._then(model, step)

    def capacities(self, statuses: Mapping[str, ModelStatus]) -> None:
        """The models that are held changed."""
        for model, status in statuses.items():
            self._blocks.labels(model).set(status.blocks)


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
