"""What a policy must obey beyond its messages' types; the rules of models are those of the catalogue. Pure."""

import re
from collections.abc import Iterator, Mapping

from google.protobuf.message import Message

from headrace.inference.v1 import inference_pb2
from headrace.policy.v1 import policy_pb2
from headrace.registry.v1 import registry_pb2
from libs.catalogue import rules
from libs.catalogue.rules import Fault, nearest, positive

SHA256 = re.compile(r"[0-9a-f]{64}")


def within(message: Message) -> Iterator[Fault]:
    """The faults of one object by itself."""
    match message:
        case policy_pb2.Tenant():
            yield from _tenant(message)
        case policy_pb2.TierPolicy():
            yield from _tier(message)
        case policy_pb2.Route():
            if not message.model:
                yield Fault("model", "required")
        case registry_pb2.Model():
            yield from rules.entry(message)


def across(objects: Mapping[str, Message]) -> Iterator[tuple[str, Fault]]:
    """(key, fault): the faults that show only when all objects are seen together."""
    found = {
        message.name: (key, message) for key, message in objects.items() if isinstance(message, registry_pb2.Model)
    }
    models = {name: message for name, (_, message) in found.items()}
    for name, fault in rules.across(models):
        yield found[name][0], fault
    owners: dict[str, str] = {}
    for key, message in objects.items():
        match message:
            case policy_pb2.Route():
                if message.model and message.model not in models:
                    yield key, Fault("model", f"there is no {message.model!r}{nearest(message.model, models)}")
                if message.alias in models:
                    yield key, Fault("alias", f"{message.alias!r} is a model already")
            case policy_pb2.Tenant():
                for index, name in enumerate(message.models):
                    if name not in models:
                        yield key, Fault(f"models[{index}]", f"there is no {name!r}{nearest(name, models)}")
                for index, digest in enumerate(message.key_sha256):
                    if owners.setdefault(digest, message.name) != message.name:
                        path = f"key_sha256[{index}]"
                        yield key, Fault(path, f"{owners[digest]!r} has the key {digest[:8]}… too")


def _tenant(tenant: policy_pb2.Tenant) -> Iterator[Fault]:
    for index, digest in enumerate(tenant.key_sha256):
        if not SHA256.fullmatch(digest):
            text = f"{digest[:12]!r}… is not a SHA-256 in 64 hexadecimal digits, lower case"
            yield Fault(f"key_sha256[{index}]", text)
    if not tenant.key_sha256:
        yield Fault("key_sha256", "a tenant without a key cannot come in; `headrace keys new NAME` makes one")


def _tier(tier: policy_pb2.TierPolicy) -> Iterator[Fault]:
    if tier.tier == inference_pb2.TIER_UNSPECIFIED:
        yield Fault("tier", "required")
    default_s, most_s = tier.default_timeout.ToTimedelta(), tier.max_timeout.ToTimedelta()
    if default_s.total_seconds() <= 0:
        yield Fault("default_timeout", "must be more than 0s")
    elif default_s > most_s:
        yield Fault("max_timeout", "must not be less than default_timeout")
    yield from positive(tier, ("max_waiting_tokens", "max_waiting"))
