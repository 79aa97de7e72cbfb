"""Which model and pool, and what the router does as a stage."""

from collections import Counter

import pytest

from libs.clock import ManualClock
from libs.errors import Cancelled, ModelUnknown, NoExecutor, StageUnavailable, SwitchedOff
from libs.lane.forwarder import DRAINING, Forwarder
from libs.lane.work import FinishReason, Outcome
from libs.telemetry.metrics import Metrics
from libs.telemetry.span import SpanRecord
from libs.telemetry.tracing import Tracing
from services.router.observe import Observer
from services.router.route import GRACE_S, Catalogue, PoolState, batcher_for, route
from services.router.stage import Router
from tests.unit.lanes import Answers, HandStage, answer, work

NOW = 1000.0
CATALOGUE = Catalogue(
    models=frozenset({"m", "away", "loading", "gone", "off"}),
    aliases={"nice": "m", "dangling": "nobody"},
    switched_off={"off": "it lies"},
    pools={
        "m": PoolState(2, 0, NOW),
        "away": PoolState(0, 0, NOW - GRACE_S),
        "gone": PoolState(0, 0, NOW - GRACE_S - 1),
        "loading": PoolState(0, 1, None),
    },
)


def test_a_model_is_its_own_pool() -> None:
    chosen = route(work(), CATALOGUE, NOW)
    assert (chosen.model, chosen.pool) == ("m", "m")
    assert "2 executors are ready" in chosen.reason


def test_an_alias_is_the_model_behind_it() -> None:
    chosen = route(work(model="nice"), CATALOGUE, NOW)
    assert (chosen.model, chosen.pool) == ("m", "m")
    assert "nice is an alias of m" in chosen.reason


@pytest.mark.parametrize("model", ["nobody", "dangling", ""])
def test_an_unknown_model(model: str) -> None:
    with pytest.raises(ModelUnknown) as raised:
        route(work(model=model), CATALOGUE, NOW)
    assert raised.value.metadata == {"model": model}


def test_a_switch_covers_works_that_have_begun_too() -> None:
    with pytest.raises(SwitchedOff) as raised:
        route(work(model="off", resumed=[0]), CATALOGUE, NOW)
    assert [(v.subject, v.description) for v in raised.value.violations] == [("model/off", "it lies")]


def test_a_pool_that_went_a_moment_ago_is_waited_for() -> None:
    assert route(work(model="away"), CATALOGUE, NOW).pool == "away"
    with pytest.raises(NoExecutor, match="none holds it"):
        route(work(model="gone"), CATALOGUE, NOW)
    with pytest.raises(NoExecutor, match="1 are loading it") as raised:
        route(work(model="loading"), CATALOGUE, NOW)
    assert raised.value.retry_after_s


def test_a_work_that_has_begun_waits_for_its_pool() -> None:
    assert route(work(model="gone", resumed=[0]), CATALOGUE, NOW).pool == "gone"


def test_one_pool_has_one_batcher_and_only_those_of_a_lost_one_move() -> None:
    batchers = [f"batcher-{n}" for n in range(4)]
    pools = [work(pool=f"pool-{n}") for n in range(200)]
    before = {w.pool: batcher_for(w, batchers) for w in pools}
    assert all(count > 20 for count in Counter(before.values()).values())
    after = {w.pool: batcher_for(w, batchers[1:]) for w in pools}
    assert all(after[pool] == batcher for pool, batcher in before.items() if batcher != "batcher-0")


class Routed:
    """A router in front of one batcher, with its spans."""

    def __init__(self) -> None:
        self.clock, self.spans, self.behind, self.answers = ManualClock(NOW), list[SpanRecord](), HandStage(), Answers()
        self.forwarder = Forwarder("router", batcher_for, self.clock)
        self.forwarder.set_neighbours({"batcher-0": self.behind})
        self.metrics = Metrics("router", "router-0", "0")
        self.router = Router(
            self.forwarder,
            lambda: CATALOGUE,
            Tracing("router", "router-0", 1.0, self.spans.append),
            Observer(self.metrics),
            self.clock,
        )
        self.lane = self.router.open(self.answers)


def test_the_router_passes_works_on_under_the_model_that_runs() -> None:
    routed = Routed()
    routed.lane.submit(1, work(1, model="nice", pool=""))
    (sent,) = routed.behind.lane.sent
    assert (sent.model, sent.pool) == ("m", "m")
    assert sent.traceparent
    routed.behind.lane.run()
    assert routed.answers.tokens[1] == answer(sent)
    assert routed.answers.outcomes[1].finish is FinishReason.LENGTH
    assert len(routed.spans) == 1


def test_the_router_refuses_without_asking_anyone() -> None:
    routed = Routed()
    routed.lane.submit(1, work(1, model="nobody", resumed=[1000, 1001]))
    assert isinstance(routed.answers.outcomes[1].error, ModelUnknown)
    assert routed.answers.outcomes[1].output_tokens == 2
    assert not routed.behind.lane.sent
    assert len(routed.spans) == 1


def test_a_draining_router_hands_new_works_back_and_keeps_the_others() -> None:
    routed = Routed()
    routed.lane.submit(1, work(1))
    routed.router.draining = True
    routed.lane.submit(2, work(2))
    error = routed.answers.outcomes[2].error
    assert isinstance(error, StageUnavailable)
    assert DRAINING in error.metadata
    routed.behind.lane.run()
    assert routed.answers.outcomes[1].finish is FinishReason.LENGTH


def test_a_cancel_goes_down_and_its_outcome_comes_up() -> None:
    routed = Routed()
    routed.lane.submit(1, work(1))
    routed.lane.cancel(1)
    (up_id,) = routed.behind.lane.cancels
    routed.behind.lane.end(up_id, Outcome(error=Cancelled("as asked")))
    assert isinstance(routed.answers.outcomes[1].error, Cancelled)


def test_a_lane_that_closes_ends_its_works_and_their_spans() -> None:
    routed = Routed()
    for index in range(3):
        routed.lane.submit(index, work(index))
    routed.lane.close()
    assert sorted(routed.behind.lane.cancels) == sorted(routed.behind.lane.works)
    assert routed.forwarder.in_flight == 0
    assert len(routed.spans) == 3
    routed.behind.lane.run()
    assert not routed.answers.outcomes


async def test_explain_says_why_not() -> None:
    routed = Routed()
    (refusal,) = await routed.router.explain(work(model="nobody"))
    assert (refusal.stage, refusal.choice) == ("router", "refuse")
    assert [d.stage for d in await routed.router.explain(work())] == ["router", "hand"]
    assert await routed.router.queues() == []
