"""The life of a work in the router: whatever comes in any order, one answer of one model, and one outcome."""

from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from libs.errors import HeadraceError, NoExecutor, Overloaded, RequestInvalid, StageUnavailable
from libs.lane.work import POOL_GONE, Note, Outcome
from services.router.policy import Fallback, Hedge, RouteRules, Shadow
from tests.unit.journeys import HEDGED, KEPT, STREAMED, hedged
from tests.unit.routing import Routed, catalogue

ROUTES = (
    replace(HEDGED, fallbacks=(Fallback("b"), Fallback(wait_s=1.0), Fallback("c"), Fallback(reject=True))),
    replace(HEDGED, hedge=Hedge(0.9, 1.0), shadow=Shadow("d", 1.0)),
    KEPT,
    STREAMED,
)
ENDS = (
    None,
    StageUnavailable("x"),
    NoExecutor("x", metadata={POOL_GONE: "true"}),
    Overloaded("x"),
    RequestInvalid("x"),
)


class AnyOrder(RuleBasedStateMachine):
    """Works of one route, and everything that can come between."""

    @initialize(route=st.sampled_from(ROUTES), doubted=st.sets(st.sampled_from("abc")))
    def start(self, route: RouteRules, doubted: set[str]) -> None:
        self.route = route
        self.it = hedged(route) if route.hedge is not None else Routed(route)
        self.it.doubts = dict.fromkeys(doubted, "it refuses")
        self.submitted = 0
        self.cancelled: set[int] = set()

    @rule(log_probs=st.booleans())
    def submit(self, log_probs: bool) -> None:
        if self.submitted < 12:
            self.it.submit(self.submitted, log_probs=log_probs, deadline=self.it.clock.now() + 600)
            self.submitted += 1

    @rule(data=st.data(), count=st.integers(1, 3))
    def step(self, data: st.DataObject, count: int) -> None:
        works = list(self.it.batcher.works)
        if works:
            some = data.draw(st.lists(st.sampled_from(works), unique=True, min_size=1))
            self.it.batcher.step(*some, count=count)

    @rule(data=st.data(), error=st.sampled_from(ENDS))
    def end(self, data: st.DataObject, error: HeadraceError | None) -> None:
        works = list(self.it.batcher.works)
        if not works:
            return
        number = data.draw(st.sampled_from(works))
        if error is not None:
            self.it.batcher.end(number, Outcome(error=error, output_tokens=data.draw(st.integers(0, 9))))
        else:
            self.it.batcher.step(number, count=8)
            if number in self.it.batcher.works:
                self.it.batcher.end(number)

    @rule(data=st.data())
    def wait(self, data: st.DataObject) -> None:
        works = list(self.it.batcher.works)
        if works:
            number = data.draw(st.sampled_from(works))
            self.it.batcher.sink.on_note(number, Note(waiting="no copy"))

    @rule(seconds=st.sampled_from([0.05, 0.2, 1.5]))
    def pass_time(self, seconds: float) -> None:
        self.it.pass_time(seconds)

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        running = [n for n in range(self.submitted) if n not in self.it.heard.outcomes]
        if running:
            number = data.draw(st.sampled_from(running))
            self.cancelled.add(number)
            self.it.lane.cancel(number)

    @rule(ready=st.sets(st.sampled_from("abcd")), off=st.sets(st.sampled_from("ab"), max_size=1))
    def change(self, ready: set[str], off: set[str]) -> None:
        self.it.known = catalogue(self.route, ready="".join(ready), switched_off=dict.fromkeys(off, "it lies"))

    @rule()
    def cut(self) -> None:
        self.it.batcher.cut()
        self.it.batcher.mend()

    @invariant()
    def whole(self) -> None:
        """The sink asserts gaps, repeats and second outcomes; here: no answer that ended well is a mixture."""
        if not hasattr(self, "it"):
            return
        for number, outcome in self.it.heard.outcomes.items():
            if number < 100 and outcome.error is None:
                assert any(self.it.heard.whole(number, model) for model in "abcd")
        assert self.it.router.parked <= self.submitted

    def teardown(self) -> None:
        if not hasattr(self, "it"):
            return
        it = self.it
        it.known = catalogue(self.route)
        for _ in range(8):
            it.batcher.run()
            it.pass_time(0.3)
        assert set(range(self.submitted)) <= set(it.heard.outcomes)
        assert it.forwarder.in_flight == it.router.parked == 0
        assert it.count("headrace_router_running_works") == 0
        assert not it.lane._journeys
        assert not it.lane._attempts
        assert not it.lane._watched
        assert not it.router._context.shadows._running
        assert len(it.spans) == len(it.heard.outcomes)


AnyOrder.TestCase.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)
test_any_order = AnyOrder.TestCase
