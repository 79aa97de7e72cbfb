"""Which object names which others. No effects.

One list for three uses: a name without an object is a fault, an object that is named stays, and a transaction holds
what it relies on.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from google.protobuf.message import Message

from headrace.policy.v1 import policy_pb2
from headrace.registry.v1 import registry_pb2
from libs.catalogue.rules import Fault, nearest
from libs.policy.bounds import shown
from libs.policy.kinds import KINDS, OF_MESSAGE, of_key

DEFAULT = "default"
"""The name of what holds for all models that have none of their own."""
_MODEL, _TENANT, _TOOL, _ISSUER = ("models",), ("tenants",), ("tools",), ("issuers",)
_CALLED = ("models", "routes")
"""What callers may name."""


@dataclass(frozen=True, slots=True)
class Reference:
    """A field that names another object."""

    path: str
    folders: tuple[str, ...]
    """Kinds of which the other may be."""
    name: str


def references(message: Message) -> Iterator[Reference]:
    """The names in an object; empty ones are left out."""
    return (reference for reference in _references(message) if reference.name)


def missing(objects: Mapping[str, Message], message: Message, but: Collection[str] = ()) -> Iterator[Fault]:
    """Names that stand for nothing, each with the nearest that does.

    Args:
        objects: By key in etcd.
        but: Paths that others judge.
    """
    for each in references(message):
        if each.path in but or any(KINDS[folder].prefix + each.name in objects for folder in each.folders):
            continue
        route = None if "routes" in each.folders else objects.get(KINDS["routes"].prefix + each.name)
        if each.folders == _MODEL and isinstance(route, policy_pb2.Route):
            yield Fault(each.path, f"{shown(each.name)} is itself an alias, of {route.model!r}: name a model")
            continue
        prefixes = [KINDS[folder].prefix for folder in each.folders]
        known = [key.removeprefix(prefix) for prefix in prefixes for key in objects if key.startswith(prefix)]
        yield Fault(each.path, f"there is no {shown(each.name)}{nearest(each.name[:80], known)}")


def referrers(objects: Mapping[str, Message], folder: str, name: str) -> list[tuple[str, str]]:
    """(key, path): who names an object, in order; one path for each."""
    found: dict[str, str] = {}
    for key, message in sorted(objects.items()):
        if OF_MESSAGE[type(message)].folder == folder and of_key(key)[1] == name:
            continue
        for each in references(message):
            others = [other for other in each.folders if other != folder]
            there = any(KINDS[other].prefix + name in objects for other in others)
            if folder in each.folders and each.name == name and not there:
                found.setdefault(key, each.path)
    return list(found.items())


def _references(message: Message) -> Iterator[Reference]:
    match message:
        case registry_pb2.Model():
            yield Reference("base", _MODEL, message.base)
        case policy_pb2.Tenant():
            yield from _each("models", _CALLED, message.models)
            for index, limit in enumerate(message.model_limits):
                yield Reference(f"model_limits[{index}].model", _MODEL, limit.model)
            for index, subject in enumerate(message.token_subjects):
                yield Reference(f"token_subjects[{index}].issuer", _ISSUER, subject.issuer)
        case policy_pb2.Route():
            yield from _of_route(message)
        case policy_pb2.Scheduling() | policy_pb2.Breaker():
            if message.name != DEFAULT:
                yield Reference("name", _MODEL, message.name)
        case policy_pb2.Contract():
            for index, tool in enumerate(message.tools):
                yield Reference(f"tools[{index}].tool", _TOOL, tool.tool)
            yield from _each("tenants", _TENANT, message.tenants)
        case policy_pb2.Pin():
            yield Reference("model", _MODEL, message.model)
            yield Reference("tenant", _TENANT, message.tenant)


def _of_route(route: policy_pb2.Route) -> Iterator[Reference]:
    yield Reference("model", _MODEL, route.model)
    for index, rule in enumerate(route.rules):
        yield Reference(f"rules[{index}].model", _MODEL, rule.model)
        yield from _each(f"rules[{index}].tenants", _TENANT, rule.tenants)
    for index, fallback in enumerate(route.fallbacks):
        yield Reference(f"fallbacks[{index}].model", _MODEL, fallback.model)
    yield Reference("canary.model", _MODEL, route.canary.model)
    yield from _each("canary.tenants", _TENANT, route.canary.tenants)
    yield Reference("shadow.model", _MODEL, route.shadow.model)
    yield from _each("shadow.tenants", _TENANT, route.shadow.tenants)
    yield Reference("hedge.model", _MODEL, route.hedge.model)
    yield from _each("cascade.models", _MODEL, route.cascade.models)
    yield Reference("small_model", _MODEL, route.small_model)


def _each(path: str, folders: tuple[str, ...], names: Collection[str]) -> Iterator[Reference]:
    return (Reference(f"{path}[{index}]", folders, name) for index, name in enumerate(names))
