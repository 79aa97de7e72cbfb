"""The router's metrics."""

from functools import cache

from libs.catalogue import model_of
from libs.telemetry import names
from libs.telemetry.metrics import Metrics


class Observer:
    """Turns what happens into metrics, labelled with the models of pools: a bounded set."""

    def __init__(self, metrics: Metrics) -> None:
        self._works = cache(metrics.counter(names.ROUTER_WORKS).labels)
        self._running = cache(metrics.gauge(names.ROUTER_RUNNING).labels)
        self._resumes = cache(metrics.counter(names.ROUTER_RESUMES).labels)
        self._lanes = metrics.gauge(names.ROUTER_LANES)

    def started(self, pool: str) -> None:
        """A work was routed."""
        self._running(model_of(pool)).inc()

    def ended(self, pool: str, code: str) -> None:
        """A work has its outcome."""
        self._running(model_of(pool)).dec()
        self._works(model_of(pool), code).inc()

    def resumed(self, pool: str) -> None:
        """A work was sent again."""
        self._resumes(model_of(pool)).inc()

    def lanes(self, ready: int) -> None:
        """Lanes to batchers that carry works."""
        self._lanes.set(ready)
