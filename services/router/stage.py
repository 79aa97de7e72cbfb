"""The router as a stage: decides the pool of each work and passes it on; queues nothing."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from libs.clock import Clock
from libs.errors import HeadraceError, StageUnavailable
from libs.lane.forwarder import DRAINING, Forwarder, ForwarderLane
from libs.lane.stage import Sink
from libs.lane.work import Decision, Frame, Outcome, QueueState, Work
from libs.telemetry import names
from libs.telemetry.tracing import Span, Tracing
from services.router.observe import Observer
from services.router.route import Catalogue, route


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

    def decide(self, work: Work) -> tuple[Work, str]:
        """The work with its pool, and why. Raises HeadraceError."""
        if self.draining:
            raise StageUnavailable("this router is draining", metadata={DRAINING: "true"}, retry_after_s=1.0)
        chosen = route(work, self._catalogue(), self._clock.monotonic())
        return replace(work, model=chosen.model, pool=chosen.pool), chosen.reason

    async def explain(self, work: Work) -> Sequence[Decision]:
        """The route, and what the batcher says."""
        try:
            routed, reason = self.decide(work)
        except HeadraceError as error:
            return [Decision("router", "refuse", error.message)]
        return [Decision("router", f"pool {routed.pool}", reason), *await self._forwarder.explain(routed)]

    async def queues(self) -> Sequence[QueueState]:
        """A router holds no queue."""
        return []


class RouterLane:
    """Admission's lane; see libs.lane.stage.Lane. Also the sink in front of the forwarder's lane."""

    ready = True

    def __init__(self, router: Router, forwarder: Forwarder, sink: Sink) -> None:
        self._router = router
        self._sink = sink
        self._works: dict[int, tuple[Work, Span]] = {}
        self._lane: ForwarderLane = forwarder.open(self)

    def submit(self, work_id: int, work: Work) -> None:
        span = self._router.tracing.start(
            names.ROUTE,
            work.traceparent,
            attributes={names.GEN_AI_REQUEST_MODEL: work.model, names.RESUMED_TOKENS: len(work.resumed)},
        )
        try:
            routed, reason = self._router.decide(work)
        except HeadraceError as error:
            span.error(error.message, error.reason)
            span.end()
            self._sink.on_outcome(work_id, Outcome(error=error, output_tokens=len(work.resumed)))
            return
        span.set(names.POOL, routed.pool)
        span.set(names.REASON, reason)
        self._works[work_id] = routed, span
        self._router.observer.started(routed.pool)
        self._lane.submit(work_id, replace(routed, traceparent=span.traceparent))

    def cancel(self, work_id: int) -> None:
        self._lane.cancel(work_id)

    def close(self) -> None:
        self._lane.close()
        for work, span in self._works.values():
            span.event(names.CANCELLED)
            span.end()
            self._router.observer.ended(work.pool, "CANCELLED")
        self._works.clear()

    def on_ready(self) -> None:
        """The forwarder's lane is always ready."""

    def on_frame(self, frame: Frame) -> None:
        """Frames pass as they are."""
        self._sink.on_frame(frame)

    def on_outcome(self, work_id: int, outcome: Outcome) -> None:
        work, span = self._works.pop(work_id)
        if outcome.error is not None:
            span.error(outcome.error.message, outcome.error.reason)
        span.set(names.EXECUTOR, outcome.executor)
        span.end()
        self._router.observer.ended(work.pool, "OK" if outcome.error is None else outcome.error.reason)
        self._sink.on_outcome(work_id, outcome)

    def on_broken(self, reason: str) -> None:
        """Never: the forwarder mends its lanes itself."""
        raise AssertionError(reason)
