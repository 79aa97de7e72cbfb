"""Which tools a request has, and whether one call may be made. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from libs.lane.work import Grammar
from services.admission.contracts.calls import Call
from services.admission.contracts.validity import of_value
from services.admission.policy import Contract, ContractTool, Policy, Tenant, Tool
from services.admission.validate import grammar_violations

MAX_RETRIES = 5
FEATURE = "tools"


@dataclass(frozen=True, slots=True)
class Offer:
    """A tool that may be called, and how."""

    tool: Tool
    timeout_s: float
    retries: int
    needs_approval: bool


def off(policy: Policy, tenant: Tenant, by_ladder: bool) -> str:
    """Why no tool may be called at all; "" when they may."""
    if (reason := policy.features_off.get(FEATURE)) is not None:
        return f"tools are switched off: {reason}"
    if tenant.features and FEATURE not in tenant.features:
        return f"tenant {tenant.name} may not use tools"
    return "tools are off while the mesh is saturated" if by_ladder else ""


def offers(contract: Contract, policy: Policy) -> Mapping[str, Offer]:
    """The tools of a contract that exist, are sound and are not switched off, by name."""
    found = {}
    for each in contract.tools:
        tool = policy.tools.get(each.tool)
        if tool is not None and each.tool not in policy.tools_off and not _unsound(tool):
            found[each.tool] = _offer(each, tool)
    return found


def refusal(call: Call, contract: Contract, policy: Policy, all_off: str) -> str:
    """Why a call may not be made, for the model; "" when it may.

    Args:
        all_off: See `off`.
    """
    if all_off:
        return all_off
    if call.tool not in {each.tool for each in contract.tools}:
        return f"there is no tool {call.tool!r}; there are: {', '.join(offers(contract, policy)) or 'none'}"
    if (reason := policy.tools_off.get(call.tool)) is not None:
        return f"{call.tool} is switched off: {reason}"
    tool = policy.tools.get(call.tool)
    if tool is None or (unsound := _unsound(tool)):
        return f"{call.tool} cannot be called: {unsound if tool is not None else 'it is not there any more'}"
    faults = of_value(call.arguments, tool.arguments_schema or "{}", "arguments")
    return "; ".join(f"{fault.subject}: {fault.description}" for fault in faults)


def _offer(each: ContractTool, tool: Tool) -> Offer:
    retries = min(each.retries, MAX_RETRIES) if tool.idempotent else 0
    return Offer(tool, each.timeout_s or tool.timeout_s, retries, each.needs_approval)


def _unsound(tool: Tool) -> str:
    """What is wrong with the tool itself; writers of policies are told at once, but etcd can be written by hand."""
    if not tool.url.lower().startswith(("http://", "https://")):
        return "its url is neither http nor https"
    if tool.arguments_schema and (faults := grammar_violations(Grammar("json_schema", tool.arguments_schema))):
        return f"its arguments_schema {faults[0].description}"
    return ""
