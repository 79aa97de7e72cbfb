"""What the router does beyond asking one model: hedges, shadows and cascades."""

from dataclasses import replace

import pytest

from libs.errors import Cancelled, DeadlinePassed, RequestInvalid, Rerouted, StageUnavailable
from libs.lane.work import FinishReason, Note, Outcome, Tier
from services.router.policy import Cascade, Hedge, RouteRules, Shadow
from services.router.shadow import TENANT
from tests.unit.journeys import FAILED, HEDGED, KEPT, STREAMED, error_of, hedged
from tests.unit.routing import Routed, answer, asked, catalogue

# --- hedging ------------------------------------------------------------------------------------------------


def test_a_router_hurries_only_while_something_is_timed() -> None:
    it, stirred = hedged(), list[bool]()
    it.router.when_stirred(lambda: stirred.append(it.router.hurries))
    it.pass_time(60)
    assert not it.router.hurries
    it.submit()
    assert stirred == [True]
    assert it.router.hurries
    it.end("a")
    it.pass_time(60)
    assert not it.router.hurries


def test_a_slow_work_is_sent_twice_and_the_first_token_wins() -> None:
    for winner, loser in ("ab", "ba"):
        it = hedged()
        it.submit()
        it.pass_time(0.05)
        assert it.running == ["a"]
        it.pass_time(0.1)
        assert it.running == ["a", "b"]
        lost = it.batcher.of(loser)
        it.batcher.step(it.batcher.of(winner))
        assert it.running == [winner], "the other one is cancelled"
        assert it.batcher.cancels == [lost]
        it.end(winner)
        assert it.heard.whole(0, winner)
        assert it.count("headrace_router_hedges_total", result="sent") == 1
        assert it.count("headrace_router_hedges_total", result="won") == (winner == "b")
        assert it.forwarder.in_flight == 0


def test_tokens_of_both_in_one_frame_make_one_answer() -> None:
    it = hedged()
    it.submit()
    it.submit(1)
    it.batcher.step(it.batcher.of("a") if len(it.running) == 1 else next(iter(it.batcher.works)))
    it.pass_time(0.2)
    it.batcher.step(count=2)
    assert it.running.count("b") + it.running.count("a") == 2
    it.batcher.run()
    assert it.heard.outcomes[0].error is None
    assert it.heard.whole(1, "a") or it.heard.whole(1, "b")


def test_one_of_both_may_fail() -> None:
    for failing, other in ("ab", "ba"):
        it = hedged()
        it.submit()
        it.pass_time(0.2)
        it.end(failing, FAILED)
        assert it.running == [other]
        it.end(other)
        assert it.heard.whole(0, other)


def test_when_both_fail_the_fallbacks_follow() -> None:
    it = hedged()
    it.submit()
    it.pass_time(0.2)
    it.end("b", FAILED)
    it.end("a", FAILED)
    assert it.running == ["c"]
    it.end("c")
    assert it.heard.whole(0, "c")


@pytest.mark.parametrize("late", ["cancel", "close"])
def test_who_gives_up_leaves_nothing_behind(late: str) -> None:
    it = hedged()
    it.submit()
    it.pass_time(0.2)
    if late == "cancel":
        it.lane.cancel(0)
        assert it.running == ["a"], "the first one ends where it runs"
        it.end("a", Outcome(error=Cancelled("as asked")))
        assert isinstance(error_of(it), Cancelled)
    else:
        it.lane.close()
    assert it.forwarder.in_flight == 0


@pytest.mark.parametrize(
    "why", ["async", "no extras", "switched off", "switched off meanwhile", "no budget", "not ready", "quick"]
)
def test_nothing_is_sent_twice_without_need_and_leave(why: str) -> None:
    it = hedged(replace(HEDGED, hedge=Hedge(0.9, 0.01, "b")) if why == "no budget" else HEDGED)
    if why == "switched off":
        it.known = replace(it.known, features_off={"hedging": "dear"})
    if why == "not ready":
        it.known = catalogue(HEDGED, ready="acd")
    it.submit(tier=Tier.ASYNC if why == "async" else Tier.INTERACTIVE, no_extras=why == "no extras")
    if why == "switched off meanwhile":
        it.known = replace(it.known, features_off={"hedging": "dear"})
    if why == "quick":
        it.batcher.step()
    it.pass_time(1)
    assert it.running == ["a"]


def test_a_copy_for_the_same_pool_is_not_drawn_to_the_same_executor() -> None:
    it = hedged(replace(HEDGED, hedge=Hedge(0.9, 1.0)))
    it.submit(block_hashes=[7])
    it.pass_time(0.2)
    first, copy = it.batcher.works.values()
    assert (first.model, list(first.block_hashes)) == ("a", [7])
    assert (copy.model, list(copy.block_hashes)) == ("a", [])


# --- shadows ------------------------------------------------------------------------------------------------

SHADOWED = RouteRules("r", "a", shadow=Shadow("b", 1.0, max_in_flight=2))


def test_nobody_sees_a_shadow() -> None:
    it = Routed(SHADOWED)
    it.submit()
    shadow = it.batcher.works[it.batcher.of("b")]
    assert (shadow.tier, shadow.tenant) == (Tier.ASYNC, TENANT)
    it.batcher.step(count=3)
    it.end("b", FAILED)
    it.end("a")
    assert it.heard.whole(0, "a")
    assert it.heard.notes[0] == [Note("a@1")]
    assert it.count("headrace_router_shadows_total", result="sent") == 1
    assert it.count("headrace_router_shadows_total", result="STAGE_UNAVAILABLE") == 1
    assert [b.pool for b in it.router._context.breakers.states(it.clock.now()) if b.failed] == []


def test_a_shadow_may_outlive_its_work_and_counts_until_it_ends() -> None:
    it = Routed(SHADOWED)
    for index in range(4):
        it.submit(index)
        it.batcher.run() if index == 3 else it.end("a")
    assert it.count("headrace_router_shadows_total", result="sent") == 2
    it.submit(5)
    assert it.running == ["a", "b"]
    it.lane.close()
    it.lane = it.router.open(it.heard)
    it.lane.submit(6, asked(6))
    assert it.count("headrace_router_shadows_total", result="sent") == 4


# --- cascades -----------------------------------------------------------------------------------------------


def test_an_answer_that_is_not_in_doubt_passes_whole() -> None:
    it = Routed(KEPT)
    it.submit()
    assert [one.log_probs for one in it.batcher.works.values()] == [True]
    it.batcher.step(count=5)
    assert not it.heard.tokens
    it.end("c")
    assert it.heard.whole(0, "c")
    assert it.heard.log_probs.get(0, []) == [], "nobody in front asked for them"
    assert it.count("headrace_router_judgements_total", model="c", result="kept") == 1


def test_an_answer_that_streams_has_passed_when_it_is_judged() -> None:
    it = Routed(STREAMED)
    it.submit()
    it.batcher.step(count=5)
    assert it.heard.tokens[0] == answer("c")[:5]
    it.end("c")
    assert it.heard.whole(0, "c")
    assert not it.heard.restarts


@pytest.mark.parametrize("route", [KEPT, STREAMED], ids=["kept", "streamed"])
def test_in_doubt_the_next_model_is_asked_up_to_the_last(route: RouteRules) -> None:
    it = Routed(route)
    it.doubts = {"c": "it refuses", "b": "it refuses", "a": "nobody asks about the last one"}
    it.submit()
    it.end("c")
    assert it.running == ["b"]
    assert 0 not in it.heard.restarts, "nothing is void before something better is there"
    it.end("b")
    it.end("a")
    assert it.heard.whole(0, "a")
    assert it.heard.restarts == ({0: 2} if route is STREAMED else {})
    assert it.heard.notes[0][-1].tried == ("c", "b")
    assert it.heard.outcomes[0].output_tokens == 8
    assert it.count("headrace_router_judgements_total", result="escalated") == 2


def test_who_asked_for_log_probabilities_has_them() -> None:
    it = Routed(KEPT)
    it.submit(log_probs=True)
    it.end("c")
    assert it.heard.log_probs[0] == [-0.5] * 8


def test_the_mean_log_probability_is_looked_at() -> None:
    it = Routed(replace(KEPT, cascade=Cascade(("c", "a"), min_mean_log_prob=-0.4)))
    it.submit()
    it.end("c")
    assert it.running == ["a"]
    it.end("a")
    assert it.heard.whole(0, "a")
    (span,) = it.spans
    assert [event.name for event in span.events] == ["escalated"]


def test_what_cannot_be_judged_is_in_doubt() -> None:
    it = Routed(KEPT)
    it.texts.loading = {"c"}
    it.submit()
    it.end("c")
    assert it.running == ["b"]


@pytest.mark.parametrize("route", [KEPT, STREAMED], ids=["kept", "streamed"])
def test_an_answer_in_doubt_is_better_than_none(route: RouteRules) -> None:
    for error in (StageUnavailable("x"), RequestInvalid("x"), DeadlinePassed("x")):
        it = Routed(route)
        it.doubts = {"c": "it refuses"}
        it.submit()
        it.end("c")
        it.end("b", Outcome(error=error))
        it.end("a", Outcome(error=error))
        assert it.heard.whole(0, "c"), "the fallbacks are for those without an answer"
        assert it.running == []
        it = Routed(known=catalogue(route, ready="cd"))
        it.doubts = {"c": "it refuses"}
        it.submit()
        it.end("c")
        assert it.heard.whole(0, "c")


@pytest.mark.parametrize("route", [KEPT, STREAMED], ids=["kept", "streamed"])
def test_a_model_of_a_cascade_that_fails_is_passed_over_even_in_mid_answer(route: RouteRules) -> None:
    it = Routed(route)
    it.submit()
    it.batcher.step(count=3)
    it.end("c", FAILED)
    it.end("b", FAILED)
    it.end("a", FAILED) if route is KEPT else it.end("a")
    if route is KEPT:
        it.end("d")
    assert it.heard.whole(0, "d" if route is KEPT else "a")


def test_an_empty_answer_of_a_cascade_is_an_answer() -> None:
    for route in (KEPT, STREAMED):
        it = Routed(route)
        it.submit()
        it.end("c", Outcome(FinishReason.STOP))
        assert it.heard.outcomes[0].finish is FinishReason.STOP
        assert it.heard.tokens.get(0, []) == []
        assert it.heard.pools[0] == "c@1"


def test_who_cancels_a_cascade_gets_what_there_is() -> None:
    it = Routed(STREAMED)
    it.doubts = {"c": "it refuses"}
    it.submit()
    it.batcher.step(count=2)
    it.lane.cancel(0)
    it.end("c", Outcome(error=Cancelled("as asked")))
    assert isinstance(error_of(it), Cancelled)
    assert it.heard.outcomes[0].output_tokens == 2
    it = Routed(KEPT)
    it.submit()
    it.batcher.step(count=2)
    it.lane.cancel(0)
    it.end("c", Outcome(error=Cancelled("as asked")))
    assert it.heard.outcomes[0].output_tokens == 0


def test_a_better_model_with_other_tokens_is_admissions_to_ask() -> None:
    it = Routed(RouteRules("r", "a", cascade=Cascade(("c", "x"), stream_first=True)))
    it.doubts = {"c": "it refuses"}
    it.submit()
    it.end("c")
    error = error_of(it)
    assert isinstance(error, Rerouted)
    assert error.metadata == {"model": "x", "tried": "c"}
    assert not it.heard.tokens
