"""What a policy must obey beyond its messages' types; the rules of models are those of the catalogue. Pure."""

import re
from collections.abc import Iterator, Mapping

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from headrace.inference.v1 import inference_pb2
from headrace.policy.v1 import policy_pb2
from headrace.registry.v1 import registry_pb2
from libs.catalogue import pin_rules, rules
from libs.catalogue.rules import Fault, nearest, positive
from services.console import scheduling_rules

SHA256 = re.compile(r"[0-9a-f]{64}")
WEIGHTS = (0.001, 1000.0)
MOST_TARGET_S = 3600.0
STRETCHES = (1.0, 1000.0)
MOST_AGE_S = 86_400.0


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
        case policy_pb2.Scheduling():
            yield from scheduling_rules.entry(message)
        case policy_pb2.Pin():
            yield from pin_rules.entry(message)
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
    tenants = {message.name: message for message in objects.values() if isinstance(message, policy_pb2.Tenant)}
    yield from pin_rules.in_all({key: pin for key, pin in objects.items() if isinstance(pin, policy_pb2.Pin)})
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
            case policy_pb2.Scheduling():
                for fault in scheduling_rules.across(message, models):
                    yield key, fault
            case policy_pb2.Pin():
                for fault in pin_rules.across(message, models, tenants):
                    yield key, fault


def _tenant(tenant: policy_pb2.Tenant) -> Iterator[Fault]:
    for index, digest in enumerate(tenant.key_sha256):
        if not SHA256.fullmatch(digest):
            text = f"{digest[:12]!r}… is not a SHA-256 in 64 hexadecimal digits, lower case"
            yield Fault(f"key_sha256[{index}]", text)
    if not tenant.key_sha256:
        yield Fault("key_sha256", "a tenant without a key cannot come in; `headrace keys new NAME` makes one")
    least, most = WEIGHTS
    if tenant.weight != 0 and not least <= tenant.weight <= most:
        yield Fault("weight", f"{tenant.weight:g}: a share against those of others, from {least:g} to {most:g}")


def _tier(tier: policy_pb2.TierPolicy) -> Iterator[Fault]:
    if tier.tier == inference_pb2.TIER_UNSPECIFIED:
        yield Fault("tier", "required")
    default_s, most_s = tier.default_timeout.ToTimedelta(), tier.max_timeout.ToTimedelta()
    if default_s.total_seconds() <= 0:
        yield Fault("default_timeout", "must be more than 0s")
    elif default_s > most_s:
        yield Fault("max_timeout", "must not be less than default_timeout")
    yield from positive(tier, ("max_waiting_tokens", "max_waiting"))
    there = tier.HasField("target_first_token")
    yield from _duration(tier.target_first_token, there, "target_first_token", MOST_TARGET_S)
    least, most = STRETCHES
    if tier.target_stretch != 0 and not least <= tier.target_stretch <= most:
        text = f"{tier.target_stretch:g}: a multiple of the time on an idle executor, from {least:g} to {most:g}"
        yield Fault("target_stretch", text)
    if tier.HasField("age") and tier.tier == inference_pb2.TIER_INTERACTIVE:
        yield Fault("age", "interactive work is as urgent as work can be: remove it here")
    else:
        yield from _duration(tier.age, tier.HasField("age"), "age", MOST_AGE_S)


def _duration(duration: Duration, there: bool, path: str, most_s: float) -> Iterator[Fault]:
    seconds = duration.seconds + duration.nanos / 1e9
    if there and not 0 < seconds <= most_s:
        yield Fault(path, f"{seconds:g}s: more than 0s, at most {most_s:g}s")
