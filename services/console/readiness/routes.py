"""Lines of the go/no-go list about routes: what products ask for, and where else it can run. No effects."""

from headrace.policy.v1 import policy_pb2
from services.console.drill.values import Check
from services.console.readiness.facts import Facts
from services.console.readiness.line import GO, MOST_SHOWN, NO_GO, listed, unknown


def routing(facts: Facts) -> Check:
    """Products name no model's version."""
    what = "products ask for routes, and routes say what they choose by"
    if facts.rules is None:
        return unknown(what, facts, "rules")
    routes = facts.rules.routes
    if not routes:
        advice = "write deploy/policy/routes/ALIAS.yaml: a stable name for what products ask for"
        return Check(what, NO_GO, "there are no routes: products name models", advice)
    ready = None if facts.statuses is None else {status.model for status in facts.statuses if status.ready}
    dead = [f"{route.alias} → {route.model}" for route in routes if ready is not None and route.model not in ready]
    if dead:
        return Check(what, NO_GO, f"no executor serves it: {listed(dead)}", "`headrace models` says why")
    said = "; ".join(f"{route.alias} → {route.model}{_inputs(route)}" for route in routes[:MOST_SHOWN])
    return Check(what, GO, said + ("; …" if len(routes) > MOST_SHOWN else ""))


def fallbacks(facts: Facts) -> Check:
    """Every route has somewhere else to go."""
    what = "every route has a fallback that can answer"
    if facts.rules is None or facts.statuses is None:
        return unknown(what, facts, "rules" if facts.rules is None else "catalogue")
    ready = {status.model for status in facts.statuses if status.ready}
    without, dead, good = [], [], []
    for route in facts.rules.routes:
        models = [each.model for each in route.fallbacks if each.model]
        if not models and not any(each.HasField("wait") for each in route.fallbacks):
            without.append(route.alias)
        elif models and not ready.intersection(models):
            dead.append(f"{route.alias} ({', '.join(models)})")
        else:
            good.append(f"{route.alias}: {', '.join(models) or 'waits'}")
    if without:
        advice = "give the route `fallbacks`: another model, a remote one, or a wait"
        return Check(what, NO_GO, f"{listed(without)} has none", advice)
    if dead:
        return Check(what, NO_GO, f"not ready: {listed(dead)}", "`headrace models` says why")
    if not good:
        return Check(what, NO_GO, "there are no routes, so nothing can fall back", "write routes with fallbacks")
    return Check(what, GO, listed(good))


def small_models(facts: Facts) -> Check:
    """A rung that asks for the small model finds one."""
    what = "rungs that use a smaller model find one"
    if facts.rules is None:
        return unknown(what, facts, "rules")
    asking = [name for name, tier in sorted(facts.rules.tiers.items()) if any(r.smaller_model for r in tier.ladder)]
    if not asking:
        return Check(what, GO, "no ladder uses one")
    without = [route.alias for route in facts.rules.routes if not route.small_model]
    if without or not facts.rules.routes:
        said = f"{listed(without)} has no small_model" if without else "there are no routes"
        return Check(
            what, NO_GO, f"{said}; the ladder of {listed(asking)} has such a rung", "set it, or leave the rung out"
        )
    return Check(
        what, GO, "; ".join(f"{route.alias}: {route.small_model}" for route in facts.rules.routes[:MOST_SHOWN])
    )


def breakers(facts: Facts) -> Check:
    """Failing pools are left alone."""
    what = "breakers are closed"
    if facts.breakers is None:
        return unknown(what, facts, "breakers")
    open_ = [f"{each.pool} in {each.instance}" for each in facts.breakers if each.position > 1]
    if open_:
        return Check(what, NO_GO, f"open: {listed(open_)}", "see why works fail there: `headrace logs executor`")
    return Check(what, GO, f"{len(facts.breakers)} pools were seen lately, none of them failing")


def _inputs(route: policy_pb2.Route) -> str:
    """What a route chooses by, in brackets; "" when there is no choice."""
    found = {
        "rules": bool(route.rules),
        "canary": route.HasField("canary"),
        "shadow": route.HasField("shadow"),
        "hedge": route.HasField("hedge"),
        "cascade": route.HasField("cascade"),
    }
    named = [name for name, there in found.items() if there]
    return f" ({', '.join(named)})" if named else ""
