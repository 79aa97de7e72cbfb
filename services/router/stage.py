"""The router as a stage: decides the pool of each work and passes it on; queues nothing."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from libs.catalogue import model_of
from libs.clock import Clock
from libs.errors import HeadraceError, NoExecutor, StageUnavailable
from libs.lane.forwarder import DRAINING, Forwarder, ForwarderLane
from libs.lane.stage import Sink
from libs.lane.work import POOL_GONE, Decision, Frame, Note, Outcome, QueueState, Work
from libs.telemetry import names
from libs.telemetry.tracing import Span, Tracing
from services.router.observe import Observer
from services.router.route import Catalogue, Route, route

REROUTES = 3
"""How often a work that has not begun is sent to another version, because its own was withdrawn."""


class Router:
    """A Stage in front of the batchers.

    Args:
        forwarder: Its way to the batchers, and what makes works survive them.
        catalogue: Gives what is known now.
    """

    def __init__(
        self,
        forwarder: Forwarder,
        catalogue: Callable[[], Catalogue],
        tracing: Tracing,
        observer: Observer,
        clock: Clock,
    ) -> None:
        self.draining = False
        self.tracing = tracing
        self.observer = observer
        self._forwarder = forwarder
        self._catalogue = catalogue
        self._clock = clock

    def open(self, sink: Sink) -> "RouterLane":
        """A lane that is ready at once."""
        return RouterLane(self, self._forwarder, sink)

    def decide(self, work: Work) -> tuple[Work, Route]:
        """The work as it goes on, and where. Raises HeadraceError."""
        if self.draining:
            raise StageUnavailable("this router is draining", metadata={DRAINING: "true"}, retry_after_s=1.0)
        chosen = route(work, self._catalogue(), self._clock.monotonic())
        # A prefix that was named for another model or adapter is no prefix of this one.
        hashes = work.block_hashes if chosen.salt == work.salt else ()
        routed = replace(
            work, model=chosen.model, pool=chosen.pool, adapter=chosen.adapter, salt=chosen.salt, block_hashes=hashes
        )
        return routed, chosen

    async def explain(self, work: Work) -> Sequence[Decision]:
        """The route, and what the batcher says."""
        try:
            routed, chosen = self.decide(work)
        except HeadraceError as error:
            return [Decision("router", "refuse", error.message), *self._placement(work)]
        choice = f"pool {routed.pool}" + (f", adapter {routed.adapter}" if routed.adapter else "")
        decision = Decision("router", choice, chosen.reason)
        return [decision, *self._placement(routed), *await self._forwarder.explain(routed)]

    def _placement(self, work: Work) -> Sequence[Decision]:
        """What placement said of the work's model, last."""
        catalogue = self._catalogue()
        spec = catalogue.models.get(catalogue.aliases.get(work.model, work.model))
        if spec is None:
            return []
        base = spec.base or spec.name
        said = [Decision("placement", "place", where) for where in catalogue.placed.get(base, ())]
        if (why := catalogue.unplaced.get(base)) is not None:
            said.append(Decision("placement", "not placed", why))
        return said

    async def queues(self) -> Sequence[QueueState]:
        """A router holds no queue."""
        return []


class _Routed:
    """A work that has been passed on."""

    __slots__ = ("cancelled", "pool", "reroutes", "span", "work")

    def __init__(self, work: Work, span: Span) -> None:
        self.work = work
        """As it came."""
        self.span = span
        self.pool = ""
        self.reroutes = 0
        self.cancelled = False


class RouterLane:
    """Admission's lane; see libs.lane.stage.Lane. Also the sink in front of the forwarder's lane."""

    ready = True

    def __init__(self, router: Router, forwarder: Forwarder, sink: Sink) -> None:
        self._router = router
        self._sink = sink
        self._works: dict[int, _Routed] = {}
        self._lane: ForwarderLane = forwarder.open(self)

    def submit(self, work_id: int, work: Work) -> None:
        span = self._router.tracing.start(
            names.ROUTE,
            work.traceparent,
            attributes={names.GEN_AI_REQUEST_MODEL: work.model, names.RESUMED_TOKENS: len(work.resumed)},
        )
        self._route(work_id, _Routed(work, span))

    def cancel(self, work_id: int) -> None:
        if (routed := self._works.get(work_id)) is not None:
            routed.cancelled = True
        self._lane.cancel(work_id)

    def close(self) -> None:
        self._lane.close()
        for routed in self._works.values():
            routed.span.event(names.CANCELLED)
            routed.span.end()
            self._router.observer.ended(routed.pool, "CANCELLED")
        self._works.clear()

    def on_ready(self) -> None:
        """The forwarder's lane is always ready."""

    def on_frame(self, frame: Frame) -> None:
        """Frames pass as they are."""
        self._sink.on_frame(frame)

    def on_note(self, work_id: int, note: Note) -> None:
        """Notes pass as they are."""
        self._sink.on_note(work_id, note)

    def on_outcome(self, work_id: int, outcome: Outcome) -> None:
        routed = self._works.pop(work_id)
        self._router.observer.ended(routed.pool, "OK" if outcome.error is None else outcome.error.reason)
        if _may_go_elsewhere(routed, outcome):
            routed.reroutes += 1
            self._route(work_id, routed)
            return
        if outcome.error is not None:
            routed.span.error(outcome.error.message, outcome.error.reason)
        routed.span.set(names.EXECUTOR, outcome.executor)
        routed.span.end()
        self._sink.on_outcome(work_id, outcome)

    def on_broken(self, reason: str) -> None:
        """Never: the forwarder mends its lanes itself."""
        raise AssertionError(reason)

    def _route(self, work_id: int, routed: _Routed) -> None:
        work, span = routed.work, routed.span
        try:
            going, chosen = self._router.decide(work)
        except HeadraceError as error:
            span.error(error.message, error.reason)
            span.end()
            self._sink.on_outcome(work_id, Outcome(error=error, output_tokens=len(work.resumed)))
            return
        span.set(names.POOL, going.pool)
        span.set(names.REASON, chosen.reason)
        if going.adapter:
            span.set(names.ADAPTER, model_of(going.adapter))
        routed.pool = going.pool
        self._works[work_id] = routed
        self._router.observer.started(going.pool)
        self._sink.on_note(work_id, Note(chosen.pin, chosen.waiting))
        self._lane.submit(work_id, replace(going, traceparent=span.traceparent))


def _may_go_elsewhere(routed: _Routed, outcome: Outcome) -> bool:
    """Whether the pool vanished before the work began: another version of the model may take it."""
    gone = isinstance(outcome.error, NoExecutor) and POOL_GONE in outcome.error.metadata
    return gone and outcome.output_tokens == 0 and not routed.cancelled and routed.reroutes < REROUTES
