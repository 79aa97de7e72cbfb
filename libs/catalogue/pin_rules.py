"""What a pinned prefix must obey beyond its message's types: shared by admission and the console. No effects."""

from collections.abc import Iterator, Mapping

from headrace.policy.v1 import policy_pb2
from headrace.registry.v1 import registry_pb2
from libs.catalogue.rules import MOST_COPIES, NAME, Fault, nearest

MOST_TOKENS = 32_768
"""Of one prefix: its entry in etcd has about 256 KiB."""
MOST_PINS = 256
MOST_TOKENS_IN_ALL = 262_144
"""Of all prefixes: who follows them reads them in one answer, and gRPC takes 4 MiB."""


def entry(pin: policy_pb2.Pin) -> Iterator[Fault]:
    """What is wrong with a pin by itself."""
    if not NAME.fullmatch(pin.name):
        text = f"{pin.name!r} is not a name: a-z, 0-9, '.', '_', '-', not '.', '_' or '-' first; at most 63"
        yield Fault("name", text if pin.name else "required")
    if not pin.model:
        yield Fault("model", "required")
    if len(pin.token_ids) > MOST_TOKENS:
        yield Fault("token_ids", f"{len(pin.token_ids)} tokens: at most {MOST_TOKENS}")
    if not pin.token_ids:
        yield Fault("token_ids", "required: the tokens that are kept")
    if pin.copies > MOST_COPIES:
        yield Fault("copies", f"{pin.copies}: at most {MOST_COPIES}")


def across(
    pin: policy_pb2.Pin,
    models: Mapping[str, registry_pb2.Model],
    tenants: Mapping[str, policy_pb2.Tenant],
) -> Iterator[Fault]:
    """What is wrong with a pin in a mesh that has these models and tenants."""
    model, tenant = models.get(pin.model), tenants.get(pin.tenant)
    if pin.model and model is None:
        yield Fault("model", f"there is no {pin.model!r}{nearest(pin.model, models)}")
    if model is not None:
        yield from _fit(pin, models.get(model.base, model))
    if pin.tenant and tenant is None:
        yield Fault("tenant", f"there is no {pin.tenant!r}{nearest(pin.tenant, tenants)}")
    if tenant is not None and not tenant.isolated:
        yield Fault("tenant", f"{pin.tenant!r} is not isolated: it finds what is pinned for all; leave it out")
    if tenant is not None and model is not None and tenant.models and model.name not in tenant.models:
        yield Fault("tenant", f"{pin.tenant!r} may not use {model.name!r}")


def in_all(pins: Mapping[str, policy_pb2.Pin]) -> Iterator[tuple[str, Fault]]:
    """(key, fault): the pins that are too many, in the order in which they are given."""
    tokens = 0
    for count, (key, pin) in enumerate(pins.items(), 1):
        tokens += len(pin.token_ids)
        if count > MOST_PINS:
            yield key, Fault("name", f"with it {count} prefixes are pinned: at most {MOST_PINS}")
        elif tokens > MOST_TOKENS_IN_ALL:
            yield key, Fault("token_ids", f"with it {tokens} tokens are pinned: at most {MOST_TOKENS_IN_ALL} in all")


def _fit(pin: policy_pb2.Pin, base: registry_pb2.Model) -> Iterator[Fault]:
    count = len(pin.token_ids)
    if base.source.startswith("remote:"):
        yield Fault("model", f"{base.name!r} runs at an endpoint that keeps what it wants: nothing can be pinned there")
    elif 0 < count < base.block_tokens:
        yield Fault(
            "token_ids", f"{count} tokens: a block of {base.name!r} has {base.block_tokens}, and less is not kept"
        )
    if count >= base.context_tokens > 0:
        yield Fault("token_ids", f"{count} tokens leave no room in a context of {base.context_tokens}")
