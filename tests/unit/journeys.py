"""Routes of a router by hand, and what tests of a work's life in it share."""

from dataclasses import replace

from libs.errors import HeadraceError, StageUnavailable
from libs.lane.work import Outcome
from services.router.hedge import MIN_TIMES
from services.router.policy import Cascade, Fallback, Hedge, RouteRules
from tests.unit.routing import Routed

FAILED = Outcome(error=StageUnavailable("it failed"))
HEDGED = RouteRules("r", "a", fallbacks=(Fallback("c"),), hedge=Hedge(quantile=0.9, max_share=1.0, model="b"))
KEPT = RouteRules("r", "a", fallbacks=(Fallback("d"),), cascade=Cascade(("c", "b", "a"), min_mean_log_prob=-1.0))
STREAMED = replace(KEPT, cascade=Cascade(("c", "b", "a"), stream_first=True))


def error_of(it: Routed, index: int = 0) -> HeadraceError:
    error = it.heard.outcomes[index].error
    assert error is not None
    return error


def hedged(route: RouteRules = HEDGED) -> Routed:
    """A router that knows that first tokens come within 100 ms."""
    it = Routed(route)
    for index in range(100, 100 + MIN_TIMES):
        it.submit(index)
        it.clock.advance(0.09)
        it.batcher.run()
    it.clock.advance(1)
    return it
