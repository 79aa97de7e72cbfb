"""What a policy must obey beyond its messages' types. Pure."""

import re
from collections.abc import Iterable, Iterator, Mapping

from google.protobuf.message import Message

from headrace.inference.v1 import inference_pb2
from headrace.policy.v1 import policy_pb2
from headrace.registry.v1 import registry_pb2

SHA256 = re.compile(r"[0-9a-f]{64}")
CAPABILITIES = frozenset({"chat", "grammar", "log_probs"})
_REQUIRED_COUNTS = ("memory_bytes", "context_tokens", "blocks", "block_tokens", "slots", "step_tokens")


def within(message: Message) -> Iterator[str]:
    """The faults of one object by itself."""
    match message:
        case policy_pb2.Tenant():
            yield from _tenant(message)
        case policy_pb2.TierPolicy():
            yield from _tier(message)
        case policy_pb2.Route():
            if not message.model:
                yield "model: required"
        case registry_pb2.Model():
            yield from _model(message)


def across(objects: Mapping[str, Message]) -> Iterator[tuple[str, str]]:
    """(key, fault): the faults that show only when all objects are seen together."""
    models = {message.name for message in objects.values() if isinstance(message, registry_pb2.Model)}
    owners: dict[str, str] = {}
    for key, message in objects.items():
        match message:
            case policy_pb2.Route():
                if message.model and message.model not in models:
                    yield key, f"model: there is no {message.model!r}"
                if message.alias in models:
                    yield key, f"alias: {message.alias!r} is a model already"
            case policy_pb2.Tenant():
                for name in message.models:
                    if name not in models:
                        yield key, f"models: there is no {name!r}"
                for digest in message.key_sha256:
                    if owners.setdefault(digest, message.name) != message.name:
                        yield key, f"key_sha256: {owners[digest]!r} has the key {digest[:8]}… too"


def _tenant(tenant: policy_pb2.Tenant) -> Iterator[str]:
    for digest in tenant.key_sha256:
        if not SHA256.fullmatch(digest):
            yield f"key_sha256: {digest[:12]!r}… is not a SHA-256 in 64 hexadecimal digits, lower case"
    if not tenant.key_sha256:
        yield "key_sha256: a tenant without a key cannot come in; `headrace keys new NAME` makes one"


def _tier(tier: policy_pb2.TierPolicy) -> Iterator[str]:
    if tier.tier == inference_pb2.TIER_UNSPECIFIED:
        yield "tier: required"
    default_s, most_s = tier.default_timeout.ToTimedelta(), tier.max_timeout.ToTimedelta()
    if default_s.total_seconds() <= 0:
        yield "default_timeout: must be more than 0s"
    elif default_s > most_s:
        yield "max_timeout: must not be less than default_timeout"
    yield from _positive(tier, ("max_waiting_tokens", "max_waiting"))


def _model(model: registry_pb2.Model) -> Iterator[str]:
    if not model.source:
        yield "source: required"
    yield from _positive(model, _REQUIRED_COUNTS)
    if 0 < model.blocks * model.block_tokens < model.context_tokens:
        yield (
            f"blocks: {model.blocks} of {model.block_tokens} tokens do not hold one context"
            f" of {model.context_tokens} tokens"
        )
    for capability in model.capabilities:
        if capability not in CAPABILITIES:
            yield f"capabilities: {capability!r} is not one of {', '.join(sorted(CAPABILITIES))}"


def _positive(message: Message, fields: Iterable[str]) -> Iterator[str]:
    for name in fields:
        if getattr(message, name) <= 0:
            yield f"{name}: must be more than 0"
