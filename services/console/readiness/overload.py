"""Lines of the go/no-go list about overload: deadlines, ladders, drills. No effects."""

from headrace.policy.v1 import policy_pb2
from services.console.drill.values import Check, Result, Rung
from services.console.readiness.facts import TIERS, Facts
from services.console.readiness.line import GO, NO_GO, listed, seconds, unknown

DRILL_DAYS = 30.0
"""A drill that is older says nothing about the mesh of today."""
DAY_S = 86_400.0


def tiers(facts: Facts) -> Check:
    """Every tier has deadlines and a target."""
    what = "tiers have deadlines and a target for the first token"
    if facts.rules is None:
        return unknown(what, facts, "rules")
    missing = [name for name in TIERS.values() if name not in facts.rules.tiers]
    if missing:
        return Check(what, NO_GO, f"no rules for {listed(missing)}", "write deploy/policy/tiers/TIER.yaml and apply it")
    loose = [name for name, tier in facts.rules.tiers.items() if not tier.HasField("target_first_token")]
    said = [f"{name}: {_times(tier)}" for name, tier in sorted(facts.rules.tiers.items())]
    if loose:
        return Check(what, NO_GO, f"{listed(loose)} has no target of its own", "set target_first_token")
    return Check(what, GO, "; ".join(said))


def ladders(facts: Facts) -> Check:
    """Every tier says what it gives up."""
    what = "each tier says what it gives up under overload"
    if facts.rules is None:
        return unknown(what, facts, "rules")
    without = [name for name in TIERS.values() if not getattr(facts.rules.tiers.get(name), "ladder", ())]
    if without:
        advice = "give the tier a `ladder`; docs/degradation.md has the default one"
        return Check(what, NO_GO, f"{listed(without)} has no ladder", advice)
    said = [f"{name}: {', '.join(r.name for r in tier.ladder)}" for name, tier in sorted(facts.rules.tiers.items())]
    return Check(what, GO, "; ".join(said))


def calm(facts: Facts) -> Check:
    """Nothing is being given up now."""
    what = "nothing is given up now"
    if facts.ladders is None:
        return unknown(what, facts, "ladders")
    up = [
        f"{each.model} ({TIERS.get(each.tier, '?')}): {', '.join(each.rungs)}" for each in facts.ladders if each.level
    ]
    if up:
        return Check(what, NO_GO, "; ".join(up), "find the load: `headrace tenants`; or give the model more copies")
    return Check(what, GO, f"{len(facts.ladders)} ladders stand at level 0")


def queues(facts: Facts) -> Check:
    """What waits is bounded."""
    what = "queues are bounded"
    if facts.rules is None:
        return unknown(what, facts, "rules")
    loose = [name for name, tier in facts.rules.tiers.items() if not tier.max_waiting or not tier.max_waiting_tokens]
    if loose or not facts.rules.tiers:
        said = f"{listed(loose)} has no bound of its own" if loose else "there are no tiers"
        return Check(what, NO_GO, said, "set max_waiting and max_waiting_tokens")
    said = "; ".join(f"{name}: {tier.max_waiting:,} works, {tier.max_waiting_tokens:,} tokens"
                     for name, tier in sorted(facts.rules.tiers.items()))  # fmt: skip
    return Check(what, GO, said)


def drilled(facts: Facts) -> Check:
    """The ladders were tried, as they are."""
    what = "each ladder was drilled lately, as it is now"
    if facts.rules is None:
        return unknown(what, facts, "rules")
    with_ladder = {name: tier for name, tier in facts.rules.tiers.items() if tier.ladder}
    advice = "`headrace drill --tier {}`"
    said = []
    for name, tier in sorted(with_ladder.items()):
        drill = facts.drills.get(name)
        if drill is None:
            return Check(what, NO_GO, f"no drill of {name}", advice.format(name))
        days = (facts.now - drill.began) / DAY_S
        if days > DRILL_DAYS:
            return Check(what, NO_GO, f"the drill of {name} is {days:.0f} days old", advice.format(name))
        if _ladder_of(tier) != [_unscaled(rung, drill) for rung in drill.order.ladder]:
            return Check(what, NO_GO, f"the ladder of {name} is another one since its drill", advice.format(name))
        if not drill.passed:
            bad = [found.rung.name for found in drill.rungs if found.check.verdict is not GO]
            bad += [check.what for check in drill.checks if check.verdict is not GO]
            return Check(what, NO_GO, f"the drill of {name} left open: {listed(bad)}", advice.format(name))
        said.append(f"{name}: all {len(drill.rungs)} rungs did what they say, {days:.1f} days ago")
    if not said:
        return Check(what, NO_GO, "there is no ladder", "see the line on what tiers give up")
    return Check(what, GO, "; ".join(said))


def load_tested(facts: Facts) -> Check:
    """It is known how much the mesh can do."""
    what = "a load test was done"
    loads = {name: max((each.answered for each in drill.per_second), default=0) for name, drill in facts.drills.items()}
    if not loads:
        return Check(what, NO_GO, "no drill has left a result", "`headrace drill`")
    said = [
        f"{name}: up to {most} requests answered of those sent in one second" for name, most in sorted(loads.items())
    ]
    return Check(what, GO, "; ".join(said))


def _times(tier: policy_pb2.TierPolicy) -> str:
    default, most, first = map(seconds, (tier.default_timeout, tier.max_timeout, tier.target_first_token))
    return f"{default} by default, {most} at most, first token within {first}"


def _ladder_of(tier: policy_pb2.TierPolicy) -> list[tuple[str, float, str, int]]:
    return [
        (rung.name, round(rung.at, 6), rung.WhichOneof("step") or "no_extras", rung.clamp_output_tokens)
        for rung in tier.ladder
    ]


def _unscaled(rung: Rung, drill: Result) -> tuple[str, float, str, int]:
    return rung.name, round(rung.at / drill.order.scale, 6), rung.step, rung.amount
