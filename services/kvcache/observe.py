"""The KV-cache manager's metrics."""

from functools import cache

from libs.telemetry import names
from libs.telemetry.metrics import Metrics
from services.kvcache.memory import Memory
from services.kvcache.service import Observer


class MetricsObserver(Observer):
    """Turns what happens into metrics. Pools and executors are those of the registry: bounded sets."""

    def __init__(self, metrics: Metrics) -> None:
        self._lookups = cache(metrics.counter(names.KVCACHE_LOOKUPS).labels)
        self._lookup = cache(metrics.histogram(names.KVCACHE_LOOKUP).labels)
        self._gaps = cache(metrics.counter(names.KVCACHE_GAPS).labels)
        self._indexed = metrics.gauge(names.KVCACHE_INDEXED)
        self._reserved = metrics.gauge(names.KVCACHE_RESERVED)

    def lookup(self, pool: str, result: str, duration_s: float) -> None:
        self._lookups(pool, result).inc()
        self._lookup(pool).observe(duration_s)

    def gap(self, executor: str) -> None:
        self._gaps(executor).inc()

    def caches(self, memory: Memory) -> None:
        """Sets the gauges of all caches; those that are gone vanish."""
        self._indexed.clear()
        self._reserved.clear()
        for view in memory.caches():
            self._indexed.labels(view.info.pool, view.executor).set(view.indexed)
            self._reserved.labels(view.info.pool, view.executor).set(view.reserved)
