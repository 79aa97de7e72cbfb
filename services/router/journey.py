"""The life of one work in the router, from its plan to its one outcome.

    plan.py has decided ─▶ a shadow goes out, if one is wanted
            ─▶ the first candidate that can answer is asked (search.py)
                 no token within a quantile ─▶ a copy goes out; the first token wins, the other one is cancelled
                 it fails before a token, or has no copy to run on ─▶ the next candidate
                 it answers, and is in doubt ─▶ the cascade's next model; `restart` if tokens had passed
                 none is left ─▶ waits for one to come back, if the route says so; else the last error

What has begun stays where it is: from the first token that passes for good, recovery is the forwarder's and the
batcher's matter. Most works need none of this, and their frames pass as they are.
"""

from collections.abc import Sequence

from msgspec.structs import replace

from libs.catalogue import model_of
from libs.errors import Cancelled, DeadlinePassed, HeadraceError, NoExecutor, Rerouted, StageUnavailable
from libs.lane.draft import Draft
from libs.lane.forwarder import DRAINING
from libs.lane.frame import Frame
from libs.lane.work import POOL_GONE, Note, Outcome, Tokens, Work
from libs.telemetry import names
from libs.telemetry.tracing import Span
from services.router.attempt import Attempt, Kind, Way
from services.router.breaker import verdict
from services.router.candidate import Candidate
from services.router.context import MOST_PARKED, Alarm, Context
from services.router.doubt import doubt
from services.router.fallback import Reject, Try, Wait, has_begun, may_go_elsewhere
from services.router.plan import Plan
from services.router.search import Search
from services.router.shadow import ShadowRun

REROUTES = 3
"""How often a work that has not begun is sent to another version, because its own was withdrawn."""
RETRY_S = 0.25
"""A parked work that was turned away again is tried again after this long, while its wait lasts."""


class Journey:
    """One work. Has at most two attempts at a time, and keeps at most one answer that was in doubt."""

    __slots__ = (
        "_alarms", "_begun", "_cancelled", "_context", "_ended", "_kept", "_live", "_looked", "_number", "_passed",
        "_plan", "_reroutes", "_search", "_span", "_started", "_wait_until", "_way", "_work",
    )  # fmt: skip

    def __init__(self, context: Context, way: Way, number: int, work: Work, plan: Plan, span: Span) -> None:
        self._context = context
        self._way = way
        self._number = number
        self._work = work
        self._plan = plan
        self._span = span
        self._search = Search(context, work, plan, span)
        self._live: list[Attempt] = []
        self._kept: tuple[Attempt, Outcome] | None = None
        """An answer in doubt, which counts if no better one comes."""
        self._alarms: list[Alarm] = []
        self._started = context.clock.monotonic()
        self._begun = False
        """Tokens were seen to pass for good."""
        self._passed = False
        """Tokens have passed of an answer that may be in doubt."""
        self._reroutes = 0
        self._wait_until = 0.0
        self._looked = 0.0
        self._cancelled = False
        self._ended = False

    # --- from in front -----------------------------------------------------------------------------

    def begin(self) -> None:
        """Sends it on its way."""
        plan, context = self._plan, self._context
        hedge_after = None
        if plan.hedge is not None and plan.route is not None:
            hedge_after = context.hedging(plan.route.alias).asked(plan.hedge, self._started)
        self._advance()
        if self._ended:
            return
        if (shadow := self._search.shadow()) is not None and plan.route is not None:
            run = ShadowRun(plan.route.alias, context.shadows, context.observer.shadowed)
            self._way.send(run.attempt(shadow, self._span.traceparent), None, watched=True)
        if hedge_after is not None and not self._begun:
            self._alarms.append(context.alarm(self._started + hedge_after, self._hedge))

    def cancel(self) -> None:
        """The caller changed its mind. An attempt ends where it runs, so that what it used is known."""
        self._cancelled = True
        for copy in self._live[1:]:
            self._drop(copy)
        if self._live:
            self._way.stop(self._live[0])
        else:
            self._fail(Cancelled("cancelled by the caller"))

    def close(self) -> None:
        """The lane in front closed: nothing more is heard of it, from either side."""
        self._ended = True
        self._rest()
        for attempt in self._live:
            attempt.settle(None, self._context.clock.monotonic())
        self._span.event(names.CANCELLED)
        self._span.end()

    # --- from behind: see attempt.Owner -------------------------------------------------------------

    def tokens(self, attempt: Attempt, tokens: Tokens, log_probs: Sequence[float]) -> int | None:
        if not attempt.begun:
            self._first(attempt)
        if attempt.step.judged is not None:
            attempt.answer += tokens
            attempt.log_probs += log_probs
            if not self._plan.streams:
                return None
            self._passed = True
        return self._number

    def noted(self, attempt: Attempt, note: Note) -> None:
        """A work that waits for a copy to run on, and could run elsewhere, goes there."""
        if attempt.kind == "copy":
            return
        if note.waiting and len(self._live) == 1 and self._kept is None and not self._came(attempt):
            now = self._context.clock.monotonic()
            ahead = now >= self._wait_until and self._search.leads_on()
            if isinstance(ahead, Wait):
                self._wait_until = now + ahead.seconds
                self._alarms.append(self._context.alarm(self._wait_until, self._waited))
            elif ahead:
                attempt.settle(False, now)
                self._leave(attempt, note.waiting)
                return
        self._way.sink.on_note(self._number, note)

    def over(self, attempt: Attempt, outcome: Outcome) -> None:
        self._live.remove(attempt)
        attempt.settle(verdict(outcome.error), self._context.clock.monotonic())
        if outcome.error is None:
            self._answered(attempt, outcome)
        elif not self._live:  # else the other one may still answer
            self._failed(attempt, outcome, outcome.error)

    def closed(self, attempt: Attempt) -> None:
        """`close` has seen to it."""

    # --- one step after the other ---------------------------------------------------------------------

    def _advance(self) -> None:
        """Goes on to the next model that takes the work, or ends it."""
        now = self._context.clock.monotonic()
        if now < self._wait_until and self._park():
            return
        while (step := self._search.following(better=self._kept is not None)) is not None:
            if isinstance(step, Reject):
                break
            if isinstance(step, Wait):
                self._wait_until = now + step.seconds
                if self._park():
                    return
            elif self._try(step):
                return
        if self._kept is not None:
            self._deliver(*self._kept)
        else:
            self._fail(self._search.failure)

    def _try(self, step: Try) -> bool:
        """Whether the work is on its way to this model, or has ended."""
        if self._context.draining and self._kept is not None:
            return False  # an answer in doubt is there already
        if self._handed_back():
            return True
        try:
            candidate = self._search.consider(step.model)
        except Rerouted as rerouted:
            return self._reroute(step.model, rerouted)
        except HeadraceError as error:
            self._search.pass_over(step.model, error)
            return False
        self._send(step, candidate, "first")
        return True

    def _reroute(self, model: str, rerouted: Rerouted) -> bool:
        """Has admission make tokens of this model; it comes again with the choice made. That happens once."""
        asked = self._plan.asked
        if asked is None or asked.chosen == model or self._passed:
            said = f"the prompt is not made of the tokens of {model}, which were changed meanwhile"
            self._search.pass_over(model, StageUnavailable(said, retry_after_s=1.0))
            return False
        rerouted.metadata["tried"] = ",".join(self._search.tried)
        self._fail(rerouted)
        return True

    def _send(self, step: Try, candidate: Candidate, kind: Kind) -> None:
        plan, route = self._plan, candidate.route
        changes: dict[str, object] = {"traceparent": self._span.traceparent}
        if step.judged is not None and step.judged.min_mean_log_prob:
            changes["log_probs"] = True
        if kind == "copy":  # without the names of its blocks it is not drawn to where the first one waits
            changes["block_hashes"] = ()
        going = candidate.going(**changes)
        note = Note(route.pin, route.waiting, tried=self._search.tried)
        attempt = Attempt(self, kind, step, going, candidate.breaker, note, self._context.clock.monotonic())
        self._live.append(attempt)
        if self._span.recording:
            self._span.set(names.POOL, going.pool)
            self._span.set(names.REASON, f"{plan.reason}; {route.reason}" if plan.reason else route.reason)
            if going.adapter:
                self._span.set(names.ADAPTER, model_of(going.adapter))
        may_be_void = kind == "copy" or step.judged is not None or self._kept is not None or self._passed
        if not may_be_void:
            attempt.note = None
            self._way.sink.on_note(self._number, note)
        elif route.waiting and kind != "copy":
            self._way.sink.on_note(self._number, Note(waiting=route.waiting))
        self._way.send(attempt, self._number, watched=may_be_void or plan.hedge is not None or attempt.probes)
        if self._cancelled and attempt in self._live:  # by whoever heard the note
            self._way.stop(attempt)

    def _first(self, attempt: Attempt) -> None:
        """A watched attempt has its first token."""
        context, now = self._context, self._context.clock.monotonic()
        attempt.begun = True
        for other in [other for other in self._live if other is not attempt]:
            self._drop(other)
        self._rest()
        if attempt.probes:
            attempt.settle(True, now)
        if self._plan.hedge is not None and self._plan.route is not None:
            context.hedging(self._plan.route.alias).answered(now - self._started, now)
            if attempt.kind == "copy":
                context.observer.hedged(self._plan.route.alias, "won")
        if attempt.step.judged is None or self._plan.streams:
            self._tell(attempt)
        if attempt.step.judged is None:
            self._begun = True
            if attempt.number == self._number:
                self._way.unwatch(attempt)

    def _tell(self, attempt: Attempt) -> None:
        """Tells who answers, just before its tokens pass: what passed before is void, and so is what was kept."""
        note, attempt.note = attempt.note, None
        if note is not None:
            self._way.sink.on_note(self._number, replace(note, restart=True) if self._passed else note)
        self._kept, self._passed = None, False

    # --- how an attempt ends ---------------------------------------------------------------------------

    def _answered(self, attempt: Attempt, outcome: Outcome) -> None:
        for other in list(self._live):
            self._drop(other)
        step, route = attempt.step, self._plan.route
        if step.judged is None or route is None:
            self._tell(attempt)  # should it have no token at all
            self._finish(outcome)
            return
        context = self._context
        text = context.texts.text(step.model, attempt.answer)
        why = doubt(step.judged, context.judge, text, attempt.mean_log_prob, self._work)
        escalates = why is not None and not self._cancelled
        context.observer.judged(route.alias, step.model, "escalated" if escalates else "kept")
        if not escalates:
            self._deliver(attempt, outcome)
            return
        self._kept = attempt, outcome
        self._search.doubted(step.model)
        self._span.event(names.ESCALATED)
        self._span.set(names.REASON, f"the answer of {step.model} is in doubt: {why}")
        self._advance()

    def _failed(self, attempt: Attempt, outcome: Outcome, error: HeadraceError) -> None:
        work, step = self._work, attempt.step
        begun = self._begun or bool(work.resumed) or (step.judged is None and has_begun(work, outcome))
        elsewhere = self._plan.asked is not None and may_go_elsewhere(error, work, self._context.clock.now())
        if begun or self._cancelled:
            self._finish(outcome if begun or self._passed else replace(outcome, output_tokens=0))
        elif isinstance(error, NoExecutor) and POOL_GONE in error.metadata and self._reroutes < REROUTES:
            self._reroutes += 1
            if not self._try(step):
                self._advance()
        elif self._kept is not None or elsewhere:
            self._search.pass_over(step.model, error)
            self._advance()
        else:
            self._finish(outcome if self._passed else replace(outcome, output_tokens=0))

    def _deliver(self, attempt: Attempt, outcome: Outcome) -> None:
        """Passes an answer down that was judged, unless it has passed already."""
        if attempt.note is not None:
            self._tell(attempt)
            if attempt.answer:
                draft = Draft()
                draft.add(self._number, 0, attempt.answer, attempt.log_probs if self._work.log_probs else ())
                self._way.sink.on_frame(Frame.of(draft))
        self._finish(outcome)

    def _fail(self, error: HeadraceError) -> None:
        self._finish(Outcome(error=error, output_tokens=len(self._work.resumed)))

    def _finish(self, outcome: Outcome) -> None:
        """The one outcome."""
        if self._ended:
            return
        self._ended = True
        self._rest()
        for attempt in list(self._live):
            self._drop(attempt)
        if outcome.error is not None:
            self._span.error(outcome.error.message, outcome.error.reason)
        self._span.set(names.EXECUTOR, outcome.executor)
        self._span.end()
        self._way.done(self._number)
        self._way.sink.on_outcome(self._number, outcome)

    def _drop(self, attempt: Attempt) -> None:
        """Ends an attempt of which nothing is wanted any more, and which says nothing of its pool."""
        self._live.remove(attempt)
        attempt.settle(None, self._context.clock.monotonic())
        self._way.drop(attempt)

    def _rest(self) -> None:
        """Wants no alarm any more."""
        self._context.parked.pop(self, None)
        for alarm in self._alarms:
            alarm.stop()
        self._alarms.clear()

    def _handed_back(self) -> bool:
        """Whether it has ended, perhaps because another router is to take it: this one is draining."""
        if self._context.draining:
            self._fail(StageUnavailable("this router is draining", metadata={DRAINING: "true"}, retry_after_s=1.0))
        return self._ended

    # --- what time brings ---------------------------------------------------------------------------------

    def look(self, now: float) -> None:
        """See context.Parked."""
        parked = self._context.parked
        if self._handed_back():
            return
        if self._context.clock.now() >= self._work.deadline:
            said = "the deadline passed while no model of the route could answer"
            self._fail(DeadlinePassed(said, metadata={"stage": "router"}))
        elif now >= self._looked + RETRY_S and (back := self._search.back()) is not None:
            self._looked = now
            del parked[self]
            self._send(*back, "first")
        elif now >= self._wait_until:
            del parked[self]
            self._advance()

    def _park(self) -> bool:
        """Waits without an attempt; False when too many do."""
        parked = self._context.parked
        if len(parked) >= MOST_PARKED:
            self._wait_until = 0.0
            return False
        parked[self] = None
        self._context.stirred()
        models = ", ".join(self._search.tried) or "no model of the route"
        self._way.sink.on_note(self._number, Note(waiting=f"{models} cannot answer now; one of them is waited for"))
        return True

    def _waited(self) -> None:
        """A work that waits in a batcher has waited for as long as its route says."""
        if len(self._live) == 1 and not self._came(self._live[0]):
            self._leave(self._live[0], "it did not come back within the time that the route gives it")

    def _leave(self, attempt: Attempt, why: str) -> None:
        """Goes on from a model that has no copy to run on."""
        model = attempt.step.model
        self._drop(attempt)
        error = NoExecutor(f"{model} cannot answer: {why}", metadata={"model": model}, retry_after_s=2.0)
        self._search.pass_over(model, error)
        self._advance()

    def _came(self, attempt: Attempt) -> bool:
        """Whether an attempt has tokens of its own."""
        return attempt.begun or self._way.passed(attempt) > len(self._work.resumed)

    def _hedge(self) -> None:
        """It is slow: a copy goes out, if there is room for one and a place that would take it at once."""
        if self._cancelled or len(self._live) != 1 or self._live[0].begun or self._plan.route is None:
            return
        if (candidate := self._search.copy(self._live[0])) is not None:
            self._context.observer.hedged(self._plan.route.alias, "sent")
            self._span.event(names.HEDGED)
            self._send(Try(candidate.route.model, "hedge"), candidate, "copy")
