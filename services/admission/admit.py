"""May it enter, and how much may it use? Pure.

In two steps, because tokenizing lies between them: `check` decides on what the caller wrote, `admit` on the
prompt's tokens. When the router chose a model with another tokenizer, `recheck` and `admit` do both for that one.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec
from msgspec.structs import replace

from libs import errors
from libs.catalogue import ModelSpec, model_of, salted, unpin
from libs.errors import Violation
from libs.lane.work import Asked, Sampling, Tier, Work
from libs.tokens.blocks import chain, salt
from services.admission.access import access, strictest, switched_off
from services.admission.deadline import deadline_of
from services.admission.needs import (
    capabilities,
    check_capabilities,
    check_features,
    last_said,
    uses,
    wants_tools,
)
from services.admission.policy import Alias, ModelLimit, Policy, Tenant, TierPolicy, may_use
from services.admission.request import Request
from services.admission.validate import violations

if TYPE_CHECKING:
    from services.admission.ladder import Effects


class Checked(msgspec.Struct, frozen=True):
    """A request that may go on to tokenizing."""

    request: Request
    tenant: Tenant
    spec: ModelSpec
    """The model whose tokens the prompt is made of."""
    tier: Tier
    deadline: float
    """Unix seconds."""
    alias: Alias | None = None
    """What a router chooses by; None where the model is settled."""
    chosen: str = ""
    """The model that the router chose, or that began the answer; "" while it is open."""
    needs: Sequence[str] = ()
    """Capabilities."""
    context_tokens: int = 0
    """The longest context of the models that may answer."""
    limit: ModelLimit = ModelLimit()
    """What the tenant may send to any of them: the router may choose each."""


class Admitted(msgspec.Struct, frozen=True):
    """What goes to the router, and why it may."""

    work: Work
    reason: str

    @property
    def most_tokens(self) -> int:
        """That it can come to, prompt and answer, without what was resumed: to be reserved."""
        return len(self.work.prompt) + self.work.sampling.max_tokens - len(self.work.resumed)


def check(request: Request, tenant: Tenant, policy: Policy, now: float) -> Checked:
    """Decides on what the caller wrote.

    Args:
        now: Unix seconds.

    Raises RequestInvalid, ModelUnknown, NotAllowed, SwitchedOff, NotSupported or DeadlinePassed.
    """
    faults = list(violations(request))
    if faults:
        raise errors.RequestInvalid.of(faults)
    allowed = access(tenant, request.model, policy)
    used = uses(request)
    check_features(request, used, tenant, policy)
    spec, models, on = allowed.spec, allowed.models, allowed.on
    if not on:
        _refuse_off(spec, policy)
    chosen = ""
    if request.resumed and request.resumed_version:
        began = next((each for each in models if _is_version_of(request.resumed_version, each)), None)
        if began is None:
            fault = Violation("resumed_model_version", f"is {request.resumed_version!r}, no version of {spec.name}")
            raise errors.RequestInvalid.of([fault])
        if began is not spec:
            spec, chosen = began, began.name
    if chosen:
        models = on = [spec]
        _refuse_off(spec, policy)
    needed = capabilities(request, used)
    check_capabilities(needed, on)
    if request.contract and wants_tools(request, policy, on):
        needed = [*needed, "tools"]
    tier = request.tier or tenant.default_tier
    deadline = deadline_of(request, policy.tiers.get(tier) or TierPolicy(), now)
    if deadline <= now:
        raise errors.DeadlinePassed("the deadline was past on arrival", metadata={"stage": "admission"})
    whole = on is allowed.on
    return Checked(
        request,
        tenant,
        spec,
        tier,
        deadline,
        alias=allowed.alias,
        chosen=chosen,
        needs=needed,
        context_tokens=allowed.context_tokens if whole else spec.context_tokens,
        limit=allowed.limit if whole else strictest(tenant, on),
    )


def recheck(checked: Checked, model: str, policy: Policy) -> Checked:
    """The same request, for the model that a router chose.

    Raises ModelUnknown, NotAllowed, SwitchedOff or NotSupported: the rules may have changed meanwhile.
    """
    spec = policy.models.get(model)
    if spec is None:
        raise errors.ModelUnknown(f"the router chose {model!r}, which is gone", metadata={"model": model})
    if not may_use(checked.tenant, checked.request.model, model):
        raise errors.NotAllowed(f"tenant {checked.tenant.name} may not use {model}")
    _refuse_off(spec, policy)
    check_capabilities([each for each in checked.needs if each != "tools"], [spec])
    limit = strictest(checked.tenant, [spec])
    return replace(checked, spec=spec, chosen=model, context_tokens=spec.context_tokens, limit=limit)


def admit(
    checked: Checked,
    prompt: Sequence[int],
    vocabulary: int,
    request_id: str,
    effects: "Effects | None" = None,
    *,
    chosen: str = "",
    tried: Sequence[str] = (),
) -> Admitted:
    """Decides on the tokens. Raises RequestInvalid with every violation.

    Args:
        prompt: Tokens of `checked.spec`.
        vocabulary: How many tokens that model knows.
        effects: What the request gives up, where its tier is saturated.
        chosen: The router's choice; else that of `checked` counts.
        tried: Models that were tried in front of it.
    """
    request, tenant, spec = checked.request, checked.tenant, checked.spec
    max_tokens, faults = _max_tokens(checked, len(prompt))
    if not prompt:
        faults.insert(0, Violation("input", "has no tokens"))
    if len(request.resumed) >= max_tokens > 0:
        faults.append(Violation("resumed_token_ids", f"has {len(request.resumed)} tokens; max_tokens is {max_tokens}"))
    if any(token >= vocabulary for token in request.resumed):
        faults.append(Violation("resumed_token_ids", f"has ids outside the vocabulary of {vocabulary}"))
    if faults:
        raise errors.RequestInvalid.of(faults)
    given_up = ""
    tier = checked.tier
    if effects is not None:
        # One token more than the caller has: an answer that goes on may end at once, and is no error.
        most = max(effects.clamp_output_tokens, len(request.resumed) + 1)
        if effects.clamp_output_tokens and max_tokens > most:
            given_up += f"; {max_tokens} were asked for, the ladder leaves {most}"
            max_tokens = most
        if effects.defer and tier is not Tier.ASYNC:
            given_up += "; deferred by the ladder"
            tier = Tier.ASYNC
    sampling = request.sampling
    own_salt = salted(spec.salt, tenant.name if tenant.isolated else "")
    work = Work(
        request_id=request_id,
        tenant=tenant.name,
        tier=tier,
        model=request.model if checked.alias is not None or spec.name == request.model else spec.name,
        prompt=prompt,
        resumed=request.resumed,
        block_hashes=chain(prompt, spec.block_tokens, salt(spec.base or spec.name, own_salt)),
        block_tokens=spec.block_tokens,
        pool=request.resumed_version if request.resumed else "",
        salt=own_salt,
        chat=_chat(request, spec),
        sampling=Sampling(
            max_tokens, sampling.temperature, sampling.top_p, sampling.top_k, sampling.seed,
            sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty, sampling.ignore_end,
        ),
        grammar=request.grammar,
        log_probs=request.log_probs,
        deadline=checked.deadline,
        traceparent=request.traceparent,
        weight=tenant.weight,
        asked=_asked(checked, effects, chosen or checked.chosen, tried),
    )  # fmt: skip
    return Admitted(
        work, f"{len(prompt)} prompt tokens, at most {max_tokens} answer tokens, {tier.name.lower()}{given_up}"
    )


def _max_tokens(checked: Checked, prompt: int) -> tuple[int, list[Violation]]:
    """The longest answer that the limits leave, or as long as it was asked for; and what is wrong with that."""
    tenant, own, faults = checked.tenant, checked.limit, []
    # Where the first model's context is too short, the router may choose one with a longer one.
    first = checked.spec.context_tokens
    context = first if prompt < first else max(checked.context_tokens, first)
    longest = _least(context - 1, tenant.max_prompt_tokens, own.max_prompt_tokens)
    if prompt > longest:
        faults.append(Violation("input", f"has {prompt} tokens; at most {longest} are allowed"))
    most = _least(max(context - prompt, 0), tenant.max_output_tokens, own.max_output_tokens)
    asked = checked.request.sampling.max_tokens
    if asked is not None and asked > most and prompt <= longest:
        faults.append(
            Violation("sampling.max_tokens", f"is {asked}; with a prompt of {prompt} tokens at most {most} are allowed")
        )
    return most if asked is None else asked, faults


def _least(most: int, *limits: int) -> int:
    """The strictest; a limit of 0 is none."""
    return min([most, *(limit for limit in limits if limit)])


def _asked(checked: Checked, effects: "Effects | None", chosen: str, tried: Sequence[str]) -> Asked | None:
    """What the router chooses by, where an alias was asked for."""
    request, alias = checked.request, checked.alias
    if alias is None:
        return None
    needs = [each for each in checked.needs if each != "tools" or effects is None or not effects.tools_off]
    return Asked(
        alias=request.model,
        tokens_of=checked.spec.name,
        chosen=chosen,
        tried=tuple(tried),
        tags={key: value for key, value in request.tags.items() if key in alias.tags},
        capabilities=needs,
        text=last_said(request) if alias.text else "",
        no_extras=effects is not None and effects.no_extras,
        smaller=effects is not None and effects.smaller_model,
    )


def _refuse_off(spec: ModelSpec, policy: Policy) -> None:
    if (off := switched_off(spec, policy)) is not None:
        name, reason = off
        raise errors.SwitchedOff(f"{name} is switched off: {reason}", violations=[Violation(f"model/{name}", reason)])


def _is_version_of(version: str, spec: ModelSpec) -> bool:
    """Whether the caller may go on there: what it names is what it was let in for, in some version."""
    pool, adapter = unpin(version)
    return model_of(pool) == (spec.base or spec.name) and model_of(adapter) == (spec.name if spec.base else "")


def _chat(request: Request, spec: ModelSpec) -> Sequence[tuple[str, str]]:
    """The chat as it was written, where the engine renders it itself."""
    if request.chat is None or spec.remote.api != "chat":
        return ()
    return [(turn.role, turn.content) for turn in request.chat]
