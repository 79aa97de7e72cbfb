"""Where may a work go next? The steps of its plan, one after the other, against what is known now. Pure."""

from libs.errors import CallerError, HeadraceError, NoExecutor, NotSupported, Rerouted
from libs.lane.work import Work
from libs.telemetry import names
from libs.telemetry.tracing import Span
from services.router.attempt import Attempt
from services.router.breaker import Position
from services.router.candidate import BREAKER, Candidate, consider
from services.router.context import Context
from services.router.fallback import Reject, Step, Try, Wait
from services.router.plan import Plan


class Search:
    """Of one work. Each model is asked for once, in order, but for those that are waited for."""

    __slots__ = ("_context", "_error", "_plan", "_position", "_span", "_tried", "_work")

    def __init__(self, context: Context, work: Work, plan: Plan, span: Span) -> None:
        self._context = context
        self._work = work
        self._plan = plan
        self._span = span
        self._position = 0
        """Of the next step."""
        self._tried: list[str] = []
        self._error: HeadraceError | None = None
        """Of the last model that was passed over."""

    @property
    def tried(self) -> tuple[str, ...]:
        """Models that could not answer, or were in doubt, before it came here included."""
        asked = self._plan.asked
        return (*(asked.tried if asked is not None else ()), *self._tried)

    @property
    def failure(self) -> HeadraceError:
        """Why nobody can answer."""
        if self._error is not None:
            return self._error
        said = f"none of the route's models is left: {', '.join(self.tried) or 'all'} could not answer"
        return NoExecutor(said, retry_after_s=1.0)

    def following(self, *, better: bool) -> Step | None:
        """The next step; None when there is none.

        Args:
            better: Only the next model of the cascade counts: there is an answer already, if one in doubt.
        """
        if self._position == len(self._plan.steps):
            return None
        step = self._plan.steps[self._position]
        if better and not (isinstance(step, Try) and step.why == "cascade"):
            return None
        self._position += 1
        return step

    def consider(self, model: str) -> Candidate:
        """See candidate.consider."""
        context = self._context
        now = context.clock.monotonic()
        return consider(self._work, self._plan.asked, model, context.catalogue(), context.breakers, now)

    def at_once(self, model: str, *, closed: bool = False) -> Candidate | None:
        """The model, if it takes the work and has a copy to run it; with `closed` only if nothing speaks against its
        pool, either: what nobody waits for is no probe."""
        try:
            candidate = self.consider(model)
        except HeadraceError:
            return None
        now = self._context.clock.monotonic()
        if closed and candidate.breaker.position(now) is not Position.CLOSED:
            return None
        return candidate if candidate.at_once() else None

    def leads_on(self) -> Wait | bool:
        """Whether the steps ahead lead somewhere now, or to an end; the Wait, if they say to wait first: then that
        step is taken."""
        for index in range(self._position, len(self._plan.steps)):
            step = self._plan.steps[index]
            if isinstance(step, Wait):
                self._position = index + 1
                return step
            if isinstance(step, Reject) or self._takes(step.model):
                return True
        return False

    def back(self) -> tuple[Try, Candidate] | None:
        """The first of the models behind that takes the work now."""
        for step in self._plan.steps[: self._position]:
            if isinstance(step, Try) and (candidate := self.at_once(step.model)) is not None:
                return step, candidate
        return None

    def pass_over(self, model: str, error: HeadraceError) -> None:
        """Remembers that a model could not answer, and why."""
        if self._error is None or not isinstance(error, CallerError):
            self._error = error
        if self._plan.route is None:
            return
        if not isinstance(error, NotSupported):
            self.doubted(model)
        reason = "BREAKER_OPEN" if BREAKER in error.metadata else error.reason
        self._context.observer.passed_over(self._plan.route.alias, model, reason)
        self._span.event(names.FALLBACK)

    def doubted(self, model: str) -> None:
        """Remembers that a model was tried."""
        if model not in self._tried:
            self._tried.append(model)

    def copy(self, first: Attempt) -> Candidate | None:
        """Where a copy of a slow work may go, if the rules still want one; it is paid then."""
        plan, context = self._plan, self._context
        if plan.hedge is None or plan.route is None or "hedging" in context.catalogue().features_off:
            return None
        candidate = self.at_once(plan.hedge.model or first.step.model, closed=True)
        return candidate if candidate is not None and context.hedging(plan.route.alias).spend() else None

    def shadow(self) -> Candidate | None:
        """Where a shadow goes, if the work is to have one."""
        plan = self._plan
        if not plan.shadow or plan.route is None or plan.route.shadow is None or plan.asked is None:
            return None
        if not self._context.shadows.wanted(self._work, plan.asked, plan.route):
            return None
        return self.at_once(plan.route.shadow.model, closed=True)

    def _takes(self, model: str) -> bool:
        """Whether a model would take the work at once, perhaps in tokens of its own."""
        known = self._context.catalogue()
        try:
            return self.consider(model).at_once()
        except Rerouted:
            spec = known.models[model]
            return any(state.ready for state in known.versions.get(spec.base or spec.name, {}).values())
        except HeadraceError:
            return False
