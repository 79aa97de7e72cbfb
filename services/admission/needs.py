"""What a request uses, and what a model has to be capable of for it. Pure."""

from collections.abc import Sequence

from libs import errors
from libs.catalogue import ModelSpec
from libs.errors import Violation
from services.admission.contracts.calls import RESULT_OPENING
from services.admission.policy import Alias, Policy, Tenant
from services.admission.request import Request

LONGEST_TEXT = 2000
"""Characters that a router is told of what was said."""


def check_features(request: Request, used: Sequence[str], tenant: Tenant, policy: Policy) -> None:
    """Raises SwitchedOff or NotAllowed for a feature that the request uses and may not.

    Args:
        used: `uses` of the request.

    Tools are a matter of the contract: without them its requests run, and the model is offered none.
    """
    if not policy.features_off and not tenant.features:
        return
    for feature in [*used, "session"] if request.in_session else used:
        if (reason := policy.features_off.get(feature)) is not None:
            raise errors.SwitchedOff(
                f"{feature} is switched off: {reason}", violations=[Violation(f"feature/{feature}", reason)]
            )
        if tenant.features and feature not in tenant.features:
            raise errors.NotAllowed(f"tenant {tenant.name} may not use {feature}", metadata={"feature": feature})


def capabilities(request: Request, used: Sequence[str]) -> Sequence[str]:
    """What the model must have, for a request with these `uses`."""
    return list(dict.fromkeys([*used, *request.requires])) if request.requires else used


def uses(request: Request) -> Sequence[str]:
    """What a request itself uses, of what can be allowed and switched off; that it came by a session is one more."""
    used = ["chat"] if request.chat is not None else []
    if request.grammar is not None:
        used.append("grammar")
    if request.log_probs:
        used.append("log_probs")
    return used


def wants_tools(request: Request, policy: Policy, models: Sequence[ModelSpec]) -> bool:
    """Whether a router is to look for a model that was made for tools: only where there is one. Others are told of
    tools in the prompt."""
    contract = policy.contracts.get(request.contract)
    return contract is not None and bool(contract.tools) and any("tools" in spec.capabilities for spec in models)


def check_capabilities(needed: Sequence[str], models: Sequence[ModelSpec]) -> None:
    """Raises NotSupported, naming what the first model lacks, when none of the models has all that is needed."""
    for spec in models:
        if all(map(spec.capabilities.__contains__, needed)):
            return
    first = models[0]
    missing = ", ".join(repr(each) for each in needed if each not in first.capabilities)
    others = f", nor has one of the {len(models) - 1} that may answer instead all that is needed" if models[1:] else ""
    raise errors.NotSupported(f"{first.name} has no capability {missing}{others}", metadata={"model": first.name})


def last_said(request: Request) -> str:
    """What the user said last: the last turn of the user's, or the end of the prompt; at most LONGEST_TEXT
    characters of its end. A turn with the results of tools is the user's in form only."""
    said = request.prompt or ""
    if request.chat is not None:
        turns = (turn.content for turn in reversed(request.chat) if turn.role == "user")
        said = next((content for content in turns if not content.startswith(RESULT_OPENING)), "")
    return said[-LONGEST_TEXT:]


def candidates(primary: ModelSpec, alias: Alias | None, tenant: Tenant, name: str, policy: Policy) -> list[ModelSpec]:
    """Models that may answer a request that asked for `name`: the primary first.

    A tenant that may use the primary, but neither the alias nor all the models behind it, gets the primary alone:
    an alias is no way to a model that the tenant may not use.
    """
    if alias is None or not routable(alias, tenant, name):
        return [primary]
    return [primary, *(policy.models[other] for other in sorted(alias.others) if other in policy.models)]


def routable(alias: Alias, tenant: Tenant, name: str) -> bool:
    """Whether a tenant may use whatever the router chooses for an alias."""
    return not tenant.models or name in tenant.models or alias.others | {alias.model} <= tenant.models
