"""Which model does a request of a route want? Pure.

In this order: the ladder's small model, what the router chose before (Rerouted), the first rule that matches, the
canary, the cascade, the route's model. `fallback` makes the chain of candidates of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from libs.lane.work import Asked, Work
from services.router.policy import Canary, Cascade, RouteRules, Rule
from services.router.shares import point

Kind = Literal["model", "rule", "canary", "small", "chosen", "cascade"]


@dataclass(frozen=True, slots=True)
class Facts:
    """What rules look at beyond the work."""

    intent: str | None = None
    """None: not known yet; "" is known to be none."""
    waiting: int = 0
    """Works that wait for the route's model."""
    features_off: Mapping[str, str] | None = None
    """Features that a kill switch covers, with the reason."""

    def off(self, feature: str) -> bool:
        """Whether a kill switch covers it."""
        return self.features_off is not None and feature in self.features_off


@dataclass(frozen=True, slots=True)
class Choice:
    """The model that a request wants, and by which rule."""

    model: str
    kind: Kind
    rule: str
    """For people and spans: "rule long", "canary", "model"."""
    reason: str
    cascade: Cascade | None = None


class IntentWanted(Exception):
    """A rule that would match otherwise looks at the intent, which is not known yet."""


def choose(work: Work, asked: Asked, route: RouteRules, facts: Facts) -> Choice:
    """Decides. Raises IntentWanted; then `facts` need one, at least ""."""
    alias = route.alias
    if asked.chosen:
        before = f"{alias}: {asked.chosen} was chosen before, and the prompt made for it"
        return Choice(asked.chosen, "chosen", "chosen", before, _rest(route.cascade, asked, facts))
    if asked.smaller and route.small_model:
        return Choice(route.small_model, "small", "small model", f"{alias}: its tier is saturated; the small model")
    for rule in route.rules:
        if _matches(rule, work, asked, facts):
            return Choice(rule.model, "rule", f"rule {rule.name}", f"{alias}: rule {rule.name!r} says {rule.model}")
    if route.canary is not None and not facts.off("canaries"):
        why = _in_canary(route.canary, alias, work, asked)
        if why:
            return Choice(route.canary.model, "canary", "canary", f"{alias}: {why}")
    if route.cascade is not None and not asked.no_extras and not facts.off("cascades"):
        first = route.cascade.models[0]
        return Choice(first, "cascade", "cascade", f"{alias}: a cascade begins with {first}", route.cascade)
    return Choice(route.model, "model", "model", f"{alias} is an alias of {route.model}")


def _rest(cascade: Cascade | None, asked: Asked, facts: Facts) -> Cascade | None:
    """The cascade that a model chosen before is a part of, if it still is one."""
    within = cascade is not None and asked.chosen in cascade.models
    return cascade if within and not (asked.no_extras or asked.smaller or facts.off("cascades")) else None


def _matches(rule: Rule, work: Work, asked: Asked, facts: Facts) -> bool:
    tokens = len(work.prompt)
    holds = (
        (not rule.tenants or work.tenant in rule.tenants)
        and (rule.tier is None or work.tier == rule.tier)
        and tokens >= rule.min_prompt_tokens
        and (not rule.max_prompt_tokens or tokens <= rule.max_prompt_tokens)
        and all(asked.tags.get(tag) == value for tag, value in rule.tags.items())
        and rule.capabilities <= needs(work, asked)
        and facts.waiting >= rule.min_waiting
    )
    if not (holds and rule.intents):
        return holds
    if facts.intent is None:
        raise IntentWanted
    return facts.intent in rule.intents


def needs(work: Work, asked: Asked) -> frozenset[str]:
    """Capabilities without which a model cannot answer."""
    needed = set(asked.capabilities)
    if work.grammar is not None:
        needed.add("grammar")
    if work.log_probs:
        needed.add("log_probs")
    return frozenset(needed)


def _in_canary(canary: Canary, alias: str, work: Work, asked: Asked) -> str:
    """Why a request is in the canary's share; "" when it is not."""
    if work.tenant in canary.tenants:
        return f"all requests of {work.tenant} go to the canary {canary.model}"
    tagged = asked.tags.get(canary.sticky_tag, "") if canary.sticky_tag else ""
    if point(alias, tagged or work.tenant) >= canary.share:  # a request without the tag sticks by its tenant
        return ""
    who = f"{canary.sticky_tag}={tagged}" if tagged else work.tenant
    return f"{who} is in the {canary.share:g} that goes to the canary {canary.model}"
