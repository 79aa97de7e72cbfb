"""What rules of scheduling must obey. No effects."""

from collections.abc import Iterator, Mapping

from headrace.policy.v1 import policy_pb2
from headrace.registry.v1 import registry_pb2
from libs.catalogue.rules import Fault, nearest
from libs.policy.references import DEFAULT

MOST_OVERCOMMIT = 10.0
MOST_HEADROOM = 0.9
MOST_WAIT_S = 60.0
MOST_PUSHES = 100
MOST_PREFIXES = 1000
"""Each of them is one work on a new executor before it takes others."""


def entry(rules: policy_pb2.Scheduling) -> Iterator[Fault]:
    """What is wrong with an object by itself. Comparisons are written so that NaN is a fault."""
    if not 0 <= rules.overcommit <= MOST_OVERCOMMIT:
        yield Fault("overcommit", f"{rules.overcommit:g}: a share of an executor's blocks, at most {MOST_OVERCOMMIT:g}")
    elif rules.overcommit > 1 and rules.reserve != policy_pb2.RESERVE_POLICY_ESTIMATE:
        wanted = "reserve: RESERVE_POLICY_ESTIMATE"
        yield Fault("overcommit", f"{rules.overcommit:g}: more than 1 only with `{wanted}`; else nothing is pushed out")
    if not 0 <= rules.quantile < 1:
        yield Fault("quantile", f"{rules.quantile:g}: a quantile of answers' lengths, more than 0 and less than 1")
    if not 0 <= rules.headroom <= MOST_HEADROOM:
        yield Fault("headroom", f"{rules.headroom:g}: a share of an executor's slots, from 0 to {MOST_HEADROOM:g}")
    for name, value in (("prefill_ahead_s", rules.prefill_ahead_s), ("max_hold_s", rules.max_hold_s)):
        if not 0 <= value <= MOST_WAIT_S:
            yield Fault(name, f"{value:g}: seconds, from 0 to {MOST_WAIT_S:g}")
    if rules.max_pushes > MOST_PUSHES:
        yield Fault("max_pushes", f"{rules.max_pushes}: at most {MOST_PUSHES}")
    if rules.warm_prefixes > MOST_PREFIXES:
        yield Fault("warm_prefixes", f"{rules.warm_prefixes}: at most {MOST_PREFIXES}")
    elif rules.warm_prefixes and rules.cold_start:
        yield Fault("warm_prefixes", f"{rules.warm_prefixes}, but with `cold_start` nothing is warmed: leave one out")


def across(rules: policy_pb2.Scheduling, models: Mapping[str, registry_pb2.Model]) -> Iterator[Fault]:
    """What is wrong with an object in a mesh that has these models."""
    return of_model(rules.name, models)


def of_model(name: str, models: Mapping[str, registry_pb2.Model]) -> Iterator[Fault]:
    """What is wrong with the name of a rule that is for one base model, or for all."""
    if name == DEFAULT or not name:
        return
    model = models.get(name)
    if model is None:
        text = f"there is no model {name!r}{nearest(name, [*models, DEFAULT])}"
        yield Fault("name", f"{text}; {DEFAULT!r} holds for all that have none of their own")
    elif model.base:
        yield Fault("name", f"{name!r} is an adapter and runs as its base does: name {model.base!r}")
