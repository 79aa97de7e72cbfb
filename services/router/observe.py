"""The router's metrics."""

from collections.abc import Mapping
from functools import cache

from libs.catalogue import model_of
from libs.telemetry import names
from libs.telemetry.metrics import Metrics
from libs.telemetry.names import Metric
from services.router.breaker import Position

# To be moved to libs/telemetry/names.py, with docs/telemetry.md.
ROUTER_CHOICES = Metric(
    "counter", "headrace_router_choices_total", "Requests of a route, by the rule that chose.", ("route", "rule")
)
ROUTER_FALLBACKS = Metric(
    "counter", "headrace_router_fallbacks_total", "Models passed over, by why they could not answer.",
    ("route", "model", "reason"),
)  # fmt: skip
ROUTER_BREAKERS = Metric(
    "gauge", "headrace_router_breaker_position",
    "The worst of the breakers of a model's pools: 0 closed, 1 half-open, 2 open.", ("model",),
)  # fmt: skip
ROUTER_HEDGES = Metric(
    "counter", "headrace_router_hedges_total", "Copies of slow requests: sent, and won.", ("route", "result")
)
ROUTER_SHADOWS = Metric(
    "counter", "headrace_router_shadows_total", "Shadows: sent, and how they ended (OK, or the reason).",
    ("route", "result"),
)  # fmt: skip
ROUTER_JUDGEMENTS = Metric(
    "counter", "headrace_router_judgements_total", "Answers of cascades: kept, or escalated.",
    ("route", "model", "result"),
)  # fmt: skip
ROUTER_INTENTS = Metric(
    "counter",
    "headrace_router_intents_total",
    "Texts whose intent was asked for: told, none, cached, full, late, untrained or failed.",
    ("result",),
)
ROUTER_PARKED = Metric("gauge", "headrace_router_parked_works", "Works that wait for a model to come back.")

_SEVERITY = {Position.CLOSED: 0, Position.HALF_OPEN: 1, Position.OPEN: 2}


class Observer:
    """Turns what happens into metrics, labelled with the models of pools, routes and their rules: what the catalogue
    and the policy name, so a bounded set."""

    def __init__(self, metrics: Metrics) -> None:
        self._works = cache(metrics.counter(names.ROUTER_WORKS).labels)
        self._running = cache(metrics.gauge(names.ROUTER_RUNNING).labels)
        self._resumes = cache(metrics.counter(names.ROUTER_RESUMES).labels)
        self._lanes = metrics.gauge(names.ROUTER_LANES)
        self._choices = cache(metrics.counter(ROUTER_CHOICES).labels)
        self._fallbacks = cache(metrics.counter(ROUTER_FALLBACKS).labels)
        self._breakers = metrics.gauge(ROUTER_BREAKERS)
        self._hedges = cache(metrics.counter(ROUTER_HEDGES).labels)
        self._shadows = cache(metrics.counter(ROUTER_SHADOWS).labels)
        self._judgements = cache(metrics.counter(ROUTER_JUDGEMENTS).labels)
        self._intents = cache(metrics.counter(ROUTER_INTENTS).labels)
        self._parked = metrics.gauge(ROUTER_PARKED)
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
