"""The KV-cache manager's metrics."""

from libs.telemetry import names
from libs.telemetry.metrics import Metrics
from services.kvcache.memory import Memory
from services.kvcache.service import Observer


class MetricsObserver(Observer):
    """Turns what happens into metrics. Pools and executors are those of the registry: bounded sets."""

    def __init__(self, metrics: Metrics) -> None:
        self._lookups = metrics.counter(names.KVCACHE_LOOKUPS)
        self._lookup = metrics.histogram(names.KVCACHE_LOOKUP)
        self._gaps = metrics.counter(names.KVCACHE_GAPS)
        self._indexed = metrics.gauge(names.KVCACHE_INDEXED)
        self._reserved = metrics.gauge(names.KVCACHE_RESERVED)

    def lookup(self, pool: str, result: str, duration_s: float) -> None:
        self._lookups.labels(pool, result).inc()
        self._lookup.labels(pool).observe(duration_s)

    def gap(self, executor: str) -> None:
        self._gaps.labels(executor).inc()

    def caches(self, memory: Memory) -> None:
        """Sets the gauges of all caches; those that are gone vanish."""
        self._indexed.clear()
        self._reserved.clear()
        for cache in memory.caches():
            self._indexed.labels(cache.info.pool, cache.executor).set(cache.indexed)
            self._reserved.labels(cache.info.pool, cache.executor).set(cache.reserved)
