"""The batcher's metrics."""

from libs.lane.work import Outcome, Tier, Work
from libs.telemetry import names
from libs.telemetry.metrics import Metrics
from services.batcher.pool import Pool


class Observer:
    """Turns what happens into metrics. Pools are models of the catalogue: a bounded set."""

    def __init__(self, metrics: Metrics) -> None:
        self._works = metrics.counter(names.BATCHER_WORKS)
        self._waiting = metrics.gauge(names.BATCHER_WAITING)
        self._waiting_tokens = metrics.gauge(names.BATCHER_WAITING_TOKENS)
        self._running = metrics.gauge(names.BATCHER_RUNNING)
        self._wait = metrics.histogram(names.BATCHER_WAIT)
        self._requeues = metrics.counter(names.BATCHER_REQUEUES)
        self._expired = metrics.counter(names.BATCHER_EXPIRED)

    def queued(self, pool: Pool) -> None:
        """The queue of a pool changed."""
        for tier in Tier:
            label = tier.name.lower()
            self._waiting.labels(pool.name, label).set(pool.queue.waiting(tier))
            self._waiting_tokens.labels(pool.name, label).set(pool.queue.waiting_tokens(tier))

    def dispatched(self, pool: Pool, tier: Tier, waited_s: float) -> None:
        """A work got a slot."""
        self._wait.labels(pool.name, tier.name.lower()).observe(waited_s)
        self._running.labels(pool.name).set(pool.held - len(pool.queue))
        self.queued(pool)

    def requeued(self, cause: str) -> None:
        """A work came back: "broken" or "refused"."""
        self._requeues.labels(cause).inc()

    def expired(self, pool: str) -> None:
        """A work was answered because of its deadline."""
        self._expired.labels(pool).inc()

    def ended(self, work: Work, outcome: Outcome) -> None:
        """A work has its outcome."""
        code = "OK" if outcome.error is None else outcome.error.reason
        self._works.labels(work.pool, work.tier.name.lower(), code).inc()
