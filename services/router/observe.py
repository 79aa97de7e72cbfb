"""The router's metrics."""

from libs.telemetry import names
from libs.telemetry.metrics import Metrics


class Observer:
    """Turns what happens into metrics. Pools are models of the catalogue: a bounded set."""

    def __init__(self, metrics: Metrics) -> None:
        self._works = metrics.counter(names.ROUTER_WORKS)
        self._running = metrics.gauge(names.ROUTER_RUNNING)
        self._resumes = metrics.counter(names.ROUTER_RESUMES)
        self._lanes = metrics.gauge(names.ROUTER_LANES)

    def started(self, pool: str) -> None:
        """A work was routed."""
        self._running.labels(pool).inc()

    def ended(self, pool: str, code: str) -> None:
        """A work has its outcome."""
        self._running.labels(pool).dec()
        self._works.labels(pool, code).inc()

    def resumed(self, work_pool: str) -> None:
        """A work was sent again."""
        self._resumes.labels(work_pool).inc()

    def lanes(self, ready: int) -> None:
        """Lanes to batchers that carry works."""
        self._lanes.set(ready)
