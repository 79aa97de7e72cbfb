"""May it enter, and how much may it use? Pure.

In two steps, because tokenizing lies between them: `check` decides on what the caller wrote, `admit` on the
prompt's tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from libs import errors
from libs.catalogue import ModelSpec, model_of, salted, unpin
from libs.errors import Violation
from libs.lane.work import Sampling, Tier, Work
from libs.tokens.blocks import chain, salt
from services.admission.policy import Policy, Tenant, TierPolicy, may_use
from services.admission.request import Request
from services.admission.validate import violations


@dataclass(frozen=True, slots=True)
class Checked:
    """A request that may go on to tokenizing."""

    request: Request
    tenant: Tenant
    spec: ModelSpec
    tier: Tier
    deadline: float
    """Unix seconds."""


@dataclass(frozen=True, slots=True)
class Admitted:
    """What goes to the router, and why it may."""

    work: Work
    reason: str


def check(request: Request, tenant: Tenant, policy: Policy, running: int, now: float) -> Checked:
    """Decides on what the caller wrote.

    Args:
        running: Requests of the tenant that are in flight in this process.
        now: Unix seconds.

    Raises RequestInvalid, ModelUnknown, NotAllowed, SwitchedOff, NotSupported, QuotaExceeded or DeadlinePassed.
    """
    faults = list(violations(request))
    if faults:
        raise errors.RequestInvalid.of(faults)
    spec = policy.model(request.model)
    if spec is None:
        raise errors.ModelUnknown(f"no model or alias is called {request.model!r}", metadata={"model": request.model})
    if not may_use(tenant, request.model, spec.name):
        raise errors.NotAllowed(f"tenant {tenant.name} may not use {request.model}")
    for name in (spec.name, spec.base):
        if (reason := policy.models_off.get(name)) is not None:
            raise errors.SwitchedOff(
                f"{name} is switched off: {reason}", violations=[Violation(f"model/{name}", reason)]
            )
    if request.resumed and request.resumed_version and not _is_version_of(request.resumed_version, spec):
        raise errors.RequestInvalid.of(
            [Violation("resumed_model_version", f"is {request.resumed_version!r}, no version of {spec.name}")]
        )
    for capability, asked in (
        ("chat", request.chat is not None),
        ("grammar", request.grammar is not None),
        ("log_probs", request.log_probs),
    ):
        if asked and capability not in spec.capabilities:
            raise errors.NotSupported(f"{spec.name} has no capability {capability!r}", metadata={"model": spec.name})
    if tenant.max_concurrency and running >= tenant.max_concurrency:
        quota = Violation(f"tenant/{tenant.name}", f"{running} requests are in flight; {tenant.max_concurrency} may be")
        raise errors.QuotaExceeded(quota.description, violations=[quota], retry_after_s=1.0)
    tier = request.tier or tenant.default_tier
    deadline = _deadline(request, policy.tiers.get(tier, TierPolicy()), now)
    if deadline <= now:
        raise errors.DeadlinePassed("the deadline was past on arrival", metadata={"stage": "admission"})
    return Checked(request, tenant, spec, tier, deadline)


def admit(checked: Checked, prompt: Sequence[int], vocabulary: int, request_id: str) -> Admitted:
    """Decides on the tokens. Raises RequestInvalid with every violation."""
    request, tenant, spec = checked.request, checked.tenant, checked.spec
    faults = []
    longest = min(spec.context_tokens - 1, tenant.max_prompt_tokens or spec.context_tokens)
    if not prompt:
        faults.append(Violation("input", "has no tokens"))
    if len(prompt) > longest:
        faults.append(Violation("input", f"has {len(prompt)} tokens; at most {longest} are allowed"))
    room = max(spec.context_tokens - len(prompt), 0)
    most = min(room, tenant.max_output_tokens or room)
    asked = request.sampling.max_tokens
    if asked is not None and asked > most and len(prompt) <= longest:
        faults.append(
            Violation(
                "sampling.max_tokens", f"is {asked}; with a prompt of {len(prompt)} tokens at most {most} are allowed"
            )
        )
    max_tokens = most if asked is None else asked
    if len(request.resumed) >= max_tokens > 0:
        faults.append(Violation("resumed_token_ids", f"has {len(request.resumed)} tokens; max_tokens is {max_tokens}"))
    if any(token >= vocabulary for token in request.resumed):
        faults.append(Violation("resumed_token_ids", f"has ids outside the vocabulary of {vocabulary}"))
    if faults:
        raise errors.RequestInvalid.of(faults)
    sampling = request.sampling
    own_salt = salted(spec.salt, tenant.name if tenant.isolated else "")
    work = Work(
        request_id=request_id,
        tenant=tenant.name,
        tier=checked.tier,
        model=request.model,
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
    )  # fmt: skip
    return Admitted(
        work, f"{len(prompt)} prompt tokens, at most {max_tokens} answer tokens, {checked.tier.name.lower()}"
    )


def _is_version_of(version: str, spec: ModelSpec) -> bool:
    """Whether the caller may go on there: what it names is what it was let in for, in some version."""
    pool, adapter = unpin(version)
    return model_of(pool) == (spec.base or spec.name) and model_of(adapter) == (spec.name if spec.base else "")


def _chat(request: Request, spec: ModelSpec) -> Sequence[tuple[str, str]]:
    """The chat as it was written, where the engine renders it itself."""
    if request.chat is None or spec.remote.api != "chat":
        return ()
    return [(turn.role, turn.content) for turn in request.chat]


def _deadline(request: Request, rules: TierPolicy, now: float) -> float:
    """The earliest of what the call, the request and the tier say."""
    latest = now + rules.max_timeout_s
    asked = [d for d in (request.call_deadline, request.timeout_s and now + request.timeout_s) if d is not None]
    return min(latest, *asked) if asked else min(latest, now + rules.default_timeout_s)
