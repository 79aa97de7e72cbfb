"""Which copy of which model belongs on which executor? Pure.

A plan leans on what is: first what lies well stays (`keep`), then what is missing finds a place, the most urgent
first and by the mildest means (`fill`), and what finds none says why (`lack`). Carried out, a plan is the next plan.
"""

from services.placement.draft import Draft
from services.placement.fill import everywhere, fill
from services.placement.keep import keep
from services.placement.lack import lacks
from services.placement.values import Plan, Rules, World

DEFAULT = Rules()


def plan(world: World, rules: Rules = DEFAULT) -> Plan:
    """Plans; the same world gives the same plan. Takes well under a second for 500 executors and 200 models."""
    draft = Draft(world, rules)
    keep(draft)
    left = fill(draft)
    everywhere(draft)
    copies = [copy for on in draft.on.values() for copy in on.values()]
    copies.sort(key=lambda copy: (copy.spec.name, copy.spec.pool, copy.executor))
    return Plan(copies, lacks(draft, left))
