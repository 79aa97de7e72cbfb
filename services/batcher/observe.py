"""The batcher's metrics."""

from collections.abc import Iterable
from functools import cache

from libs.lane.work import Outcome, Tier, Work
from libs.telemetry import names
from libs.telemetry.metrics import Metrics
from services.batcher.pool import Pool


class Observer:
    """Turns what happens into metrics.

    Pools are models of the catalogue, so labels are a bounded set. `labels` costs 2.6 µs, hence the caches.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._works = cache(metrics.counter(names.BATCHER_WORKS).labels)
        self._waiting = cache(metrics.gauge(names.BATCHER_WAITING).labels)
        self._waiting_tokens = cache(metrics.gauge(names.BATCHER_WAITING_TOKENS).labels)
        self._running = cache(metrics.gauge(names.BATCHER_RUNNING).labels)
        self._wait = cache(metrics.histogram(names.BATCHER_WAIT).labels)
        self._requeues = cache(metrics.counter(names.BATCHER_REQUEUES).labels)
        self._expired = cache(metrics.counter(names.BATCHER_EXPIRED).labels)

    def pools(self, pools: Iterable[Pool]) -> None:
        """Sets the gauges; once per tick."""
        for pool in pools:
            for tier in Tier:
                label = tier.name.lower()
                self._waiting(pool.name, label).set(pool.queue.waiting(tier))
                self._waiting_tokens(pool.name, label).set(pool.queue.waiting_tokens(tier))
            self._running(pool.name).set(pool.held - len(pool.queue))

    def dispatched(self, pool: str, tier: Tier, waited_s: float) -> None:
        """A work got a slot."""
        self._wait(pool, tier.name.lower()).observe(waited_s)

    def requeued(self, cause: str) -> None:
        """A work came back: "broken" or "refused"."""
        self._requeues(cause).inc()

    def expired(self, pool: str) -> None:
        """A work was answered because of its deadline."""
        self._expired(pool).inc()

    def ended(self, work: Work, outcome: Outcome) -> None:
        """A work has its outcome."""
        result = "OK" if outcome.error is None else outcome.error.reason
        self._works(work.pool, work.tier.name.lower(), result).inc()
