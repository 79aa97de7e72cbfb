"""Did each rung do what it says? Pure."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from services.console.drill.values import Check, Kind, Order, Rung, RungFound, Sample, Sent, Verdict

SLACK_S = 0.6
"""By which a fall may seem too early: samples are a quarter of a second apart, and so are the looks of the mesh."""
AT_ONCE_S = 0.25
"""A refusal that takes longer was not at once; it includes the drill's own lateness."""
NOT_REACHED = "more load: --max-per-s, --max-requests, --seconds, longer answers with --tokens; or --scale 0.1"


def rungs(order: Order, samples: Sequence[Sample], sent: Sequence[Sent]) -> list[RungFound]:
    """Of each rung whether and when it was reached, and what was seen of it."""
    found = []
    for number, rung in enumerate(order.ladder, 1):
        first = next((sample for sample in samples if sample.level >= number), None)
        if first is None:
            highest = max((sample.saturation for sample in samples), default=0.0)
            evidence = f"the saturation came to {highest:.2f}, and the rung is at {rung.at:g}"
            check = Check(rung.name, Verdict.UNKNOWN, f"not reached: {evidence}", NOT_REACHED)
            found.append(RungFound(rung, None, None, None, check))
        else:
            check = _rung(rung, number, order, samples, sent)
            found.append(RungFound(rung, first.at, first.saturation, first.per_s, check))
    return found


def _rung(rung: Rung, number: int, order: Order, samples: Sequence[Sample], sent: Sequence[Sent]) -> Check:
    if rung.step == "reject":
        return _reject(rung, number, sent)
    told = [each for each in sent if each.answered and rung.name in each.rungs and each.kind is not Kind.SPARED]
    if not told:
        return Check(
            rung.name, Verdict.UNKNOWN, "in force, but no answer that it was in force for has ended",
            "shorter answers (--tokens), or a longer hold (--hold)",
        )  # fmt: skip
    match rung.step:
        case "clamp_output_tokens":
            return _clamp(rung, told)
        case "smaller_model" if order.small:
            return _smaller(rung, order.small, told)
        case "defer":
            return _defer(rung, number, samples, told)
        case "smaller_model":
            evidence = f"{len(told):,} answers say that it was in force; {order.model} has no small model to go to"
            return Check(rung.name, Verdict.GO, evidence)
    return Check(rung.name, Verdict.GO, f"{len(told):,} answers say that it was in force: {rung.does}")


def _clamp(rung: Rung, told: Sequence[Sent]) -> Check:
    longest = max(each.tokens for each in told)
    cut = [each for each in told if each.kind is Kind.PROBE and each.reason == "length"]
    if longest > rung.amount:
        evidence = f"an answer had {longest} tokens though it says that the rung was in force"
        return Check(rung.name, Verdict.NO_GO, evidence, "a bug in the mesh: please report it with the request")
    if not cut:
        evidence = f"the longest of {len(told):,} answers had {longest} tokens, but none of them wanted more"
        return Check(rung.name, Verdict.UNKNOWN, evidence, "a longer hold (--hold), so that a probe ends")
    return Check(rung.name, Verdict.GO, f"{len(cut)} probes asked for more and got {longest} tokens at most")


def _smaller(rung: Rung, small: str, told: Sequence[Sent]) -> Check:
    others = [each for each in told if each.model != small]
    if others:
        evidence = f"{len(others):,} of {len(told):,} answers came from {others[0].model} instead of {small}"
        return Check(rung.name, Verdict.NO_GO, evidence, f"see that {small} is ready: `headrace models`")
    return Check(rung.name, Verdict.GO, f"{len(told):,} answers came from {small}")


def _defer(rung: Rung, number: int, samples: Sequence[Sample], told: Sequence[Sent]) -> Check:
    waited = max((sample.deferred for sample in samples if sample.level >= number), default=0.0)
    evidence = (
        f"{len(told):,} answers say that it was in force; works waited as async ones for {waited:.0%} of its target"
    )
    return Check(rung.name, Verdict.GO, evidence)


def _reject(rung: Rung, number: int, sent: Sequence[Sent]) -> Check:
    refused = [each for each in sent if each.kind is not Kind.SPARED and each.refused and each.told >= number]
    if not refused:
        return Check(rung.name, Verdict.UNKNOWN, "in force, but no refusal names it", "a longer hold (--hold)")
    without = sum(each.retry_s < 0 for each in refused)
    took = sorted(each.ended - each.at for each in refused)
    median = took[len(took) // 2]
    evidence = (
        f"{len(refused):,} requests were refused with the level in their error, in {1000 * median:.0f} ms (median)"
    )
    if without:
        return Check(rung.name, Verdict.NO_GO, f"{evidence}; {without:,} without RetryInfo", "a bug: please report it")
    if median > AT_ONCE_S:
        return Check(rung.name, Verdict.NO_GO, evidence, "admission is too busy to refuse: give it more processes")
    return Check(rung.name, Verdict.GO, evidence)


def ladder(order: Order, samples: Sequence[Sample], sent: Sequence[Sent], protected: bool) -> list[Check]:
    """Of the ladder as a whole. `protected`: whether the drill also asked as a protected tenant."""
    return [_named(order, sent), _recovery(order, samples), _spared(order, sent, protected), _answers(sent)]


def others(refused: int | None) -> Check:
    """`refused`: requests of other tenants, during the drill; None when that could not be seen."""
    what = "no request of another tenant was refused"
    if refused is None:
        advice = "run it where every admission process can be reached"
        return Check(what, Verdict.UNKNOWN, "not every admission process could be asked", advice)
    if refused:
        return Check(what, Verdict.NO_GO, f"{refused:,} were", "drill when the mesh is calm")
    return Check(what, Verdict.GO, "none was, as every admission process counts")


def _named(order: Order, sent: Sequence[Sent]) -> Check:
    """Answers name the rungs from the first one on, and no others."""
    names = [rung.name for rung in order.ladder]
    what = "callers are told which rungs are in force"
    wrong = [each for each in sent if each.answered and list(each.rungs) != names[: len(each.rungs)]]
    told = sum(bool(each.rungs) for each in sent)
    if wrong:
        said = ", ".join(wrong[0].rungs)
        return Check(what, Verdict.NO_GO, f"an answer names {said}", "was the policy changed during the drill?")
    if not told:
        return Check(what, Verdict.UNKNOWN, "no answer was degraded", NOT_REACHED)
    return Check(what, Verdict.GO, f"{told:,} answers carry their level and its rungs, always from the first one on")


def _recovery(order: Order, samples: Sequence[Sample]) -> Check:
    what = "levels fall a rung at a time, and to nothing"
    samples = _settled(samples)
    falls = [(a, b) for a, b in pairwise(samples) if b.level < a.level]
    if not samples or max(sample.level for sample in samples) == 0:
        return Check(what, Verdict.UNKNOWN, "no level was reached", NOT_REACHED)
    if jumped := [(a, b) for a, b in falls if b.level < a.level - 1]:
        a, b = jumped[0]
        evidence = f"the level fell from {a.level} to {b.level} at {b.at:.1f} s"
        return Check(what, Verdict.NO_GO, evidence, "was an admission process started again?")
    early = [
        (one[1].at, two[1].at) for one, two in pairwise(falls) if two[1].at - one[1].at < order.recover_s - SLACK_S
    ]
    if early:
        evidence = (
            f"it fell at {early[0][0]:.1f} s and again at {early[0][1]:.1f} s; {order.recover_s:g} s have to pass"
        )
        return Check(what, Verdict.NO_GO, evidence, "a bug in the mesh: please report it")
    if samples[-1].level:
        evidence = f"it still stood at {samples[-1].level} when the drill ended"
        return Check(what, Verdict.UNKNOWN, evidence, "other load keeps it up; drill when the mesh is calm")
    return Check(what, Verdict.GO, f"{len(falls)} steps down, each after {order.recover_s:g} s or more")


def _settled(samples: Sequence[Sample]) -> list[Sample]:
    """Levels as the last process has them: each admission process looks by itself, and samples come from any."""
    return [
        replace(sample, level=max(each.level for each in samples[index:] if each.at <= sample.at + SLACK_S))
        for index, sample in enumerate(samples)
    ]


def _spared(order: Order, sent: Sequence[Sent], protected: bool) -> Check:
    what = "protected tenants are spared until last"
    advice = "--protected-key with the key of a tenant that has `protected: true`"
    if not protected:
        return Check(what, Verdict.UNKNOWN, "the drill had no protected tenant's key", advice)
    own = [each for each in sent if each.kind is Kind.SPARED and each.level < len(order.ladder)]
    under = [each for each in own if each.level > 0 and each.answered]
    harmed = [each for each in under if each.rungs]
    if harmed:
        evidence = f"{len(harmed)} of {len(under)} of its answers gave something up: {', '.join(harmed[0].rungs)}"
        return Check(what, Verdict.NO_GO, evidence, "see that the tenant of --protected-key has `protected: true`")
    if not under:
        return Check(
            what, Verdict.UNKNOWN, "none of its answers ended while a rung was in force", "a longer hold (--hold)"
        )
    return Check(what, Verdict.GO, f"{len(under)} of its answers gave nothing up while others did")


def _answers(sent: Sequence[Sent]) -> Check:
    what = "nothing failed but for want of room"
    failed = [each for each in sent if each.error and not each.refused]
    if failed:
        reasons = ", ".join(sorted({each.error for each in failed}))
        return Check(what, Verdict.NO_GO, f"{len(failed):,} requests failed: {reasons}", "`headrace logs admission`")
    ended = sum(each.ended >= 0 for each in sent)
    if not ended:
        return Check(what, Verdict.UNKNOWN, "no request has ended", "`headrace status`")
    refused = sum(each.refused for each in sent)
    return Check(what, Verdict.GO, f"{ended:,} requests ended: {ended - refused:,} answered, {refused:,} refused")
