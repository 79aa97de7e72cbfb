"""Which model a request of a route wants, by which rule, and what is tried behind it."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from headrace.policy.v1 import policy_pb2
from libs.errors import ModelUnknown, NotSupported, Rerouted, StageUnavailable, SwitchedOff
from libs.lane.work import Asked, Grammar, Sampling, Tier, Work
from libs.tokens.blocks import chain, salt
from services.router import fallback, policy_values
from services.router.breaker import Breakers
from services.router.candidate import BREAKER, Candidate, consider
from services.router.fallback import Reject, Try, Wait
from services.router.plan import plan_of
from services.router.policy import BreakerRule, Canary, Cascade, Fallback, Hedge, RouteRules, Rule, Shadow
from services.router.route import Catalogue
from services.router.rules import Choice, Facts, IntentWanted, choose
from services.router.shadow import Shadows
from services.router.shares import point
from tests.unit.routing import NOW, asked, catalogue, spec

RULES = (
    Rule("acme", "b", tenants=frozenset({"acme", "emca"})),
    Rule("slow", "c", tier=Tier.ASYNC, min_prompt_tokens=10, max_prompt_tokens=20),
    Rule("blue", "d", tags={"color": "blue", "size": "s"}),
    Rule("json", "b", capabilities=frozenset({"grammar"})),
    Rule("busy", "c", min_waiting=5),
)


def chosen(work: Work, route: RouteRules | None = None, facts: Facts | None = None) -> Choice:
    assert work.asked is not None
    return choose(work, work.asked, route or RouteRules("r", "a", RULES), facts or Facts(""))


@pytest.mark.parametrize(
    ("changes", "rule", "model"),
    [
        ({}, "model", "a"),
        ({"tenant": "acme"}, "rule acme", "b"),
        ({"tier": Tier.ASYNC, "prompt": 10}, "rule slow", "c"),
        ({"tier": Tier.ASYNC, "prompt": 20}, "rule slow", "c"),
        ({"tier": Tier.ASYNC, "prompt": 9}, "model", "a"),
        ({"tier": Tier.ASYNC, "prompt": 21}, "model", "a"),
        ({"tier": Tier.INTERACTIVE, "prompt": 10}, "model", "a"),
        ({"tags": {"color": "blue", "size": "s", "more": "x"}}, "rule blue", "d"),
        ({"tags": {"color": "blue"}}, "model", "a"),
        ({"tags": {"color": "blue", "size": "l"}}, "model", "a"),
        ({"grammar": Grammar("regex", "a*")}, "rule json", "b"),
        ({"capabilities": ("grammar",)}, "rule json", "b"),
        ({"tenant": "emca", "tags": {"color": "blue", "size": "s"}}, "rule acme", "b"),
    ],
)
def test_the_first_rule_that_matches_counts(changes: dict[str, object], rule: str, model: str) -> None:
    choice = chosen(asked(**changes))  # type: ignore[arg-type]
    assert (choice.rule, choice.model) == (rule, model)
    assert choice.reason.startswith("r")


def test_a_rule_may_look_at_how_many_wait() -> None:
    assert chosen(asked(), facts=Facts("", waiting=5)).rule == "rule busy"
    assert chosen(asked(), facts=Facts("", waiting=4)).rule == "model"


def test_the_intent_is_asked_for_only_where_a_rule_turns_on_it() -> None:
    rules = (
        Rule("mine", "b", tenants=frozenset({"acme"}), intents=frozenset({"code"})),
        Rule("sums", "c", intents=frozenset({"sums", "code"})),
    )
    route = RouteRules("r", "a", (RULES[2], *rules))
    with pytest.raises(IntentWanted):
        chosen(asked(), route, Facts())
    assert chosen(asked(tags={"color": "blue", "size": "s"}), route, Facts()).model == "d"
    assert chosen(asked(), route, Facts("code")).model == "c"
    assert chosen(asked(tenant="acme"), route, Facts("code")).model == "b"
    assert chosen(asked(), route, Facts("")).model == "a"


# --- canary, small model, cascade ------------------------------------------------------------------


@given(st.text(), st.text())
def test_points_lie_where_they_lie(one: str, other: str) -> None:
    assert 0 <= point(one, other) < 1
    assert point(one, other) == point(one, other)


def test_a_canary_gets_its_share_and_keeps_whom_it_has() -> None:
    def members(share: float) -> set[str]:
        route = RouteRules("r", "a", canary=Canary("b", share))
        return {f"t{n}" for n in range(1000) if chosen(asked(tenant=f"t{n}"), route).rule == "canary"}

    assert members(0) == set()
    assert len(members(1)) == 1000
    assert 60 < len(members(0.1)) < 140
    assert members(0.1) < members(0.3)


def test_a_canary_sticks_to_the_value_of_a_tag_or_to_the_tenant() -> None:
    route = RouteRules("r", "a", canary=Canary("b", 0.5, sticky_tag="user"))
    by_user = [{chosen(asked(tenant=t, tags={"user": f"u{n}"}), route).model for t in "xyz"} for n in range(40)]
    assert all(len(models) == 1 for models in by_user)
    assert {*by_user[0]} != {"a", "b"}
    assert {model for models in by_user for model in models} == {"a", "b"}
    assert {chosen(asked(tenant=f"t{n}"), route).model for n in range(40)} == {"a", "b"}, "without the tag"


def test_named_tenants_are_always_in_the_canary_and_a_switch_ends_it() -> None:
    route = RouteRules("r", "a", canary=Canary("b", 0.0, tenants=frozenset({"brave"})))
    assert chosen(asked(tenant="brave"), route).model == "b"
    assert chosen(asked(), route).model == "a"
    assert chosen(asked(tenant="brave"), route, Facts("", features_off={"canaries": "it bites"})).model == "a"


def test_a_rule_stands_in_front_of_the_canary_and_the_small_model_in_front_of_both() -> None:
    route = RouteRules("r", "a", RULES, canary=Canary("d", 1.0), small_model="c")
    assert chosen(asked(tenant="acme"), route).rule == "rule acme"
    assert chosen(asked(), route).rule == "canary"
    assert chosen(asked(tenant="acme", smaller=True), route).rule == "small model"
    assert chosen(asked(smaller=True), replace(route, small_model="")).rule == "canary"


def test_a_cascade_is_for_those_that_no_rule_wants() -> None:
    route = RouteRules("r", "a", RULES, cascade=Cascade(("d", "a")))
    assert (chosen(asked(), route).kind, chosen(asked(), route).model) == ("cascade", "d")
    assert chosen(asked(tenant="acme"), route).kind == "rule"
    assert chosen(asked(no_extras=True), route).kind == "model"
    assert chosen(asked(), route, Facts("", features_off={"cascades": "dear"})).kind == "model"


def test_what_was_chosen_before_stays_chosen_within_its_cascade() -> None:
    route = RouteRules("r", "a", RULES, cascade=Cascade(("c", "d", "a")))
    choice = chosen(asked(chosen="b", tenant="acme"), route)
    assert (choice.kind, choice.model, choice.cascade) == ("chosen", "b", None)
    within = chosen(asked(chosen="d", tried=("c",)), route)
    assert within.cascade is route.cascade
    steps = fallback.chain(within, route, Asked("r", "d", "d", ("c",)))
    assert [step.model for step in steps if isinstance(step, Try)] == ["d", "a"]


# --- the chain ----------------------------------------------------------------------------------------

ALL = (Fallback("b"), Fallback(wait_s=2.0), Fallback("a"), Fallback("c"), Fallback(reject=True), Fallback("d"))


def steps(route: RouteRules, **changes: object) -> list[object]:
    plan = plan_of(asked(**changes), catalogue(route), None)  # type: ignore[arg-type]
    return [step.model if isinstance(step, Try) else step for step in plan.steps]


def test_each_model_is_tried_once_and_nothing_behind_a_reject() -> None:
    assert steps(RouteRules("r", "a", fallbacks=ALL)) == ["a", "b", Wait(2.0), "c", Reject()]
    assert steps(RouteRules("r", "a")) == ["a"]


def test_behind_a_canary_and_a_small_model_comes_the_routes_own() -> None:
    canary = RouteRules("r", "a", fallbacks=ALL[:1], canary=Canary("d", 1.0))
    assert steps(canary) == ["d", "a", "b"]
    assert steps(RouteRules("r", "a", fallbacks=ALL[:1], small_model="c"), smaller=True) == ["c", "a", "b"]
    ruled = RouteRules("r", "a", (Rule("all", "c"),), fallbacks=ALL[:1])
    assert steps(ruled) == ["c", "b"], "a rule means what it says"


def test_a_cascade_stands_in_front_and_all_but_its_last_are_judged() -> None:
    route = RouteRules("r", "a", fallbacks=ALL[:1], cascade=Cascade(("c", "d", "a")))
    plan = plan_of(asked(), catalogue(route), None)
    tries = [step for step in plan.steps if isinstance(step, Try)]
    assert [(step.model, step.judged is not None) for step in tries] == [
        ("c", True), ("d", True), ("a", False), ("b", False),
    ]  # fmt: skip


def test_what_was_tried_before_it_was_made_anew_is_not_tried_again() -> None:
    assert steps(RouteRules("r", "a", fallbacks=ALL[:1]), chosen="b", tried=("a",)) == ["b"]
    assert steps(RouteRules("r", "a", fallbacks=ALL), chosen="b", tried=("a",)) == ["b", Wait(2.0), "c", Reject()]


def test_what_has_begun_and_what_was_named_has_one_candidate() -> None:
    route = RouteRules("r", "a", RULES, ALL, canary=Canary("d", 1.0), hedge=Hedge(), shadow=Shadow("b", 1.0))
    known = catalogue(route)
    begun = plan_of(structs.replace(asked(), resumed=(1,), pool="b@1"), known, None)
    assert [step.model for step in begun.steps if isinstance(step, Try)] == ["r"]
    assert (begun.asked, begun.hedge, begun.shadow) == (None, None, False)
    named = plan_of(structs.replace(asked(), model="c", asked=None), known, None)
    assert [step.model for step in named.steps if isinstance(step, Try)] == ["c"]
    anywhere = plan_of(structs.replace(asked(), resumed=(1,)), known, None)
    assert [step.model for step in anywhere.steps if isinstance(step, Try)] == ["d"], "who began it nobody knows"
    assert not anywhere.shadow


def test_extras_are_for_those_who_may_have_them() -> None:
    route = RouteRules("r", "a", hedge=Hedge(), shadow=Shadow("b", 1.0))
    plan = plan_of(asked(), catalogue(route), None)
    assert (plan.hedge, plan.shadow) == (route.hedge, True)
    assert plan_of(asked(tier=Tier.ASYNC), catalogue(route), None).hedge is None
    for work, off in ((asked(no_extras=True), {}), (asked(), {"hedging": "x", "shadows": "x"})):
        plan = plan_of(work, catalogue(route, features_off=off), None)
        assert (plan.hedge, plan.shadow) == (None, False)


def test_an_alias_of_an_old_admission_process_is_a_route_all_the_same() -> None:
    plan = plan_of(structs.replace(asked(tenant="acme"), asked=None), catalogue(RouteRules("r", "a", RULES)), None)
    assert (plan.rule, plan.asked) == ("rule acme", Asked("r", "a"))


def test_an_answer_streams_before_it_is_judged_only_if_no_other_tokens_can_come() -> None:
    def streams(*models: str, **changes: object) -> bool:
        route = RouteRules("r", "a", cascade=Cascade(models, stream_first=True))
        return plan_of(asked(**changes), catalogue(route), None).streams  # type: ignore[arg-type]

    assert streams("b", "a")
    assert not streams("b", "x")
    assert not streams("x", "x", tokens_of="a")
    assert not plan_of(asked(), catalogue(RouteRules("r", "a", cascade=Cascade(("b", "a")))), None).streams


# --- may this model answer? ----------------------------------------------------------------------------


def considered(
    model: str, known: Catalogue | None = None, breakers: Breakers | None = None, **changes: object
) -> Candidate:
    work = asked(**changes)  # type: ignore[arg-type]
    return consider(work, work.asked, model, known or catalogue(RouteRules("r", "a")), breakers or Breakers("x"), NOW)


def test_a_model_must_have_what_the_work_needs() -> None:
    with pytest.raises(NotSupported, match="has no capability 'grammar'"):
        considered("b", grammar=Grammar("regex", "a"))
    with pytest.raises(NotSupported, match="has no capability 'lang:de'"):
        considered("b", capabilities=("lang:de",))
    assert considered("b", log_probs=True, capabilities=("chat",)).going().model == "b"
    with pytest.raises(ModelUnknown, match="r leads to 'nobody'"):
        considered("nobody")


def test_a_model_must_hold_the_work() -> None:
    known = catalogue(RouteRules("r", "a"))
    small = replace(known, models={**known.models, "b": spec("b", context_tokens=64)})
    with pytest.raises(NotSupported, match="a context of 64 tokens, and 70 are needed"):
        considered("b", small, prompt=60, tokens=10)
    left_open = considered("b", small, prompt=60, tokens=4096 - 60)
    assert left_open.going().sampling == Sampling(4), "who left it open gets what there is"
    with pytest.raises(NotSupported, match="65 are needed"):
        considered("b", small, prompt=64, tokens=4096 - 64)
    sizes = {"a": spec("a", context_tokens=64), "b": spec("b", context_tokens=128)}
    long = replace(known, models={**known.models, **sizes})
    assert considered("b", long, prompt=100, tokens=4096 - 100).going().sampling == Sampling(28), "of the longest"


def test_an_open_breaker_lets_nothing_new_through() -> None:
    breakers = Breakers("x")
    breaker = breakers.of("b@1", BreakerRule())
    for _ in range(10):
        breaker.leave(breaker.enter(), False, NOW)
    with pytest.raises(StageUnavailable) as raised:
        considered("b", breakers=breakers)
    assert raised.value.metadata[BREAKER] == "b@1"
    assert raised.value.retry_after_s == 5.0
    begun = structs.replace(asked(), model="b", resumed=(1,), pool="b@1")
    assert consider(begun, None, "b", catalogue(), breakers, NOW).going().pool == "b@1"


def test_a_switch_is_in_force() -> None:
    with pytest.raises(SwitchedOff):
        considered("b", catalogue(RouteRules("r", "a"), switched_off={"b": "it lies"}))


def test_other_tokens_are_made_by_admission() -> None:
    with pytest.raises(Rerouted) as raised:
        considered("x")
    assert raised.value.metadata == {"model": "x"}
    assert considered("x", tokens_of="x").going().model == "x"
    with pytest.raises(Rerouted):
        considered("a", tokens_of="x")
    with pytest.raises(Rerouted):
        considered("a", tokens_of="deleted")
    known = catalogue(RouteRules("r", "a"))
    remote = replace(known.models["b"], remote=replace(known.models["b"].remote, api="chat"))
    chats = replace(known, models={**known.models, "b": remote})
    with pytest.raises(Rerouted):
        considered("b", chats)
    assert considered("b", chats, chat=[("user", "hi")]).going().model == "b"


def test_a_prefix_is_named_anew_for_another_model() -> None:
    prompt, own = range(40), chain(range(40), 16, salt("a", ""))
    first = considered("a", prompt=40, block_hashes=own, block_tokens=16)
    assert first.going().block_hashes == own
    other = considered("b", prompt=40, block_hashes=own, block_tokens=16)
    assert other.going().block_hashes == chain(prompt, 16, salt("b", ""))
    isolated = considered("b", prompt=40, block_hashes=own, block_tokens=16, salt="/acme")
    assert isolated.going().block_hashes == chain(prompt, 16, salt("b", "/acme"))
    assert isolated.going().asked is None, "no stage behind needs it"


# --- shadows, and rules as messages ----------------------------------------------------------------------


def test_a_shadow_is_sent_for_its_share_within_its_bound() -> None:
    shadows, route = Shadows(), RouteRules("r", "a", shadow=Shadow("b", 0.2, max_in_flight=2))
    wanted = [n for n in range(1000) if shadows.wanted(asked(n), Asked("r", "a"), route)]
    assert 140 < len(wanted) < 260
    one = asked(wanted[0])
    for _ in range(2):
        assert shadows.wanted(one, Asked("r", "a"), route)
        shadows.begin("r")
    assert not shadows.wanted(one, Asked("r", "a"), route)
    shadows.end("r")
    assert shadows.wanted(one, Asked("r", "a"), route)
    only = replace(route, shadow=Shadow("b", 1.0, frozenset({"acme"})))
    assert [shadows.wanted(asked(tenant=t), Asked("r", "a"), only) for t in ("acme", "t")] == [True, False]
    assert not shadows.wanted(one, Asked("r", "a", no_extras=True), route)


def test_a_route_is_read_whole() -> None:
    message = policy_pb2.Route(alias="r", model="a", small_model="s")
    message.rules.add(
        name="n", model="b", tenants=["t"], tier=2, min_prompt_tokens=1, max_prompt_tokens=2, intents=["i"],
        tags={"k": "v"}, capabilities=["chat"], min_waiting=3,
    )  # fmt: skip
    message.fallbacks.add(model="c")
    message.fallbacks.add().wait.FromMilliseconds(1500)
    message.fallbacks.add(reject=True)
    message.canary.CopyFrom(policy_pb2.Canary(model="d", share=0.1, tenants=["u"], sticky_tag="k"))
    message.shadow.CopyFrom(policy_pb2.Shadow(model="e", share=0.2, tenants=["w"]))
    message.hedge.CopyFrom(policy_pb2.Hedge(model="f"))
    message.cascade.CopyFrom(
        policy_pb2.Cascade(models=list("ghijk"), min_mean_log_prob=-1, check_schema=True, refusal_patterns=["no"])
    )
    assert policy_values.route(message) == RouteRules(
        "r", "a",
        (Rule("n", "b", frozenset("t"), Tier.ASYNC, 1, 2, frozenset("i"), {"k": "v"}, frozenset({"chat"}), 3),),
        (Fallback("c"), Fallback(wait_s=1.5), Fallback(reject=True)),
        Canary("d", 0.1, frozenset("u"), "k"), Shadow("e", 0.2, frozenset("w"), 8), Hedge(0.95, 0.05, "f"),
        Cascade(tuple("ghij"), -1.0, True, ("no",)), "s",
    )  # fmt: skip
    assert policy_values.route(policy_pb2.Route(alias="r", model="a")) == RouteRules("r", "a")


def test_a_breakers_rule_has_defaults_and_bounds() -> None:
    assert policy_values.breaker(policy_pb2.Breaker(name="m")) == BreakerRule()
    message = policy_pb2.Breaker(error_share=0.25, min_works=3, probes=1)
    message.window.seconds, message.open_for.seconds = 20, 7
    assert policy_values.breaker(message) == BreakerRule(0.25, 3, 20.0, 7.0, 1)
    assert policy_values.breaker(policy_pb2.Breaker(error_share=7)).error_share == 0.5
    rules = {"default": BreakerRule(probes=9), "a": BreakerRule(probes=1)}
    known = catalogue(breakers=rules)
    assert (known.breaker("a@1").probes, known.breaker("b@1").probes, catalogue().breaker("a@1").probes) == (1, 9, 3)
