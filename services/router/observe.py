"""The router's metrics."""

from collections.abc import Mapping
from functools import cache

from libs.catalogue import model_of
from libs.telemetry import names
from libs.telemetry.metrics import Metrics
from services.router.breaker import Position

_SEVERITY = {Position.CLOSED: 0, Position.HALF_OPEN: 1, Position.OPEN: 2}


class Observer:
    """Turns what happens into metrics, labelled with the models of pools, routes and their rules: what the catalogue
    and the policy name, so a bounded set."""

    def __init__(self, metrics: Metrics) -> None:
        self._works = cache(metrics.counter(names.ROUTER_WORKS).labels)
        self._running = cache(metrics.gauge(names.ROUTER_RUNNING).labels)
        self._resumes = cache(metrics.counter(names.ROUTER_RESUMES).labels)
        self._lanes = metrics.gauge(names.ROUTER_LANES)
        self._choices = cache(metrics.counter(names.ROUTER_CHOICES).labels)
        self._fallbacks = cache(metrics.counter(names.ROUTER_FALLBACKS).labels)
        self._breakers = metrics.gauge(names.ROUTER_BREAKERS)
        self._hedges = cache(metrics.counter(names.ROUTER_HEDGES).labels)
        self._shadows = cache(metrics.counter(names.ROUTER_SHADOWS).labels)
        self._judgements = cache(metrics.counter(names.ROUTER_JUDGEMENTS).labels)
        self._intents = cache(metrics.counter(names.ROUTER_INTENTS).labels)
        self._parked = metrics.gauge(names.ROUTER_PARKED)
        self._shown: set[str] = set()

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

    def chose(self, route: str, rule: str) -> None:
        """A rule chose the model of a request."""
        self._choices(route, rule).inc()

    def passed_over(self, route: str, model: str, reason: str) -> None:
        """A model of a route could not answer a request."""
        self._fallbacks(route, model, reason).inc()

    def hedged(self, route: str, result: str) -> None:
        """A copy was "sent", or "won"."""
        self._hedges(route, result).inc()

    def shadowed(self, route: str, result: str) -> None:
        """A shadow was "sent", or ended."""
        self._shadows(route, result).inc()

    def judged(self, route: str, model: str, result: str) -> None:
        """An answer of a cascade was "kept" or "escalated"."""
        self._judgements(route, model, result).inc()

    def intent(self, result: str) -> None:
        """What became of a question for an intent."""
        self._intents(result).inc()

    def positions(self, positions: Mapping[str, Position], parked: int) -> None:
        """Where the breakers stand, by pool, and how many works are parked."""
        worst: dict[str, int] = {}
        for pool, position in positions.items():
            model = model_of(pool)
            worst[model] = max(worst.get(model, 0), _SEVERITY[position])
        for model in self._shown - worst.keys():
            self._breakers.remove(model)
        for model, severity in worst.items():
            self._breakers.labels(model).set(severity)
        self._shown = set(worst)
        self._parked.set(parked)
