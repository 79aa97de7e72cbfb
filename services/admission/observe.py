"""Admission's metrics."""

from collections.abc import Sequence
from functools import cache

from libs.errors import HeadraceError
from libs.lane.work import Outcome
from libs.telemetry import names
from libs.telemetry.metrics import Metrics
from services.admission.generation import Generation
from services.admission.ladder import LadderState


class Observer:
    """Turns what happens into metrics. Labels are names that the policy knows: bounded sets."""

    def __init__(self, metrics: Metrics) -> None:
        self._requests = cache(metrics.counter(names.ADMISSION_REQUESTS).labels)
        self._running = cache(metrics.gauge(names.ADMISSION_RUNNING).labels)
        self._tokens = cache(metrics.counter(names.ADMISSION_TOKENS).labels)
        self._refusals = cache(metrics.counter(names.ADMISSION_REFUSALS).labels)
        self._sessions = metrics.gauge(names.ADMISSION_SESSIONS)
        self._degradation = cache(metrics.gauge(names.ADMISSION_DEGRADATION).labels)
        self._audit_lost = metrics.counter(names.ADMISSION_AUDIT_LOST)
        self._duration = cache(metrics.histogram(names.GEN_AI_SERVER_REQUEST_DURATION).labels)
        self._first_token = cache(metrics.histogram(names.GEN_AI_SERVER_TIME_TO_FIRST_TOKEN).labels)
        self._per_token = cache(metrics.histogram(names.GEN_AI_SERVER_TIME_PER_OUTPUT_TOKEN).labels)

    def refused(self, error: HeadraceError) -> None:
        """A request did not enter."""
        self._refusals(error.reason).inc()

    def started(self, generation: Generation) -> None:
        """A request entered."""
        self._running(_door(generation)).inc()

    def ended(self, generation: Generation, outcome: Outcome, now: float) -> None:
        """A request has its outcome."""
        work, model = generation.work, generation.checked.spec.name
        ok = outcome.error is None or bool(generation.stop)
        code = "OK" if ok or outcome.error is None else outcome.error.reason
        self._running(_door(generation)).dec()
        self._requests(_door(generation), model, work.tier.name.lower(), code).inc()
        self._tokens(work.tenant, model, "prompt").inc(len(work.prompt))
        self._tokens(work.tenant, model, "cached").inc(outcome.cached_tokens)
        self._tokens(work.tenant, model, "output").inc(generation.tokens - len(work.resumed))
        operation = names.CHAT if generation.checked.request.chat is not None else names.TEXT_COMPLETION
        labels = (operation, names.PROVIDER, model)
        self._duration(*labels, "" if ok else code).observe(now - generation.started)
        if ok and generation.first_token is not None:
            self._first_token(*labels).observe(generation.first_token - generation.started)
            if generation.tokens > 1:
                self._per_token(*labels).observe((now - generation.first_token) / (generation.tokens - 1))

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


def _door(generation: Generation) -> str:
    return "session" if generation.checked.request.in_session else "generate"
