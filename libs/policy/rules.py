"""What a policy must obey beyond its messages' types: each object by itself, and all together. No effects.

Every fault is told at once, with its path and, for a name that stands for nothing, the nearest that does.
"""

from collections.abc import Iterator, Mapping
from typing import TypeVar

from google.protobuf.message import Message

from headrace.policy.v1 import policy_pb2
from headrace.registry.v1 import registry_pb2
from libs.catalogue import pin_rules
from libs.catalogue import rules as catalogue_rules
from libs.catalogue.rules import Fault
from libs.policy import bounds, contract_rules, references, route_rules, scheduling_rules, tenant_rules, tier_rules
from libs.policy.kinds import of_key

M = TypeVar("M", bound=Message)
_ELSEWHERE = (registry_pb2.Model, policy_pb2.Pin)
"""What has bounds of its own: the tokens of a pin are many."""


def within(message: Message) -> Iterator[Fault]:
    """The faults of one object by itself."""
    unsound = [] if isinstance(message, _ELSEWHERE) else list(bounds.sound(message))
    yield from unsound
    told = {fault.path for fault in unsound}
    yield from (fault for fault in _within(message) if fault.path not in told)


def across(objects: Mapping[str, Message]) -> Iterator[tuple[str, Fault]]:
    """(key, fault): the faults that show only when all objects are seen together.

    Args:
        objects: By key in etcd; models and pins among them.
    """
    models = _by_name(objects, registry_pb2.Model)
    tenants = _by_name(objects, policy_pb2.Tenant)
    tools = _by_name(objects, policy_pb2.Tool)
    keys = {message.name: key for key, message in objects.items() if isinstance(message, registry_pb2.Model)}
    for name, fault in catalogue_rules.across(models):
        yield keys[name], fault
    yield from pin_rules.in_all(_of(objects, policy_pb2.Pin))
    yield from bounds.in_all({key: each for key, each in objects.items() if not isinstance(each, _ELSEWHERE)})
    yield from tenant_rules.across(_of(objects, policy_pb2.Tenant))
    yield from tenant_rules.issuers_across(_of(objects, policy_pb2.TokenIssuer))
    for key, message in objects.items():
        match message:
            case policy_pb2.Tenant():
                found = references.missing(objects, message)
            case policy_pb2.Route():
                found = _both(references.missing(objects, message), route_rules.across(message, models))
            case policy_pb2.Contract():
                found = _both(references.missing(objects, message), contract_rules.across(message, tools))
            case policy_pb2.Scheduling():
                found = scheduling_rules.across(message, models)
            case policy_pb2.Breaker():
                found = scheduling_rules.of_model(message.name, models)
            case policy_pb2.Pin():
                found = pin_rules.across(message, models, tenants)
            case _:
                continue
        for fault in found:
            yield key, fault


def warnings(objects: Mapping[str, Message]) -> Iterator[tuple[str, Fault]]:
    """(key, remark): what is valid, and does nothing as things are."""
    small = any(isinstance(message, policy_pb2.Route) and message.small_model for message in objects.values())
    for key, tier in _of(objects, policy_pb2.TierPolicy).items():
        for index, rung in enumerate(tier.ladder):
            if rung.smaller_model and not small:
                yield (
                    key,
                    Fault(f"ladder[{index}].smaller_model", "no route has a small_model, so this rung does nothing"),
                )


def _within(message: Message) -> Iterator[Fault]:
    match message:
        case policy_pb2.Tenant():
            return tenant_rules.entry(message)
        case policy_pb2.TokenIssuer():
            return tenant_rules.issuer(message)
        case policy_pb2.TierPolicy():
            return tier_rules.entry(message)
        case policy_pb2.Route():
            return route_rules.entry(message)
        case policy_pb2.Breaker():
            return route_rules.breaker(message)
        case policy_pb2.Contract():
            return contract_rules.contract(message)
        case policy_pb2.Tool():
            return contract_rules.tool(message)
        case policy_pb2.Scheduling():
            return _both(bounds.name(message.name), scheduling_rules.entry(message))
        case policy_pb2.Pin():
            return pin_rules.entry(message)
        case registry_pb2.Model():
            return catalogue_rules.entry(message)
    raise TypeError(f"{type(message).__name__} is no rule")


def _both(first: Iterator[Fault], second: Iterator[Fault]) -> Iterator[Fault]:
    yield from first
    yield from second


def _of(objects: Mapping[str, Message], kind: type[M]) -> dict[str, M]:
    return {key: message for key, message in objects.items() if isinstance(message, kind)}


def _by_name(objects: Mapping[str, Message], kind: type[M]) -> dict[str, M]:
    return {of_key(key)[1]: message for key, message in _of(objects, kind).items()}
