"""Admission's metrics."""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from prometheus_client import Counter, Histogram

from libs.errors import HeadraceError
from libs.lane.work import Outcome, Tier
from libs.telemetry import names
from libs.telemetry.metrics import Metrics
from services.admission.generation import Generation
from services.admission.ladder import LadderState


class Observer:
    """Turns what happens into metrics. Labels are names that the policy knows: bounded sets."""

    def __init__(self, metrics: Metrics) -> None:
        self._requests = cache(metrics.counter(names.ADMISSION_REQUESTS).labels)
        self._running = metrics.gauge(names.ADMISSION_RUNNING)
        self._in_flight: dict[str, int] = {}
        """Requests by door; looked up when Prometheus asks."""
        self._tokens = cache(metrics.counter(names.ADMISSION_TOKENS).labels)
        self._refusals = cache(metrics.counter(names.ADMISSION_REFUSALS).labels)
        self._sessions = metrics.gauge(names.ADMISSION_SESSIONS)
        self._degradation = cache(metrics.gauge(names.ADMISSION_DEGRADATION).labels)
        self._audit_lost = metrics.counter(names.ADMISSION_AUDIT_LOST)
        self._duration = cache(metrics.histogram(names.GEN_AI_SERVER_REQUEST_DURATION).labels)
        self._first_token = cache(metrics.histogram(names.GEN_AI_SERVER_TIME_TO_FIRST_TOKEN).labels)
        self._per_token = cache(metrics.histogram(names.GEN_AI_SERVER_TIME_PER_OUTPUT_TOKEN).labels)
        self._counts = cache(self._bind)

    def refused(self, error: HeadraceError) -> None:
        """A request did not enter."""
        self._refusals(error.reason).inc()

    def started(self, generation: Generation) -> None:
        """A request entered."""
        door = _door(generation.checked.request.in_session)
        if door not in self._in_flight:
            self._in_flight[door] = 0
            self._running.labels(door).set_function(lambda: self._in_flight[door])
        self._in_flight[door] += 1

    def ended(self, generation: Generation, outcome: Outcome, now: float) -> None:
        """A request has its outcome."""
        work, request = generation.work, generation.checked.request
        ok = outcome.error is None or bool(generation.stop)
        code = "OK" if ok or outcome.error is None else outcome.error.reason
        count = self._counts(
            request.in_session, request.chat is not None, work.tenant, generation.checked.spec.name, work.tier, code
        )
        self._in_flight[_door(request.in_session)] -= 1
        count.requests.inc()
        count.prompt.inc(len(work.prompt))
        if outcome.cached_tokens:
            count.cached.inc(outcome.cached_tokens)
        count.output.inc(generation.made)
        count.duration.observe(now - generation.started)
        if ok and generation.first_token is not None:
            labels = count.operation, names.PROVIDER, count.model
            self._first_token(*labels).observe(generation.first_token - generation.started)
            if generation.tokens > 1:
                self._per_token(*labels).observe((now - generation.first_token) / (generation.tokens - 1))

    def _bind(self, in_session: bool, chat: bool, tenant: str, model: str, tier: Tier, code: str) -> "_Counts":
        """What counts requests of one kind."""
        operation = names.CHAT if chat else names.TEXT_COMPLETION
        return _Counts(
            operation,
            model,
            self._requests(_door(in_session), model, tier.name.lower(), code),
            self._tokens(tenant, model, "prompt"),
            self._tokens(tenant, model, "cached"),
            self._tokens(tenant, model, "output"),
            self._duration(operation, names.PROVIDER, model, "" if code == "OK" else code),
        )

    def degraded(self, states: Sequence[LadderState]) -> None:
        """Where the ladders stand."""
        for state in states:
            self._degradation(state.model, state.tier.name.lower()).set(state.level)

    def audit_lost(self, entries: int) -> None:
        """Entries of the audit log could not be written. May be called from any thread."""
        self._audit_lost.inc(entries)

    def sessions(self, change: int) -> None:
        """A session opened (1) or ended (-1)."""
        self._sessions.inc(change)


class _Counts(NamedTuple):
    """The metrics of requests that are alike: looked up once, since a lookup costs as much as counting."""

    operation: str
    model: str
    requests: Counter
    prompt: Counter
    cached: Counter
    output: Counter
    duration: Histogram


def _door(in_session: bool) -> str:
    return "session" if in_session else "generate"
