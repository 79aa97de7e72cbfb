"""What a policy lets a tenant have under a name: worked out once, since it is the same for every such request. Pure."""

from collections.abc import Sequence

import msgspec

from libs import errors
from libs.catalogue import ModelSpec
from services.admission.needs import candidates, routable
from services.admission.policy import Alias, ModelLimit, Policy, Tenant, may_use

MOST = 4096
"""That a policy keeps; with one more, all are worked out anew."""


class Access(msgspec.Struct, frozen=True):
    """Models that may answer, and within which limits."""

    tenant: Tenant
    spec: ModelSpec
    models: Sequence[ModelSpec]
    on: Sequence[ModelSpec]
    """Those that no kill switch covers."""
    alias: Alias | None
    """Where the router may choose."""
    context_tokens: int
    limit: ModelLimit


def access(tenant: Tenant, name: str, policy: Policy) -> Access:
    """Raises ModelUnknown or NotAllowed."""
    known: Access | None = policy.known_access.get((tenant.name, name))
    if known is not None and known.tenant is tenant:
        return known
    spec = policy.model(name)
    if spec is None:
        raise errors.ModelUnknown(f"no model or alias is called {name!r}", metadata={"model": name})
    if not may_use(tenant, name, spec.name):
        raise errors.NotAllowed(f"tenant {tenant.name} may not use {name}")
    alias = policy.aliases.get(name)
    models = candidates(spec, alias, tenant, name, policy)
    on = [each for each in models if switched_off(each, policy) is None]
    found = Access(
        tenant,
        spec,
        models,
        on,
        alias if alias is not None and routable(alias, tenant, name) else None,
        max((each.context_tokens for each in on), default=0),
        strictest(tenant, on),
    )
    if len(policy.known_access) >= MOST:
        policy.known_access.clear()
    policy.known_access[tenant.name, name] = found
    return found


def strictest(tenant: Tenant, models: Sequence[ModelSpec]) -> ModelLimit:
    """The strictest of a tenant's limits for these models."""
    own = [tenant.model_limits[spec.name] for spec in models if spec.name in tenant.model_limits]
    return ModelLimit(
        min((each.max_prompt_tokens for each in own if each.max_prompt_tokens), default=0),
        min((each.max_output_tokens for each in own if each.max_output_tokens), default=0),
    )


def switched_off(spec: ModelSpec, policy: Policy) -> tuple[str, str] | None:
    """The switch that covers a model, and its reason."""
    return next(((name, policy.models_off[name]) for name in (spec.name, spec.base) if name in policy.models_off), None)
