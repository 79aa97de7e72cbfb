"""What the rules of a tier must obey, its ladder among them. No effects."""

from collections.abc import Iterator

from google.protobuf.duration_pb2 import Duration

from headrace.inference.v1 import inference_pb2
from headrace.policy.v1 import policy_pb2
from libs.catalogue.rules import Fault, positive
from libs.policy import bounds

MOST_TARGET_S = 3600.0
STRETCHES = (1.0, 1000.0)
MOST_AGE_S = 86_400.0
MOST_TIMEOUT_S = 30 * 86_400.0
MOST_RUNGS = 16
MOST_AT = 100.0
MOST_RECOVER_S = 3600.0
STEPS = ("clamp_output_tokens", "smaller_model", "tools_off", "no_extras", "defer", "reject")


def entry(tier: policy_pb2.TierPolicy) -> Iterator[Fault]:
    """What is wrong with the rules of a tier."""
    if tier.tier == inference_pb2.TIER_UNSPECIFIED:
        yield Fault("tier", "required")
    default_s, most_s = (_seconds(each) for each in (tier.default_timeout, tier.max_timeout))
    if default_s <= 0:
        yield Fault("default_timeout", "must be more than 0s")
    elif default_s > most_s:
        yield Fault("max_timeout", "must not be less than default_timeout")
    if most_s > MOST_TIMEOUT_S:
        yield Fault("max_timeout", f"{most_s:g}s: at most {MOST_TIMEOUT_S:g}s")
    yield from positive(tier, ("max_waiting_tokens", "max_waiting"))
    there = tier.HasField("target_first_token")
    yield from bounds.duration(tier.target_first_token, there, "target_first_token", MOST_TARGET_S)
    least, most = STRETCHES
    if tier.target_stretch != 0 and not least <= tier.target_stretch <= most:
        text = f"{tier.target_stretch:g}: a multiple of the time on an idle executor, from {least:g} to {most:g}"
        yield Fault("target_stretch", text)
    if tier.HasField("age") and tier.tier == inference_pb2.TIER_INTERACTIVE:
        yield Fault("age", "interactive work is as urgent as work can be: remove it here")
    else:
        yield from bounds.duration(tier.age, tier.HasField("age"), "age", MOST_AGE_S)
    yield from _ladder(tier)
    yield from bounds.duration(tier.recover_after, tier.HasField("recover_after"), "recover_after", MOST_RECOVER_S)


def _ladder(tier: policy_pb2.TierPolicy) -> Iterator[Fault]:
    if len(tier.ladder) > MOST_RUNGS:
        yield Fault("ladder", f"{len(tier.ladder)} rungs: at most {MOST_RUNGS}")
    names: set[str] = set()
    done: dict[str, str] = {}
    """Steps, and the rungs that take them."""
    reached, clamp = 0.0, 0
    for index, rung in enumerate(tier.ladder):
        path = f"ladder[{index}]"
        yield from bounds.name(rung.name, f"{path}.name")
        if rung.name and rung.name in names:
            yield Fault(f"{path}.name", f"{rung.name!r} is the name of another rung already")
        names.add(rung.name)
        if not 0 < rung.at <= MOST_AT:
            yield Fault(f"{path}.at", f"{rung.at:g}: a saturation, more than 0 and at most {MOST_AT:g}; 1 is full")
        elif rung.at <= reached:
            yield Fault(f"{path}.at", f"{rung.at:g} is not more than {reached:g}, the rung before: mildest first")
        reached = max(reached, rung.at if rung.at <= MOST_AT else 0.0)
        yield from _step(rung, path, tier, done)
        if rung.clamp_output_tokens:
            if 0 < clamp <= rung.clamp_output_tokens:
                said = f"{rung.clamp_output_tokens} is not less than the {clamp} of a rung before: it would do nothing"
                yield Fault(f"{path}.clamp_output_tokens", said)
            clamp = rung.clamp_output_tokens
        if rung.reject and index < len(tier.ladder) - 1:
            yield Fault(f"{path}.reject", "nothing is left to give up behind it: it is the last rung")


def _step(rung: policy_pb2.Rung, path: str, tier: policy_pb2.TierPolicy, done: dict[str, str]) -> Iterator[Fault]:
    step = rung.WhichOneof("step")
    if step is None:
        yield Fault(path, f"exactly one of {', '.join(STEPS)} is required")
    elif not getattr(rung, step):
        said = "0: at least 1" if step == "clamp_output_tokens" else "false does nothing: leave the rung out"
        yield Fault(f"{path}.{step}", said)
    elif step == "defer" and tier.tier == inference_pb2.TIER_ASYNC:
        yield Fault(f"{path}.defer", "async work is deferred already: remove the rung")
    elif step != "clamp_output_tokens" and done.setdefault(step, rung.name) != rung.name:
        yield Fault(f"{path}.{step}", f"the rung {done[step]!r} does this already")


def _seconds(duration: Duration) -> float:
    return duration.seconds + duration.nanos / 1e9
