"""Rules as etcd has them, as the plain values that admission decides by."""

from math import inf

from google.protobuf.duration_pb2 import Duration

from headrace.policy.v1 import policy_pb2
from libs.lane.work import Tier
from services.admission.policy import (
    Alias,
    Contract,
    ContractTool,
    ModelLimit,
    Rung,
    Storage,
    Tenant,
    TierPolicy,
    TokenIssuer,
    Tool,
)


def tenant(message: policy_pb2.Tenant) -> Tenant:
    """Who may use the mesh, and how much."""
    return Tenant(
        name=message.name,
        operator=message.operator,
        models=frozenset(message.models),
        max_prompt_tokens=message.max_prompt_tokens,
        max_output_tokens=message.max_output_tokens,
        max_concurrency=message.max_concurrency,
        default_tier=Tier(message.default_tier) if message.default_tier in (1, 2) else Tier.INTERACTIVE,
        weight=message.weight if 0 < message.weight < inf else 1.0,
        isolated=message.isolated,
        protected=message.protected,
        features=frozenset(message.features),
        requests_per_s=message.requests_per_s if 0 < message.requests_per_s < inf else 0.0,
        tokens_per_min=message.tokens_per_min,
        model_limits={m.model: ModelLimit(m.max_prompt_tokens, m.max_output_tokens) for m in message.model_limits},
        prompt_storage=_storage(message.prompt_storage) or Storage.REDACTED,
        audit_days=message.audit_days or Tenant("").audit_days,
    )


def tier(message: policy_pb2.TierPolicy) -> TierPolicy:
    """Deadlines and the ladder."""
    rules = TierPolicy()
    return TierPolicy(
        default_timeout_s=_seconds(message.default_timeout) or rules.default_timeout_s,
        max_timeout_s=_seconds(message.max_timeout) or rules.max_timeout_s,
        ladder=tuple(_rung(rung) for rung in message.ladder),
        recover_s=_seconds(message.recover_after) or rules.recover_s,
    )


def issuer(message: policy_pb2.TokenIssuer) -> TokenIssuer:
    """Whose tokens are believed."""
    claim = message.subject_claim or "sub"
    return TokenIssuer(message.name, message.issuer, message.audience, message.key_set, claim)


def alias(message: policy_pb2.Route) -> Alias:
    """What admission has to know of a route."""
    others = [rule.model for rule in message.rules]
    others += [each.model for each in message.fallbacks if each.model]
    others += [message.canary.model, message.small_model, *message.cascade.models]
    return Alias(
        model=message.model,
        tags=frozenset(key for rule in message.rules for key in rule.tags) | ({message.canary.sticky_tag} - {""}),
        text=any(rule.intents for rule in message.rules),
        others=frozenset(others) - {"", message.model},
    )


def contract(message: policy_pb2.Contract) -> Contract:
    """What a request may cite."""
    return Contract(
        name=message.name,
        output_schema=message.output_schema,
        repairs=message.repairs,
        tools=tuple(
            ContractTool(each.tool, _seconds(each.timeout), each.retries, each.needs_approval) for each in message.tools
        ),
        max_steps=message.max_steps or Contract("").max_steps,
        max_prompt_tokens=message.max_prompt_tokens,
        max_output_tokens=message.max_output_tokens,
        prompt_storage=_storage(message.prompt_storage),
        tenants=frozenset(message.tenants),
    )


def tool(message: policy_pb2.Tool) -> Tool:
    """What a model may call."""
    return Tool(
        name=message.name,
        description=message.description,
        arguments_schema=message.arguments_schema,
        url=message.url,
        timeout_s=_seconds(message.timeout) or 10.0,
        idempotent=message.idempotent,
    )


def _rung(message: policy_pb2.Rung) -> Rung:
    return Rung(
        message.name,
        message.at,
        clamp_output_tokens=message.clamp_output_tokens,
        smaller_model=message.smaller_model,
        tools_off=message.tools_off,
        no_extras=message.no_extras,
        defer=message.defer,
        reject=message.reject,
    )


def _storage(number: int) -> Storage | None:
    return Storage(number) if number in (1, 2, 3) else None


def _seconds(duration: Duration) -> float:
    return duration.ToMicroseconds() / 1e6
