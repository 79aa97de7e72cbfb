"""Admission's lane to the router: works in, and the way of their attempts to the batchers and back.

The first attempt of a work goes under the number that the work has in front, so a frame passes as it is unless a
work in it is watched: one that waits for its first token, is judged, or runs under a number of its own.
"""

from itertools import count

from libs.errors import Cancelled, HeadraceError, StageUnavailable
from libs.lane.forwarder import DRAINING, ForwarderLane
from libs.lane.frame import Frame
from libs.lane.stage import Sink
from libs.lane.work import Note, Outcome, Work
from libs.telemetry import names
from libs.telemetry.tracing import Span
from services.router.attempt import Attempt
from services.router.context import Context
from services.router.journey import Journey
from services.router.plan import plan_of
from services.router.rules import IntentWanted


class RouterLane:
    """See libs.lane.stage.Lane; also the sink in front of the forwarder's lane, and the Way of journeys."""

    ready = True

    def __init__(self, context: Context, sink: Sink) -> None:
        self.sink = sink
        self._context = context
        self._asking: dict[int, tuple[Work, Span]] = {}
        """Works whose intent is being told."""
        self._journeys: dict[int, Journey] = {}
        self._attempts: dict[int, Attempt] = {}
        self._watched: dict[int, Attempt] = {}
        self._own = count(-1, -1)  # numbers that no stage in front has
        self._lane: ForwarderLane = context.forwarder.open(self)

    # --- from in front -----------------------------------------------------------------------------

    def submit(self, work_id: int, work: Work) -> None:
        span = self._context.tracing.start(names.ROUTE, work.traceparent)
        if span.recording:
            span.set(names.GEN_AI_REQUEST_MODEL, work.model)
            span.set(names.RESUMED_TOKENS, len(work.resumed))
        self._plan(work_id, work, span, None)

    def cancel(self, work_id: int) -> None:
        if (journey := self._journeys.get(work_id)) is not None:
            journey.cancel()
        elif (asking := self._asking.pop(work_id, None)) is not None:
            self._refuse(work_id, *asking, Cancelled("cancelled by the caller"))

    def close(self) -> None:
        self._lane.close()
        attempts, self._attempts = list(self._attempts.values()), {}
        journeys, self._journeys = list(self._journeys.values()), {}
        self._watched.clear()
        for _, span in self._asking.values():
            span.end()
        self._asking.clear()
        for journey in journeys:
            journey.close()
        for attempt in attempts:
            attempt.owner.closed(attempt)
            self._context.observer.ended(attempt.going.pool, "CANCELLED")

    def _plan(self, work_id: int, work: Work, span: Span, intent: str | None) -> None:
        context = self._context
        if context.draining:
            said = "this router is draining"
            error = StageUnavailable(said, metadata={DRAINING: "true"}, retry_after_s=1.0)
            self._refuse(work_id, work, span, error)
            return
        try:
            plan = plan_of(work, context.catalogue(), intent)
        except IntentWanted:
            if work.asked is None or not work.asked.text:
                self._plan(work_id, work, span, "")
                return
            self._asking[work_id] = asking = work, span
            context.intents.ask(work.asked.text, lambda intent: self._told(work_id, asking, intent))
            return
        if plan.route is not None:
            context.observer.chose(plan.route.alias, plan.rule)
            span.set(names.RULE, plan.rule)
        journey = self._journeys[work_id] = Journey(context, self, work_id, work, plan, span)
        journey.begin()

    def _told(self, work_id: int, asking: tuple[Work, Span], intent: str) -> None:
        if self._asking.get(work_id) is asking:  # else it was cancelled meanwhile
            del self._asking[work_id]
            self._plan(work_id, *asking, intent)

    def _refuse(self, work_id: int, work: Work, span: Span, error: HeadraceError) -> None:
        span.error(error.message, error.reason)
        span.end()
        self.sink.on_outcome(work_id, Outcome(error=error, output_tokens=len(work.resumed)))

    # --- the way of attempts -------------------------------------------------------------------------

    def send(self, attempt: Attempt, number: int | None, *, watched: bool) -> None:
        """See attempt.Way."""
        number = next(self._own) if number is None or number in self._attempts else number
        attempt.number = number
        self._attempts[number] = attempt
        if watched or number < 0:
            self._watched[number] = attempt
        self._context.observer.started(attempt.going.pool)
        self._lane.submit(number, attempt.going)

    def stop(self, attempt: Attempt) -> None:
        """See attempt.Way."""
        self._lane.cancel(attempt.number)

    def drop(self, attempt: Attempt) -> None:
        """See attempt.Way."""
        del self._attempts[attempt.number]
        self._watched.pop(attempt.number, None)
        self._context.observer.ended(attempt.going.pool, "CANCELLED")
        self._lane.forget(attempt.number)

    def passed(self, attempt: Attempt) -> int:
        """See attempt.Way."""
        return self._lane.passed(attempt.number)

    def unwatch(self, attempt: Attempt) -> None:
        """See attempt.Way."""
        self._watched.pop(attempt.number, None)

    def done(self, number: int) -> None:
        """See attempt.Way."""
        self._journeys.pop(number, None)

    # --- from behind -------------------------------------------------------------------------------

    def on_ready(self) -> None:
        """The forwarder's lane is always ready."""

    def on_frame(self, frame: Frame) -> None:
        """Frames pass as they are, unless somebody in them is watched."""
        if self._watched and not self._watched.keys().isdisjoint(frame.work_ids.tolist()):
            frame = self._looked_at(frame)
            if not frame:
                return
        self.sink.on_frame(frame)

    def on_note(self, work_id: int, note: Note) -> None:
        if (attempt := self._attempts.get(work_id)) is not None:
            attempt.owner.noted(attempt, note)

    def on_outcome(self, work_id: int, outcome: Outcome) -> None:
        attempt = self._attempts.pop(work_id)
        self._watched.pop(work_id, None)
        self._context.observer.ended(attempt.going.pool, "OK" if outcome.error is None else outcome.error.reason)
        attempt.owner.over(attempt, outcome)

    def on_broken(self, reason: str) -> None:
        """Never: the forwarder mends its lanes itself."""
        raise AssertionError(reason)

    def _looked_at(self, frame: Frame) -> Frame:
        """What of a frame passes, under the numbers that it has in front."""
        places: list[int] = []
        numbers: list[int] = []
        for place, (number, _, tokens, log_probs) in enumerate(frame.entries()):
            attempt = self._attempts.get(number)
            if attempt is None:
                continue  # dropped for one that stands in front of it in this very frame
            passed: int | None = number
            if number in self._watched:
                passed = attempt.owner.tokens(attempt, tokens, log_probs)
            if passed is not None:
                places.append(place)
                numbers.append(passed)
        return frame.chosen(places, numbers)
