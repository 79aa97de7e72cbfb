"""What admission would decide about a request, and why, without running it or taking anything from a limit."""

from collections.abc import Sequence

from libs.clock import Clock
from libs.errors import HeadraceError, QuotaExceeded, SwitchedOff
from libs.lane.work import Decision, Work
from services.admission.admit import admit, check
from services.admission.contracts.agreement import agree
from services.admission.desks import Desks, refuse
from services.admission.policy import Tenant
from services.admission.prompts import tokenize
from services.admission.request import Request

STAGE = "admission"


async def explain(
    request: Request, tenant: Tenant, desks: Desks, clock: Clock
) -> tuple[Sequence[Decision], Work | None]:
    """The decisions in their order, and the work as the router would get it; None where it would be refused."""
    decisions = list[Decision]()
    policy = desks.policy()
    try:
        if (reason := policy.tenants_off.get(tenant.name)) is not None:
            raise SwitchedOff(f"tenant {tenant.name} is switched off: {reason}")
        if request.contract:
            contract = agree(request, tenant, policy).contract
            tools = ", ".join(tool.tool for tool in contract.tools) or "none"
            told = f"at most {contract.max_steps} steps; tools: {tools}"
            decisions.append(Decision(STAGE, f"contract {contract.name}", told))
        if broken := desks.limits.broken(tenant, clock.monotonic()):
            raise QuotaExceeded("; ".join(each.violation.description for each in broken))
        checked = check(request, tenant, policy, clock.now())
        effects = desks.effects(checked.spec, checked.tier, tenant, clock.monotonic())
        if effects.level:
            decisions.append(Decision(STAGE, f"degradation level {effects.level}", effects.reason))
        refuse(effects)
        tokenizer = desks.tokenizers.get(checked.spec.name)
        prompt = await tokenize(request, tokenizer)
        admitted = admit(checked, prompt, tokenizer.vocab_size, "explain", effects)
    except HeadraceError as error:
        return [*decisions, Decision(STAGE, f"refuse: {error.reason}", error.message)], None
    return [*decisions, Decision(STAGE, "admit", admitted.reason)], admitted.work
