"""The go/no-go list: each line one question to a mesh, answered from facts. No effects.

A line is *go* when the facts show that it is well, *no-go* when they show that it is not, and *unknown* when they are
not there. To add a line, write a function that returns a Check, and name it in CHECKS: the order there is the list's.
"""

from collections.abc import Callable, Sequence

from services.console.drill.values import Check
from services.console.readiness import overload, routes, running, tenants
from services.console.readiness.facts import Facts

CHECKS: Sequence[Callable[[Facts], Check]] = (
    overload.tiers, overload.ladders, overload.calm, overload.drilled, overload.load_tested, overload.queues,
    tenants.protected, tenants.limits, tenants.no_public_keys, tenants.visibility, tenants.audit,
    routes.routing, routes.fallbacks, routes.small_models, routes.breakers,
    running.switches, running.metrics, running.redundancy, running.copies,
)  # fmt: skip
"""In the order of the list."""


def judge(facts: Facts) -> list[Check]:
    """Every line."""
    return [check(facts) for check in CHECKS]
