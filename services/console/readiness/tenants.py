"""Lines of the go/no-go list about tenants: who is spared, what each may ask for, who did what. No effects."""

from services.console.drill.values import Check
from services.console.readiness.facts import Facts
from services.console.readiness.line import GO, NO_GO, UNKNOWN, listed, unknown


def protected(facts: Facts) -> Check:
    """Somebody is spared, and not everybody."""
    what = "protected tenants are named"
    if facts.rules is None:
        return unknown(what, facts, "rules")
    spared = [tenant.name for tenant in facts.rules.tenants if tenant.protected]
    if not spared:
        advice = "set `protected: true` for those whose requests must go through; who has none says so by a drill"
        return Check(what, NO_GO, f"none of {len(facts.rules.tenants)} tenants is protected", advice)
    if len(spared) == len(facts.rules.tenants):
        return Check(what, NO_GO, "every tenant is protected, so none is", "protect only those that must go through")
    return Check(what, GO, f"{listed(spared)}, of {len(facts.rules.tenants)} tenants")


def limits(facts: Facts) -> Check:
    """Nobody can take everything."""
    what = "every tenant has hard limits"
    if facts.rules is None:
        return unknown(what, facts, "rules")
    tenants = [tenant for tenant in facts.rules.tenants if not tenant.operator]
    fields = ("requests_per_s", "tokens_per_min", "max_concurrency")
    loose = [tenant.name for tenant in tenants if not any(getattr(tenant, field) for field in fields)]
    if loose:
        advice = "set requests_per_s, tokens_per_min or max_concurrency; `headrace tenants` shows what they use"
        return Check(what, NO_GO, f"{listed(loose)} may ask for any amount", advice)
    if not tenants:
        return Check(what, NO_GO, "there are only operators", "give each product a tenant of its own, with limits")
    return Check(what, GO, f"{len(tenants)} tenants beside operators, each with at least one of {', '.join(fields)}")


def no_public_keys(facts: Facts) -> Check:
    """The development key is gone."""
    what = "no tenant has a key that is in the documentation"
    if facts.rules is None:
        return unknown(what, facts, "rules")
    found = [tenant.name for tenant in facts.rules.tenants if tenant.name in ("dev", "reader")]
    if found:
        advice = "delete deploy/policy/tenants/{dev,reader}.yaml and these tenants before others can reach the mesh"
        return Check(what, NO_GO, f"tenants of the development policy are there: {listed(found)}", advice)
    return Check(what, GO, f"none of {len(facts.rules.tenants)} tenants is one of the development policy's")


def visibility(facts: Facts) -> Check:
    """A noisy tenant can be found."""
    what = "what each tenant uses can be seen"
    if facts.usages is None:
        return unknown(what, facts, "usages")
    if not facts.usages:
        return Check(what, UNKNOWN, "nobody has asked for anything yet", "send a request as each tenant")
    busiest = max(facts.usages, key=lambda usage: usage.requests_per_s)
    rate = f"{busiest.tenant}, with {busiest.requests_per_s:.1f} requests/s"
    said = f"{len(facts.usages)} tenants are counted; the busiest is {rate}"
    return Check(what, GO, said)


def audit(facts: Facts) -> Check:
    """Who did what is written down."""
    what = "the audit log answers"
    return Check(what, GO, "its last entry was read") if facts.audited else unknown(what, facts, "audited")
