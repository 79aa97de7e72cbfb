"""The life of a work in the router: whatever happens to its attempts, one answer of one model, and one outcome."""

from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from msgspec import structs

from libs.errors import (
    Cancelled,
    DeadlinePassed,
    HeadraceError,
    InternalError,
    NoExecutor,
    Overloaded,
    RequestInvalid,
    Rerouted,
    StageUnavailable,
)
from libs.lane.forwarder import DRAINING
from libs.lane.work import POOL_GONE, FinishReason, Note, Outcome, Tier
from services.router import context
from services.router.hedge import MIN_TIMES
from services.router.policy import BreakerRule, Cascade, Fallback, Hedge, RouteRules, Rule, Shadow
from services.router.shadow import TENANT
from tests.unit.routing import Routed, answer, asked, catalogue

FAILED = Outcome(error=StageUnavailable("it failed"))
CHAIN = RouteRules("r", "a", fallbacks=(Fallback("b"), Fallback("c")))


def error_of(it: Routed, index: int = 0) -> HeadraceError:
    error = it.heard.outcomes[index].error
    assert error is not None
    return error


def note(it: Routed, model: str, waiting: str) -> None:
    """What a batcher says of a work that has no copy to run on."""
    it.batcher.sink.on_note(it.batcher.of(model), Note(waiting=waiting))


# --- fallbacks --------------------------------------------------------------------------------------------


def test_an_ordinary_work_goes_its_way_under_its_own_number() -> None:
    it = Routed(CHAIN)
    it.submit()
    assert [one.asked for one in it.batcher.works.values()] == [None]
    it.end("a")
    assert it.heard.whole(0, "a")
    assert it.heard.notes[0] == [Note("a@1")]
    assert it.count("headrace_router_choices_total", route="r", rule="model") == 1


@pytest.mark.parametrize(
    "error", [StageUnavailable("x"), NoExecutor("x"), InternalError("x"), Overloaded("x"), DeadlinePassed("late there")]
)
def test_a_model_that_fails_before_a_token_is_passed_over(error: HeadraceError) -> None:
    it = Routed(CHAIN)
    it.submit()
    it.end("a", Outcome(error=error))
    assert it.running == ["b"]
    it.end("b")
    assert it.heard.whole(0, "b")
    assert it.heard.notes[0] == [Note("a@1"), Note("b@1", tried=("a",))]
    assert it.count("headrace_router_fallbacks_total", route="r", model="a", reason=error.reason) == 1
    (span,) = it.spans
    assert [event.name for event in span.events] == ["fallback"]


@pytest.mark.parametrize("error", [RequestInvalid("wrong"), Cancelled("gone")])
def test_what_is_the_callers_fault_or_wish_is_no_reason_to_go_elsewhere(error: HeadraceError) -> None:
    it = Routed(CHAIN)
    it.submit()
    it.end("a", Outcome(error=error))
    assert error_of(it) is error
    assert not it.running


def test_a_deadline_that_is_past_is_past_everywhere() -> None:
    it = Routed(CHAIN)
    it.submit(deadline=it.clock.now() + 1)
    it.clock.advance(1)
    it.end("a", Outcome(error=DeadlinePassed("late")))
    assert isinstance(error_of(it), DeadlinePassed)


def test_what_has_begun_stays() -> None:
    it = Routed(CHAIN)
    it.submit()
    it.batcher.step(count=1)
    it.end("a", FAILED)
    assert error_of(it).message == "it failed"
    assert it.heard.outcomes[0].output_tokens == 1
    it.submit(1, resumed=[1], pool="a@1")
    it.heard.tokens[1] = [1]
    it.end("a", FAILED)
    assert it.heard.outcomes[1].output_tokens == 1
    assert not it.running


def test_when_nobody_can_answer_the_last_error_counts() -> None:
    it = Routed(CHAIN)
    it.submit()
    for model in "abc":
        it.end(model, Outcome(error=StageUnavailable(f"{model} failed")))
    assert error_of(it).message == "c failed"
    assert len(it.spans) == len(it.heard.outcomes) == 1
    assert it.forwarder.in_flight == 0


def test_models_that_cannot_be_asked_are_passed_over_at_once() -> None:
    it = Routed(known=catalogue(CHAIN, ready="bc", switched_off={"b": "it lies"}))
    it.submit()
    assert it.running == ["c"]
    assert it.heard.notes[0] == [Note("c@1", tried=("a", "b"))]


def test_nothing_behind_a_reject_is_tried() -> None:
    it = Routed(RouteRules("r", "a", fallbacks=(Fallback(reject=True), Fallback("b"))))
    it.submit()
    it.end("a", FAILED)
    assert error_of(it).message == "it failed"


def test_a_model_with_other_tokens_is_admissions_to_ask() -> None:
    it = Routed(RouteRules("r", "a", fallbacks=(Fallback("x"), Fallback("b"))))
    it.submit()
    it.end("a", FAILED)
    error = error_of(it)
    assert isinstance(error, Rerouted)
    assert error.metadata == {"model": "x", "tried": "a"}
    it.submit(1, chosen="x", tokens_of="x", tried=("a",))
    assert it.running == ["x"]
    assert it.heard.notes[1] == [Note("x@1", tried=("a",))]
    it.end("x", FAILED)
    again = error_of(it, 1)
    assert isinstance(again, Rerouted)
    assert again.metadata == {"model": "b", "tried": "a,x"}


def test_a_choice_whose_tokens_have_changed_meanwhile_is_passed_over() -> None:
    it = Routed(RouteRules("r", "a", fallbacks=(Fallback("x"),)))
    it.submit(chosen="x", tokens_of="b", tried=("a",))
    assert isinstance(error_of(it), StageUnavailable)


def test_a_draining_router_hands_back_what_would_go_elsewhere() -> None:
    it = Routed(CHAIN)
    it.submit()
    it.router.draining = True
    it.end("a", FAILED)
    assert DRAINING in error_of(it).metadata


# --- a copy that is not there -------------------------------------------------------------------------------


def test_a_work_that_waits_for_a_copy_goes_where_there_is_one() -> None:
    it = Routed(CHAIN)
    it.submit()
    note(it, "a", "no executor has a yet")
    assert it.running == ["b"]
    it.end("b")
    assert it.heard.whole(0, "b")
    assert it.count("headrace_router_fallbacks_total", model="a", reason="NO_EXECUTOR") == 1


def test_where_there_is_no_copy_either_it_waits_and_says_why() -> None:
    it = Routed(known=catalogue(CHAIN, ready="a"))
    it.submit()
    note(it, "a", "a is being loaded")
    assert it.running == ["a"]
    assert it.heard.notes[0][-1] == Note(waiting="a is being loaded")
    it.end("a")
    assert it.heard.whole(0, "a")


def test_a_work_with_tokens_waits_where_it_began() -> None:
    it = Routed(CHAIN)
    it.submit()
    it.batcher.step(count=1)
    note(it, "a", "no executor has a yet")
    assert it.running == ["a"]


def test_a_work_waits_in_its_queue_for_as_long_as_the_route_says() -> None:
    it = Routed(RouteRules("r", "a", fallbacks=(Fallback(wait_s=2.0), Fallback("b"))))
    it.submit()
    note(it, "a", "no executor has a yet")
    note(it, "a", "a is being loaded")
    it.pass_time(1.9)
    assert it.running == ["a"]
    it.pass_time(0.2)
    assert it.running == ["b"]
    it.submit(1)
    note(it, "a", "no executor has a yet")
    it.batcher.step(it.batcher.of("a"))
    it.pass_time(3)
    assert it.running == ["b", "a"], "it came back in time"


def test_a_work_that_was_turned_away_waits_without_a_queue() -> None:
    route = RouteRules("r", "a", fallbacks=(Fallback(wait_s=2.0), Fallback("b")))
    it = Routed(route)
    it.submit()
    it.known = catalogue(route, ready="b")
    it.end("a", FAILED)
    assert it.running == []
    assert it.router.parked == 1
    assert it.heard.notes[0][-1].waiting
    it.pass_time(1)
    it.known = catalogue(route)
    it.pass_time(0.1)
    assert it.running == ["a"]
    assert it.router.parked == 0
    it.end("a", FAILED)
    assert it.router.parked == 1, "some of its wait is left"
    it.pass_time(0.1)
    assert it.running == []
    it.pass_time(0.2)
    assert it.running == ["a"], "and it is tried again"
    it.pass_time(2)
    it.end("a", FAILED)
    assert it.running == ["b"]


def test_a_wait_ends_with_its_time_the_deadline_a_cancel_or_a_drain() -> None:
    route = RouteRules("r", "a", fallbacks=(Fallback(wait_s=2.0),))
    it = Routed(known=catalogue(route, ready=""))
    for index, left in enumerate((60.0, 0.5, 60.0, 60.0)):
        it.submit(index, deadline=it.clock.now() + left)
    assert it.router.parked == 4
    it.lane.cancel(2)
    assert isinstance(error_of(it, 2), Cancelled)
    it.pass_time(1)
    assert isinstance(error_of(it, 1), DeadlinePassed)
    it.pass_time(1.1)
    assert isinstance(error_of(it, 0), NoExecutor)
    assert set(it.heard.outcomes) == {0, 1, 2, 3}
    it.submit(4)
    it.router.draining = True
    it.router.tick()
    assert DRAINING in error_of(it, 4).metadata
    assert it.router.parked == 0


def test_only_so_many_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.router.journey.MOST_PARKED", 2)
    assert context.MOST_PARKED > 2
    it = Routed(known=catalogue(RouteRules("r", "a", fallbacks=(Fallback(wait_s=2.0), Fallback("b"))), ready="b"))
    for index in range(3):
        it.submit(index)
    assert it.router.parked == 2
    assert it.running == ["b"], "the third goes on"


# --- breakers ----------------------------------------------------------------------------------------------


def test_a_breaker_opens_is_probed_and_closes() -> None:
    it = Routed(known=catalogue(CHAIN, breakers={"default": BreakerRule(min_works=4, probes=2)}))
    for index in range(4):
        it.submit(index)
        it.end("a", FAILED)
        it.end("b")
    it.submit(4)
    assert it.running == ["b"], "nobody asks a any more"
    it.end("b")
    assert it.count("headrace_router_fallbacks_total", model="a", reason="BREAKER_OPEN") == 1
    it.pass_time(5.1)
    for index in range(5, 8):
        it.submit(index)
    assert sorted(it.running) == ["a", "a", "b"], "two probes"
    for number in [number for number, one in it.batcher.works.items() if one.model == "a"]:
        it.batcher.step(number)
    it.submit(8)
    assert sorted(it.running) == ["a", "a", "a", "b"], "their first tokens have closed it"
    it.batcher.run()
    it.router.observe()
    assert it.count("headrace_router_breaker_position", model="a") == 0
    assert all(outcome.error is None for outcome in it.heard.outcomes.values())


def test_who_names_a_model_is_told_that_its_breaker_is_open() -> None:
    it = Routed(known=catalogue(breakers={"a": BreakerRule(min_works=2)}))
    for index in range(3):
        it.lane.submit(index, structs.replace(asked(index), model="a", asked=None))
        if index < 2:
            it.end("a", FAILED)
    error = error_of(it, 2)
    assert isinstance(error, StageUnavailable)
    assert "its breaker lets nothing through" in error.message
    assert error.retry_after_s


def test_a_pool_that_comes_back_is_probed_at_once() -> None:
    rules = {"default": BreakerRule(min_works=2, open_s=60.0, probes=1)}
    it = Routed(known=catalogue(CHAIN, breakers=rules))
    for index in range(2):
        it.submit(index)
        note(it, "a", "no executor has a yet")
        it.end("b")
    it.known = catalogue(CHAIN, ready="bcd", breakers=rules)
    it.router.tick()
    it.submit(3)
    assert it.running == ["b"]
    it.known = catalogue(CHAIN, breakers=rules)
    it.router.tick()
    it.submit(4)
    assert it.running == ["b", "a"]


async def test_breakers_are_told_to_operators() -> None:
    it = Routed(CHAIN)
    it.submit()
    it.end("a", FAILED)
    it.end("b")
    assert [(b.pool, b.position, b.works, b.failed) for b in await it.router.breakers()] == [
        ("a@1", 1, 1, 1), ("b@1", 1, 1, 0),
    ]  # fmt: skip


# --- hedging ------------------------------------------------------------------------------------------------


HEDGED = RouteRules("r", "a", fallbacks=(Fallback("c"),), hedge=Hedge(quantile=0.9, max_share=1.0, model="b"))


def hedged(route: RouteRules = HEDGED) -> Routed:
    """A router that knows that first tokens come within 100 ms."""
    it = Routed(route)
    for index in range(100, 100 + MIN_TIMES):
        it.submit(index)
        it.clock.advance(0.09)
        it.batcher.run()
    it.clock.advance(1)
    return it


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

KEPT = RouteRules("r", "a", fallbacks=(Fallback("d"),), cascade=Cascade(("c", "b", "a"), min_mean_log_prob=-1.0))
STREAMED = replace(KEPT, cascade=Cascade(("c", "b", "a"), stream_first=True))


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


# --- intents ------------------------------------------------------------------------------------------------


class Asked:
    """Says what a text is about when the test lets it."""

    def __init__(self) -> None:
        self.waiting: list = []  # type: ignore[type-arg]

    def ask(self, text: str, done) -> None:  # type: ignore[no-untyped-def]
        self.waiting.append((text, done))

    async def of(self, text: str) -> str:
        return text


async def test_a_work_waits_for_its_intent() -> None:
    intents = Asked()
    route = RouteRules("r", "a", (Rule("code", "b", intents=frozenset({"code"})),))
    it = Routed(route)
    it.router._context.intents = intents
    for index in range(4):
        it.submit(index, text="code" if index != 3 else "")
    assert it.running == ["a"], "of nothing the intent is known"
    it.lane.cancel(1)
    assert isinstance(error_of(it, 1), Cancelled)
    for text, done in intents.waiting:
        done(text)
    assert sorted(it.running) == ["a", "b", "b"]
    said = await it.router.explain(asked(text="code"))
    assert said[0].choice == "rule code"


async def test_what_is_explained_is_what_would_happen() -> None:
    route = replace(CHAIN, hedge=Hedge(), shadow=Shadow("d", 0.5), fallbacks=(*CHAIN.fallbacks, Fallback(reject=True)))
    it = Routed(known=catalogue(route, ready="cd", switched_off={"b": "it lies"}))
    said = [(one.choice, one.reason) for one in await it.router.explain(asked())]
    assert [choice for choice, _ in said] == [
        "model", "not a", "not b", "pool c@1", "may be hedged", "may have a shadow on d", "run",
    ]  # fmt: skip
    assert said[2][1] == "b is switched off: it lies"
    assert said[3][1].startswith("fallback: c; 1 copies of c@1 are ready")
    assert not it.batcher.sent
    cascade = RouteRules("r", "a", cascade=Cascade(("x", "a")), fallbacks=(Fallback(wait_s=2), Fallback(reject=True)))
    it = Routed(known=catalogue(cascade))
    assert [one.choice for one in await it.router.explain(asked())] == ["cascade", "model x", "cascade x → a"]
    it = Routed(known=catalogue(replace(cascade, cascade=None), ready=""))
    choices = [one.choice for one in await it.router.explain(asked())]
    assert choices == ["model", "not a", "wait 2 s", "refuse"]


# --- in any order --------------------------------------------------------------------------------------------


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
