"""The KV-cache manager's metrics."""

from functools import cache

from libs.catalogue import model_of
from libs.telemetry import names
from libs.telemetry.metrics import Metrics
from services.kvcache.memory import Memory
from services.kvcache.upkeep import Observer


class MetricsObserver(Observer):
    """Turns what happens into metrics, labelled with the models of pools, and with executors: bounded sets. Two
    versions of a model are added up; of their trust, the worse counts."""

    def __init__(self, metrics: Metrics) -> None:
        self._lookups = cache(metrics.counter(names.KVCACHE_LOOKUPS).labels)
        self._lookup = cache(metrics.histogram(names.KVCACHE_LOOKUP).labels)
        self._gaps = cache(metrics.counter(names.KVCACHE_GAPS).labels)
        self._distrusts = cache(metrics.counter(names.KVCACHE_DISTRUSTS).labels)
        self._faults = metrics.counter(names.KVCACHE_FAULTS)
        self._indexed = metrics.gauge(names.KVCACHE_INDEXED)
        self._reserved = metrics.gauge(names.KVCACHE_RESERVED)
        self._trusted = metrics.gauge(names.KVCACHE_TRUSTED)
        self._accuracy = metrics.gauge(names.KVCACHE_ACCURACY)

    def lookup(self, pool: str, result: str, duration_s: float) -> None:
        model = model_of(pool)
        self._lookups(model, result).inc()
        self._lookup(model).observe(duration_s)

    def gap(self, executor: str) -> None:
        self._gaps(executor).inc()

    def distrusted(self, executor: str) -> None:
        self._distrusts(executor).inc()

    def fault(self) -> None:
        self._faults.inc()

    def caches(self, memory: Memory) -> None:
        """Sets the gauges of all caches; those that are gone vanish."""
        for gauge in (self._indexed, self._reserved, self._trusted, self._accuracy):
            gauge.clear()
        worst: dict[tuple[str, str], tuple[bool, float]] = {}
        for view in memory.caches():
            model = model_of(view.info.pool)
            self._indexed.labels(model, view.executor).inc(view.indexed)
            self._reserved.labels(model, view.executor).inc(view.reserved)
            place, trust = (model, view.executor), (view.trusted, view.accuracy)
            worst[place] = min(worst.get(place, trust), trust)
        for place, (trusted, accuracy) in worst.items():
            self._trusted.labels(*place).set(trusted)
            self._accuracy.labels(*place).set(accuracy)
