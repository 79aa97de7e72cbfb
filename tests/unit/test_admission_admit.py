"""May it enter, and how much may it use; who calls; what was used."""

import hashlib
from dataclasses import replace

import pytest

from libs.catalogue import Remote
from libs.errors import (
    CredentialsInvalid,
    DeadlinePassed,
    HeadraceError,
    ModelUnknown,
    NotAllowed,
    NotSupported,
    QuotaExceeded,
    RequestInvalid,
    SwitchedOff,
)
from libs.lane.work import Grammar, Tier
from libs.tokens.blocks import chain, salt
from services.admission.admit import Admitted, admit, check
from services.admission.identity import authenticate
from services.admission.policy import Policy, Tenant
from services.admission.request import Request, SamplingRequest, Turn
from services.admission.usage import UsageLedger
from tests.unit.letters import POLICY, SPEC, TENANT

NOW = 1_700_000_000.0


def admitted(
    request: Request, prompt: int = 10, tenant: Tenant = TENANT, policy: Policy = POLICY, vocabulary: int = 256
) -> Admitted:
    return admit(check(request, tenant, policy, 0, NOW), list(range(prompt)), vocabulary, "r")


def asking(max_tokens: int | None = None, **changes: object) -> Request:
    return Request("letters", prompt="x", sampling=SamplingRequest(max_tokens), **changes)  # type: ignore[arg-type]


def refused(kind: type[HeadraceError], request: Request, tenant: Tenant = TENANT, **changes: object) -> HeadraceError:
    with pytest.raises(kind) as raised:
        check(request, tenant, replace(POLICY, **changes), 0, NOW)  # type: ignore[arg-type]
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
    assert check(Request("nice", prompt="x"), by_alias, POLICY, 0, NOW).spec.name == "letters"
    assert check(Request("nice", prompt="x"), by_name, POLICY, 0, NOW)
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
    assert check(replace(request_, model="letters"), TENANT, POLICY, 0, NOW)


def test_concurrency_is_bounded() -> None:
    tenant = Tenant("t", max_concurrency=3)
    assert check(asking(), tenant, POLICY, 2, NOW)
    with pytest.raises(QuotaExceeded) as raised:
        check(asking(), tenant, POLICY, 3, NOW)
    assert raised.value.retry_after_s
    assert [v.subject for v in raised.value.violations] == ["tenant/t"]


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
    assert check(request, TENANT, POLICY, 0, NOW).deadline == NOW + expected


def test_a_deadline_in_the_past_is_told_where_it_stood() -> None:
    assert refused(DeadlinePassed, asking(call_deadline=NOW - 1)).metadata["stage"] == "admission"


def test_the_tier_is_the_requests_or_the_tenants() -> None:
    tenant = Tenant("t", default_tier=Tier.ASYNC)
    assert check(asking(), tenant, POLICY, 0, NOW).tier is Tier.ASYNC
    assert check(asking(tier=Tier.INTERACTIVE), tenant, POLICY, 0, NOW).tier is Tier.INTERACTIVE


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
        check(Request("lora", prompt="x"), TENANT, replace(ADAPTERS, models_off={"letters": "it lies"}), 0, NOW)
    assert check(Request("letters", prompt="x"), TENANT, replace(ADAPTERS, models_off={"lora": "no"}), 0, NOW)


@pytest.mark.parametrize(
    ("model", "version"), [("letters", "letters@1"), ("lora", "letters@1+lora@1"), ("nice", "letters@1")]
)
def test_a_resumed_answer_goes_on_where_it_began(model: str, version: str) -> None:
    request = Request(model, prompt="x", resumed=[1], resumed_version=version)
    assert admitted(request, policy=ADAPTERS).work.pool == version
    assert admitted(replace(request, resumed=[]), policy=ADAPTERS).work.pool == "", "nothing has begun"
    assert admitted(replace(request, resumed_version=""), policy=ADAPTERS).work.pool == ""


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
        check(Request(model, prompt="x", resumed=[1], resumed_version=version), TENANT, ADAPTERS, 0, NOW)
    assert [v.subject for v in raised.value.violations] == ["resumed_model_version"]


def test_a_chat_goes_along_only_where_the_engine_takes_chats() -> None:
    turns = [Turn("system", "be kind"), Turn("user", "hi")]
    assert admitted(Request("letters", chat=turns), policy=ADAPTERS).work.chat == ()
    assert admitted(Request("far", chat=turns), policy=ADAPTERS).work.chat == [("system", "be kind"), ("user", "hi")]
    assert admitted(Request("far", prompt="x"), policy=ADAPTERS).work.chat == ()


# --- identity and usage --------------------------------------------------------------------------

KEYED = Policy(tenants={hashlib.sha256(b"secret").hexdigest(): Tenant("t")})


@pytest.mark.parametrize("header", ["Bearer secret", "bearer secret", "BEARER  secret "])
def test_a_key_names_its_tenant(header: str) -> None:
    assert authenticate({"authorization": header}, KEYED).name == "t"


@pytest.mark.parametrize("header", [None, "", "secret", "Basic secret", "Bearer", "Bearer ", "Bearer Secret"])
def test_anything_else_names_nobody_and_is_not_repeated(header: str | None) -> None:
    with pytest.raises(CredentialsInvalid) as raised:
        authenticate({} if header is None else {"authorization": header}, KEYED)
    assert "ecret" not in raised.value.message


def test_a_tenant_that_is_switched_off() -> None:
    with pytest.raises(SwitchedOff, match="it paid nothing"):
        authenticate({"authorization": "Bearer secret"}, replace(KEYED, tenants_off={"t": "it paid nothing"}))


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
