"""May it enter, and how much may it use; what was used."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from msgspec import structs

from libs.catalogue import Remote
from libs.errors import (
    DeadlinePassed,
    HeadraceError,
    ModelUnknown,
    NotAllowed,
    NotSupported,
    RequestInvalid,
    SwitchedOff,
)
from libs.lane.work import Asked, Grammar, Tier
from libs.tokens.blocks import chain, salt
from services.admission.admit import Admitted, admit, check, recheck
from services.admission.deadline import WAY_BACK_S, heard
from services.admission.ladder import Effects
from services.admission.policy import Alias, Contract, ContractTool, ModelLimit, Policy, Tenant
from services.admission.request import Request, SamplingRequest, Turn
from services.admission.usage import UsageLedger
from tests.unit.letters import POLICY, SPEC, TENANT

NOW = 1_700_000_000.0


def admitted(
    request: Request, prompt: int = 10, tenant: Tenant = TENANT, policy: Policy = POLICY, vocabulary: int = 256
) -> Admitted:
    return admit(check(request, tenant, policy, NOW), list(range(prompt)), vocabulary, "r")


def asking(max_tokens: int | None = None, **changes: object) -> Request:
    return Request("letters", prompt="x", sampling=SamplingRequest(max_tokens), **changes)  # type: ignore[arg-type]


def refused(kind: type[HeadraceError], request: Request, tenant: Tenant = TENANT, **changes: object) -> HeadraceError:
    with pytest.raises(kind) as raised:
        check(request, tenant, replace(POLICY, **changes), NOW)  # type: ignore[arg-type]
    return raised.value


# --- check ---------------------------------------------------------------------------------------


def test_a_malformed_request_is_told_everything_before_anything_else() -> None:
    error = refused(RequestInvalid, Request("nobody", sampling=SamplingRequest(0)))
    assert [v.subject for v in error.violations] == ["input", "sampling.max_tokens"]


@pytest.mark.parametrize("model", ["nobody", "dangling"])
def test_an_unknown_model(model: str) -> None:
    assert refused(ModelUnknown, Request(model, prompt="x")).metadata == {"model": model}


def test_a_tenant_may_use_what_its_policy_names() -> None:
    by_alias, by_name = Tenant("t", models=frozenset({"nice"})), Tenant("t", models=frozenset({"letters"}))
    assert check(Request("nice", prompt="x"), by_alias, POLICY, NOW).spec.name == "letters"
    assert check(Request("nice", prompt="x"), by_name, POLICY, NOW)
    refused(NotAllowed, Request("letters", prompt="x"), by_alias)
    refused(NotAllowed, Request("bare", prompt="x"), by_name)


def test_a_switch_on_a_model_covers_its_aliases() -> None:
    error = refused(SwitchedOff, Request("nice", prompt="x"), models_off={"letters": "it lies"})
    assert "it lies" in error.message
    assert [v.subject for v in error.violations] == ["model/letters"]


@pytest.mark.parametrize(
    "request_",
    [
        Request("bare", chat=[Turn("user", "x")]),
        Request("bare", prompt="x", grammar=Grammar("regex", "a")),
        Request("bare", prompt="x", log_probs=True),
    ],
    ids=["chat", "grammar", "log_probs"],
)
def test_what_the_model_cannot_do(request_: Request) -> None:
    refused(NotSupported, request_)
    assert check(structs.replace(request_, model="letters"), TENANT, POLICY, NOW)


FEATURES = [
    (asking(chat=[Turn("user", "x")]), "chat"),
    (asking(grammar=Grammar("regex", "a")), "grammar"),
    (asking(log_probs=True), "log_probs"),
    (asking(in_session=True), "session"),
]


@pytest.mark.parametrize(("request_", "feature"), FEATURES, ids=[name for _, name in FEATURES])
def test_features(request_: Request, feature: str) -> None:
    error = refused(SwitchedOff, request_, features_off={feature: "it hangs", "hedging": "no"})
    assert [v.subject for v in error.violations] == [f"feature/{feature}"]
    refused(NotAllowed, request_, Tenant("t", features=frozenset({"tools"})))
    assert check(request_, Tenant("t", features=frozenset({feature})), POLICY, NOW)
    assert check(asking(), Tenant("t", features=frozenset({"tools"})), POLICY, NOW)


def test_what_a_request_requires() -> None:
    assert "lang:de" in refused(NotSupported, asking(requires=["lang:de"])).message
    models = {"letters": replace(SPEC, capabilities=(*SPEC.capabilities, "lang:de"))}
    assert check(asking(requires=["lang:de"]), TENANT, replace(POLICY, models=models), NOW)


@pytest.mark.parametrize(
    ("call", "timeout", "tier", "expected"),
    [
        (None, None, None, 60), (None, None, Tier.ASYNC, 3600),  # the tier's default
        (None, 30, None, 30), (20, None, None, 20), (20, 30, None, 20), (40, 30, None, 30),  # the earlier
        (None, 10_000, None, 600), (10_000, None, None, 600),  # never later than the tier allows
    ],
)  # fmt: skip
def test_deadlines(call: float | None, timeout: float | None, tier: Tier | None, expected: float) -> None:
    request = asking(call_deadline=call and NOW + call, timeout_s=timeout, tier=tier)
    assert check(request, TENANT, POLICY, NOW).deadline == NOW + expected


@pytest.mark.parametrize(("call", "timeout", "expected"), [(300, None, 60), (300, 200, 200), (20, None, 20)])
def test_the_deadline_of_a_session_is_that_of_none_of_its_requests(
    call: float, timeout: float | None, expected: float
) -> None:
    request = asking(call_deadline=NOW + call, timeout_s=timeout, in_session=True)
    assert check(request, TENANT, POLICY, NOW).deadline == NOW + expected, "it bounds them"


def test_a_request_ends_before_its_call_so_that_its_caller_hears_why() -> None:
    assert heard(NOW + 60, NOW) == NOW + 60 - WAY_BACK_S
    assert heard(NOW + 0.5, NOW) == pytest.approx(NOW + 0.45)
    assert heard(NOW - 1, NOW) == NOW - 1, "what is past is no later for it"


def test_a_deadline_in_the_past_is_told_where_it_stood() -> None:
    assert refused(DeadlinePassed, asking(call_deadline=NOW - 1)).metadata["stage"] == "admission"


def test_the_tier_is_the_requests_or_the_tenants() -> None:
    tenant = Tenant("t", default_tier=Tier.ASYNC)
    assert check(asking(), tenant, POLICY, NOW).tier is Tier.ASYNC
    assert check(asking(tier=Tier.INTERACTIVE), tenant, POLICY, NOW).tier is Tier.INTERACTIVE


# --- admit ---------------------------------------------------------------------------------------


def test_max_tokens_is_what_is_asked_or_what_there_is_room_for() -> None:
    assert admitted(asking(20)).work.sampling.max_tokens == 20
    assert admitted(asking(90)).work.sampling.max_tokens == 90
    assert admitted(asking()).work.sampling.max_tokens == 90
    assert admitted(asking(), tenant=Tenant("t", max_output_tokens=7)).work.sampling.max_tokens == 7
    assert admitted(asking(), prompt=99).work.sampling.max_tokens == 1


def violated(request: Request, **changes: object) -> list[str]:
    with pytest.raises(RequestInvalid) as raised:
        admitted(request, **changes)  # type: ignore[arg-type]
    return [v.subject for v in raised.value.violations]


def test_limits_of_input_and_output() -> None:
    assert violated(asking(), prompt=0) == ["input"]
    assert violated(asking(), prompt=100) == ["input"]
    assert violated(asking(91)) == ["sampling.max_tokens"]
    assert violated(asking(8), tenant=Tenant("t", max_output_tokens=7)) == ["sampling.max_tokens"]
    assert violated(asking(8), tenant=Tenant("t", max_prompt_tokens=9)) == ["input"]
    assert admitted(asking(8), tenant=Tenant("t", max_prompt_tokens=10))


def test_resumed_tokens_are_part_of_the_answer() -> None:
    assert admitted(asking(5, resumed=[1, 2, 3, 4])).work.resumed == [1, 2, 3, 4]
    assert violated(asking(4, resumed=[1, 2, 3, 4])) == ["resumed_token_ids"]
    assert violated(asking(5, resumed=[255, 256])) == ["resumed_token_ids"]
    assert violated(asking(0 or None, resumed=[999] * 91)) == ["resumed_token_ids", "resumed_token_ids"]


def test_the_work_says_all_that_the_stages_behind_need() -> None:
    request = Request(
        "nice", prompt="x", sampling=SamplingRequest(9, 0.5, 0.9, 40, 7, 1.1, 0.1, 0.2, True),
        grammar=Grammar("regex", "a"), log_probs=True, tier=Tier.ASYNC, traceparent="00-x",
    )  # fmt: skip
    made = admitted(request, prompt=40)
    work = made.work
    assert (work.request_id, work.tenant, work.tier, work.model) == ("r", "t", Tier.ASYNC, "nice")
    assert work.block_hashes == chain(list(range(40)), 16, salt("letters"))
    assert len(work.block_hashes) == 2
    sampling = work.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.seed) == (0.5, 0.9, 40, 7)
    assert (sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty) == (1.1, 0.1, 0.2)
    assert sampling.ignore_end
    assert work.grammar == Grammar("regex", "a")
    assert work.log_probs
    assert work.traceparent == "00-x"
    assert "40 prompt tokens" in made.reason


# --- adapters, versions, and engines that take chats ---------------------------------------------

ADAPTERS = replace(
    POLICY,
    models={
        **POLICY.models,
        "lora": replace(SPEC, name="lora", base="letters", version="1"),
        "twin": replace(SPEC, name="twin", base="letters", version="1", shares_prefix=True),
        "far": replace(SPEC, name="far", pool="", remote=Remote(api="chat")),
    },
)  # fmt: skip


@pytest.mark.parametrize(("model", "own"), [("letters", ""), ("lora", "lora@1"), ("twin", "")])
def test_prefixes_of_adapters_are_kept_apart_unless_they_are_the_same(model: str, own: str) -> None:
    work = admitted(Request(model, prompt="x"), prompt=40, policy=ADAPTERS).work
    assert work.salt == own
    assert work.block_hashes == chain(list(range(40)), 16, salt("letters", own))
    assert (work.model, work.pool, work.adapter) == (model, "", ""), "the router chooses"


@pytest.mark.parametrize(("model", "own"), [("letters", "/t"), ("lora", "lora@1/t"), ("twin", "/t")])
def test_an_isolated_tenant_shares_prefixes_with_nobody(model: str, own: str) -> None:
    isolated = replace(TENANT, name="t", isolated=True)
    work = admitted(Request(model, prompt="x"), prompt=40, policy=ADAPTERS, tenant=isolated).work
    other = admitted(Request(model, prompt="x"), prompt=40, policy=ADAPTERS, tenant=replace(isolated, name="u")).work
    shared = admitted(Request(model, prompt="x"), prompt=40, policy=ADAPTERS).work
    assert work.salt == own
    assert work.block_hashes == chain(list(range(40)), 16, salt("letters", own))
    assert len({work.block_hashes[0], other.block_hashes[0], shared.block_hashes[0]}) == 3


def test_a_work_bears_the_weight_of_its_tenant() -> None:
    assert admitted(asking()).work.weight == 1.0
    assert admitted(asking(), tenant=Tenant("t", weight=2.5)).work.weight == 2.5


def test_a_switch_on_a_base_covers_its_adapters() -> None:
    with pytest.raises(SwitchedOff, match="letters is switched off: it lies"):
        check(Request("lora", prompt="x"), TENANT, replace(ADAPTERS, models_off={"letters": "it lies"}), NOW)
    assert check(Request("letters", prompt="x"), TENANT, replace(ADAPTERS, models_off={"lora": "no"}), NOW)


@pytest.mark.parametrize(
    ("model", "version"), [("letters", "letters@1"), ("lora", "letters@1+lora@1"), ("nice", "letters@1")]
)
def test_a_resumed_answer_goes_on_where_it_began(model: str, version: str) -> None:
    request = Request(model, prompt="x", resumed=[1], resumed_version=version)
    assert admitted(request, policy=ADAPTERS).work.pool == version
    assert admitted(structs.replace(request, resumed=[]), policy=ADAPTERS).work.pool == "", "nothing has begun"
    assert admitted(structs.replace(request, resumed_version=""), policy=ADAPTERS).work.pool == ""


@pytest.mark.parametrize(
    ("model", "version"),
    [
        ("letters", "bare@1"), ("letters", "letters@1+lora@1"), ("lora", "letters@1"), ("lora", "bare@1+lora@1"),
        ("lora", "letters@1+twin@1"), ("letters", "+"),
    ],
)  # fmt: skip
def test_a_version_is_no_way_to_another_model(model: str, version: str) -> None:
    """A caller writes it: else it would get around what its tenant may use."""
    with pytest.raises(RequestInvalid) as raised:
        check(Request(model, prompt="x", resumed=[1], resumed_version=version), TENANT, ADAPTERS, NOW)
    assert [v.subject for v in raised.value.violations] == ["resumed_model_version"]


def test_a_chat_goes_along_only_where_the_engine_takes_chats() -> None:
    turns = [Turn("system", "be kind"), Turn("user", "hi")]
    assert admitted(Request("letters", chat=turns), policy=ADAPTERS).work.chat == ()
    assert admitted(Request("far", chat=turns), policy=ADAPTERS).work.chat == [("system", "be kind"), ("user", "hi")]
    assert admitted(Request("far", prompt="x"), policy=ADAPTERS).work.chat == ()


# --- aliases: what the router chooses by ---------------------------------------------------------

WIDE = replace(SPEC, name="wide", context_tokens=1000, capabilities=("chat", "tools"), source="wide:")
ROUTED = replace(
    POLICY,
    models={**POLICY.models, "wide": WIDE, "lora": ADAPTERS.models["lora"]},
    aliases={
        "nice": Alias("letters", frozenset({"team", "plan"}), text=True, others=frozenset({"wide", "gone"})),
        "narrow": Alias("bare", others=frozenset({"letters"})),
        "plain": Alias("letters"),
        "tuned": Alias("letters", others=frozenset({"lora"})),
    },
    contracts={"tooled": Contract("tooled", tools=(ContractTool("search"),)), "shaped": Contract("shaped")},
)


def test_an_alias_goes_to_the_router_with_what_it_chooses_by() -> None:
    request = Request(
        "nice", chat=[Turn("user", "a" * 3000 + "b"), Turn("assistant", "c")], tags={"team": "red", "secret": "x"},
        requires=["chat"],
    )  # fmt: skip
    work = admitted(request, policy=ROUTED).work
    assert work.model == "nice"
    assert work.asked == Asked(
        "nice", tokens_of="letters", tags={"team": "red"}, capabilities=["chat"], text="a" * 1999 + "b"
    )
    assert admitted(Request("letters", prompt="x"), policy=ROUTED).work.asked is None
    plain = admitted(Request("plain", prompt="x", tags={"team": "red"}), policy=ROUTED).work
    assert plain.asked == Asked("plain", tokens_of="letters", tags={}, capabilities=[], text="")


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (Request("nice", prompt="x" * 2500 + "y"), "x" * 1999 + "y"),
        (Request("nice", chat=[Turn("user", "first"), Turn("user", "last"), Turn("system", "no")]), "last"),
        (Request("nice", chat=[Turn("system", "only")]), ""),
        (Request("nice", chat=[Turn("user", "how warm?"), Turn("user", "<tool_response>\n{}\n</…>")]), "how warm?"),
    ],
)
def test_what_was_said_last(request_: Request, text: str) -> None:
    asked = admitted(request_, policy=ROUTED).work.asked
    assert asked is not None
    assert asked.text == text


def test_what_the_first_model_cannot_do_another_may() -> None:
    grammar = Grammar("regex", "a")
    assert check(Request("narrow", prompt="x", grammar=grammar), TENANT, ROUTED, NOW).spec.name == "bare"
    refused_ = Request("narrow", prompt="x", requires=["vision"])
    with pytest.raises(NotSupported, match="'vision', nor has one of the 1"):
        check(refused_, TENANT, ROUTED, NOW)
    with pytest.raises(NotSupported):  # each has one of the two
        check(Request("nice", prompt="x", grammar=grammar, requires=["tools"]), TENANT, ROUTED, NOW)


def test_tools_are_looked_for_where_a_model_has_them() -> None:
    def asked(model: str, contract: str, effects: Effects | None = None) -> Sequence[str]:
        checked = check(Request(model, prompt="x", contract=contract), TENANT, ROUTED, NOW)
        work = admit(checked, [1], 256, "r", effects).work
        assert work.asked is not None
        return work.asked.capabilities

    assert asked("nice", "tooled") == ["tools"]
    assert asked("nice", "tooled", Effects(tools_off=True)) == []
    assert asked("nice", "shaped") == asked("nice", "") == asked("plain", "tooled") == []


def test_a_prompt_that_is_too_long_for_the_first_model_may_go_to_another() -> None:
    made = admitted(Request("nice", prompt="x"), prompt=500, policy=ROUTED)
    assert made.work.sampling.max_tokens == 500
    assert admitted(Request("nice", prompt="x"), prompt=50, policy=ROUTED).work.sampling.max_tokens == 50
    assert violated(Request("nice", prompt="x"), prompt=1000, policy=ROUTED) == ["input"]
    assert violated(Request("plain", prompt="x"), prompt=500, policy=ROUTED) == ["input"]


def test_an_alias_is_no_way_to_a_model_that_a_tenant_may_not_use() -> None:
    only = Tenant("t", models=frozenset({"letters"}))
    work = admitted(Request("nice", prompt="x"), tenant=only, policy=ROUTED).work
    assert (work.model, work.asked) == ("letters", None)
    both = Tenant("t", models=frozenset({"letters", "wide", "gone"}))
    assert admitted(Request("nice", prompt="x"), tenant=both, policy=ROUTED).work.asked is not None
    named = Tenant("t", models=frozenset({"nice"}))
    assert admitted(Request("nice", prompt="x"), tenant=named, policy=ROUTED).work.asked is not None


def test_while_the_first_model_is_switched_off_another_may_answer() -> None:
    off = replace(ROUTED, models_off={"letters": "it lies"})
    assert admitted(Request("nice", prompt="x"), policy=off).work.asked is not None
    for model in ("plain", "letters", "tuned"):
        with pytest.raises(SwitchedOff, match="it lies"):
            check(Request(model, prompt="x"), TENANT, off, NOW)
    everything = replace(off, models_off={"letters": "it lies", "wide": "it dreams"})
    with pytest.raises(SwitchedOff):
        check(Request("nice", prompt="x"), TENANT, everything, NOW)


def test_an_answer_goes_on_with_the_model_that_began_it() -> None:
    request = Request("nice", prompt="x", resumed=[1], resumed_version="wide@1")
    checked = check(request, TENANT, ROUTED, NOW)
    assert checked.spec.name == "wide"
    work = admit(checked, [1, 2], 256, "r").work
    assert work.asked is not None
    assert (work.asked.chosen, work.asked.tokens_of, work.pool) == ("wide", "wide", "wide@1")
    with pytest.raises(RequestInvalid):
        check(structs.replace(request, resumed_version="bare@1"), TENANT, ROUTED, NOW)
    with pytest.raises(SwitchedOff):
        check(request, TENANT, replace(ROUTED, models_off={"wide": "it dreams"}), NOW)


def test_the_same_request_for_the_model_that_the_router_chose() -> None:
    checked = check(Request("nice", chat=[Turn("user", "x")], contract="tooled"), TENANT, ROUTED, NOW)
    again = recheck(checked, "wide", ROUTED)
    work = admit(again, [1] * 900, 256, "r", chosen="wide", tried=["letters"]).work
    assert work.asked is not None
    assert (work.model, work.asked.chosen, work.asked.tokens_of, work.asked.tried) == (
        "nice", "wide", "wide", ("letters",),
    )  # fmt: skip
    assert work.sampling.max_tokens == 100
    assert work.block_hashes[0] == chain([1] * 16, 16, salt("wide"))[0]
    with pytest.raises(ModelUnknown):
        recheck(checked, "gone", ROUTED)
    with pytest.raises(SwitchedOff):
        recheck(checked, "wide", replace(ROUTED, models_off={"wide": "it dreams"}))
    with pytest.raises(NotSupported):
        recheck(structs.replace(checked, needs=["vision"]), "wide", ROUTED)
    with pytest.raises(NotAllowed):
        recheck(structs.replace(checked, tenant=Tenant("t", models=frozenset({"letters"}))), "wide", ROUTED)


# --- limits of single models, and the ladder -----------------------------------------------------


def test_limits_of_single_models() -> None:
    limited = Tenant("t", max_output_tokens=50, model_limits={"letters": ModelLimit(20, 30), "wide": ModelLimit(0, 10)})
    assert violated(asking(31), tenant=limited) == ["sampling.max_tokens"]
    assert violated(asking(), prompt=21, tenant=limited) == ["input"]
    assert admitted(asking(), tenant=limited).work.sampling.max_tokens == 30
    assert admitted(Request("bare", prompt="x"), tenant=limited).work.sampling.max_tokens == 50
    behind = admitted(Request("nice", prompt="x"), tenant=limited, policy=ROUTED)
    assert behind.work.sampling.max_tokens == 10, "the router may choose any of them"
    checked = check(Request("nice", prompt="x"), limited, ROUTED, NOW)
    assert admit(recheck(checked, "letters", ROUTED), [1] * 5, 256, "r").work.sampling.max_tokens == 30


def laddered(request: Request, effects: Effects, policy: Policy = POLICY) -> Admitted:
    return admit(check(request, TENANT, policy, NOW), [1] * 10, 256, "r", effects)


def test_the_ladder_shortens_answers_and_says_so() -> None:
    clamp = Effects(1, ["short"], clamp_output_tokens=16)
    made = laddered(asking(80), clamp)
    assert made.work.sampling.max_tokens == 16
    assert "80 were asked for, the ladder leaves 16" in made.reason
    assert laddered(asking(), clamp).work.sampling.max_tokens == 16
    short = laddered(asking(7), clamp)
    assert short.work.sampling.max_tokens == 7
    assert "ladder" not in short.reason
    assert laddered(asking(80, resumed=[1] * 40), clamp).work.sampling.max_tokens == 41, "it may end"
    assert violated(asking(91)) == ["sampling.max_tokens"], "too much stays too much"


def test_the_ladder_defers() -> None:
    made = laddered(asking(5), Effects(1, ["later"], defer=True))
    assert made.work.tier is Tier.ASYNC
    assert "deferred" in made.reason
    assert made.work.deadline == NOW + 60, "the caller waits no longer for it"
    assert "deferred" not in laddered(asking(5, tier=Tier.ASYNC), Effects(1, ["later"], defer=True)).reason


def test_the_ladder_tells_the_router() -> None:
    work = laddered(Request("nice", prompt="x"), Effects(2, no_extras=True, smaller_model=True), ROUTED).work
    assert work.asked is not None
    assert (work.asked.no_extras, work.asked.smaller) == (True, True)
    assert laddered(asking(5), Effects(2, no_extras=True, smaller_model=True)).work.asked is None


def test_what_a_request_can_come_to() -> None:
    assert admitted(asking(20)).most_tokens == 30
    assert admitted(asking(20, resumed=[1, 2, 3])).most_tokens == 27


# --- usage ---------------------------------------------------------------------------------------


def test_usable_models_are_names_and_aliases() -> None:
    assert POLICY.usable(TENANT) == ["bare", "letters", "nice"]
    assert POLICY.usable(Tenant("t", models=frozenset({"nice"}))) == ["nice"]


def test_usage_counts_once() -> None:
    ledger = UsageLedger()
    assert ledger.running("t") == 0
    ledger.begin("t")
    ledger.begin("t")
    ledger.end("t", 10, 4, 3)
    usage = ledger.tenants["t"]
    assert (usage.requests, usage.running) == (2, 1)
    assert (usage.prompt_tokens, usage.cached_tokens, usage.output_tokens) == (10, 4, 3)
    ledger.end("t", 1, 0, 1)
    with pytest.raises(ValueError):
        ledger.end("t", 1, 0, 1)
    with pytest.raises(KeyError):
        ledger.end("nobody", 1, 0, 1)
    ledger.refuse("t")
    ledger.refuse("shy")
    assert (ledger.tenants["t"].refused, ledger.tenants["shy"].refused) == (1, 1)
    assert ledger.tenants["shy"].requests == 0
