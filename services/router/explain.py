"""What a router would do with a work now, and why, step by step. Runs nothing."""

from collections.abc import Sequence

from libs.errors import HeadraceError, Rerouted
from libs.lane.work import Decision, Work
from services.router.breaker import Position
from services.router.candidate import Candidate, consider
from services.router.context import Context
from services.router.fallback import Reject, Try, Wait
from services.router.plan import Plan, plan_of
from services.router.rules import IntentWanted

STAGE = "router"


async def planned(work: Work, context: Context) -> Plan:
    """The plan, with the intent that its rules may want."""
    known = context.catalogue()
    try:
        return plan_of(work, known, None)
    except IntentWanted:
        text = work.asked.text if work.asked is not None else ""
        return plan_of(work, known, await context.intents.of(text) if text else "")


def decisions(work: Work, plan: Plan, context: Context) -> tuple[Sequence[Decision], Candidate | None]:
    """Each decision with its reason, and the model that would be asked; None when none would."""
    said = [Decision(STAGE, plan.rule, plan.reason)] if plan.route is not None else []
    known, now = context.catalogue(), context.clock.monotonic()
    chosen: Candidate | None = None
    for step in plan.steps:
        match step:
            case Wait(seconds):
                said.append(Decision(STAGE, f"wait {seconds:g} s", "the next fallback: for one of those in front"))
            case Reject():
                said.append(Decision(STAGE, "refuse", "the next fallback: nothing else is tried"))
                break
            case Try(model, why):
                try:
                    chosen = consider(work, plan.asked, model, known, context.breakers, now)
                except Rerouted as rerouted:
                    said.append(Decision(STAGE, f"model {model}", f"{why}: {rerouted.message}; made anew for it"))
                    return [*said, *_extras(plan)], None
                except HeadraceError as error:
                    only = len(plan.steps) == 1
                    said.append(Decision(STAGE, "refuse" if only else f"not {model}", error.message))
                    continue
                said.append(_pool(chosen, why if plan.route is not None else "", now))
                break
    return [*said, *_extras(plan)], chosen


def _pool(candidate: Candidate, why: str, now: float) -> Decision:
    route = candidate.route
    choice = f"pool {route.pool}" + (f", adapter {route.adapter}" if route.adapter else "")
    reason = f"{why}: {route.reason}" if why else route.reason
    position = candidate.breaker.position(now)
    if position is not Position.CLOSED:
        reason += f"; its breaker is {position.name.lower().replace('_', '-')}, and this work a probe"
    return Decision(STAGE, choice, reason)


def _extras(plan: Plan) -> Sequence[Decision]:
    """What would be done beside it."""
    said, route = [], plan.route
    if route is None:
        return ()
    judged = next((step.judged for step in plan.steps if isinstance(step, Try) and step.judged), None)
    if judged is not None:
        how = "passes while it is made" if plan.streams else "is kept until it is judged"
        said.append(Decision(STAGE, f"cascade {' → '.join(judged.models)}", f"each but the last is judged; it {how}"))
    if plan.hedge is not None:
        hedge = plan.hedge
        share = f"at most {hedge.max_share:g} of the requests"
        said.append(Decision(STAGE, "may be hedged", f"without a token by the {hedge.quantile:g} quantile; {share}"))
    if plan.shadow and route.shadow is not None:
        said.append(Decision(STAGE, f"may have a shadow on {route.shadow.model}", f"a share of {route.shadow.share:g}"))
    return said
