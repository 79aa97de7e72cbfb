"""The kinds of rules: where each lies in etcd, and what it is called. No effects."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message

from headrace.inference.v1 import inference_pb2
from headrace.policy.v1 import policy_pb2
from headrace.registry.v1 import registry_pb2
from libs.registry import keys


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of rule."""

    folder: str
    """Its segment of keys in etcd, and its folder where rules are files: "tenants"."""
    noun: str
    """What people call one of them."""
    message: type[Message]
    name_field: str
    """The field that names it."""
    key: Callable[[str], str]
    """The key in etcd of a name. Raises ValueError for what can be no segment of a key."""
    prefix: str
    field: str = ""
    """Of operations.PolicyObject; "" for what has calls of its own."""

    def name(self, message: Any) -> str:
        """The name of an object of this kind; of a tier "interactive", "async" or "unspecified"."""
        if isinstance(message, policy_pb2.TierPolicy):
            return _tier(message.tier)
        return str(getattr(message, self.name_field))


def _tier(number: int) -> str:
    known = number in inference_pb2.Tier.values()
    return inference_pb2.Tier.Name(number).removeprefix("TIER_").lower() if known else str(number)  # type: ignore[arg-type]


MODELS = Kind("models", "model", registry_pb2.Model, "name", keys.model, keys.MODELS)
TIERS = Kind("tiers", "tier", policy_pb2.TierPolicy, "tier", keys.tier, keys.TIERS, "tier")
ISSUERS = Kind("issuers", "issuer", policy_pb2.TokenIssuer, "name", keys.issuer, keys.ISSUERS, "issuer")
TOOLS = Kind("tools", "tool", policy_pb2.Tool, "name", keys.tool, keys.TOOLS, "tool")
TENANTS = Kind("tenants", "tenant", policy_pb2.Tenant, "name", keys.tenant, keys.TENANTS, "tenant")
ROUTES = Kind("routes", "route", policy_pb2.Route, "alias", keys.route, keys.ROUTES, "route")
CONTRACTS = Kind("contracts", "contract", policy_pb2.Contract, "name", keys.contract, keys.CONTRACTS, "contract")
SCHEDULING = Kind(
    "scheduling", "scheduling", policy_pb2.Scheduling, "name", keys.scheduling, keys.SCHEDULING, "scheduling"
)
BREAKERS = Kind("breakers", "breaker", policy_pb2.Breaker, "name", keys.breaker, keys.BREAKERS, "breaker")
PINS = Kind("pins", "pin", policy_pb2.Pin, "name", keys.pin, keys.PINS)

KINDS: Mapping[str, Kind] = {
    kind.folder: kind
    for kind in (MODELS, TIERS, ISSUERS, TOOLS, TENANTS, ROUTES, CONTRACTS, SCHEDULING, BREAKERS, PINS)
}
"""By folder; what is named in front of what names it, so that written in this order no one sees a name without what
it stands for. (Tenants and routes may name each other; a route whose tenant is not there yet has one caller less.)"""
OF_MESSAGE: Mapping[type[Message], Kind] = {kind.message: kind for kind in KINDS.values()}
OF_FIELD: Mapping[str, Kind] = {kind.field: kind for kind in KINDS.values() if kind.field}
"""Those of operations.PolicyObject."""
POLICIES: Mapping[str, Kind] = {kind.folder: kind for kind in sorted(OF_FIELD.values(), key=lambda kind: kind.folder)}
"""Those that ApplyPolicy writes, by folder, in the order of their names."""


def of_key(key: str) -> tuple[Kind, str]:
    """The kind and the name of a key in etcd. Raises KeyError for a key of something else."""
    for kind in KINDS.values():
        if key.startswith(kind.prefix):
            return kind, key.removeprefix(kind.prefix)
    raise KeyError(key)


def key_of(message: Message) -> str:
    """The key under which an object lies. Raises ValueError where its name can be no segment of a key."""
    kind = OF_MESSAGE[type(message)]
    return kind.key(kind.name(message))
