"""The life of a work in the router: what is tried when a model fails, has no copy or is left alone."""

from dataclasses import replace

import pytest
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
from libs.lane.work import Note, Outcome
from services.router import context
from services.router.policy import BreakerRule, Cascade, Fallback, Hedge, RouteRules, Rule, Shadow
from tests.unit.journeys import FAILED, error_of
from tests.unit.routing import Routed, asked, catalogue

CHAIN = RouteRules("r", "a", fallbacks=(Fallback("b"), Fallback("c")))


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
