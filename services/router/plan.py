"""Everything that is decided about a work when it arrives. Pure."""

from collections.abc import Sequence

import msgspec

from libs.lane.work import Asked, Tier, Work
from services.router import fallback
from services.router.fallback import Step, Try
from services.router.policy import Hedge, RouteRules
from services.router.route import Catalogue
from services.router.rules import Facts, choose


class Plan(msgspec.Struct, frozen=True):
    """How a work is to be answered."""

    steps: Sequence[Step]
    rule: str
    """For spans and metrics: "rule long", "canary", "model"; "" where no route was asked for."""
    reason: str
    """For an operator; "" where no route was asked for."""
    asked: Asked | None = None
    route: RouteRules | None = None
    hedge: Hedge | None = None
    """When a copy may be sent."""
    shadow: bool = False
    """Whether a shadow may be sent."""
    streams: bool = False
    """Whether an answer that is judged passes while it is made."""


def plan_of(work: Work, known: Catalogue, intent: str | None) -> Plan:
    """Decides; `intent` is None while it is not known. Raises rules.IntentWanted.

    A work that names a model, and one whose answer has begun, goes there or nowhere.
    """
    route = known.routes.get(work.asked.alias if work.asked is not None else work.model)
    if work.resumed and work.pool:
        return Plan(fallback.alone(work.model, "begun"), "begun", "")
    if route is None:
        return Plan(fallback.alone(work.model, "model"), "", "")
    asked = work.asked or Asked(route.alias, route.model)
    choice = choose(work, asked, route, Facts(intent, known.waiting.get(route.model, 0), known.features_off))
    steps = fallback.chain(choice, route, asked)
    if work.resumed:  # nobody said which model began it: the one that goes on now ends it
        first = next(step for step in steps if isinstance(step, Try))
        return Plan(fallback.alone(first.model, first.why), choice.rule, choice.reason, asked, route)
    extras = not asked.no_extras
    hedged = extras and work.tier is Tier.INTERACTIVE and choice.cascade is None
    return Plan(
        steps,
        choice.rule,
        choice.reason,
        asked,
        route,
        hedge=route.hedge if hedged and "hedging" not in known.features_off else None,
        shadow=extras and route.shadow is not None and "shadows" not in known.features_off,
        streams=_streams(steps, asked, known),
    )


def _streams(steps: Sequence[Step], asked: Asked, known: Catalogue) -> bool:
    """Whether a cascade's answer can pass before it is judged: only if none that could take over needs other tokens,
    for those are made by admission, and only for an answer of which nothing has passed."""
    cascade = next((step.judged for step in steps if isinstance(step, Try) and step.judged), None)
    if cascade is None or not cascade.stream_first:
        return False
    specs = [known.models.get(name) for name in (asked.tokens_of, *cascade.models)]
    return len({spec.tokenizer_source for spec in specs if spec is not None}) == 1
