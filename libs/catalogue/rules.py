"""What an entry of the catalogue must obey beyond its message's types. No effects; every fault is told, not only
the first. Admission and the console share these rules; those of the engines' options are in
`libs.catalogue.engine_rules`.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches

from google.protobuf import json_format
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from headrace.registry.v1 import registry_pb2
from libs.catalogue import engine_rules
from libs.catalogue.engine_rules import ENGINES, SOURCE_ENGINES, Fault

__all__ = ["NAME", "Fault", "Referrers", "across", "entry", "nearest", "why_kept"]

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
"""Of models, routes and tenants. No "@": it stands between a name and its version."""
CAPABILITIES = frozenset({"chat", "grammar", "log_probs", "tools", "vision"})
"""What the mesh knows of; beside them a model may have those that only its callers know: "lang:de", "x:legal"."""
MOST_DRAIN_S = 3600.0
"""A copy that drains holds memory, and holds up a rollout."""
MOST_IDLE_S = 7 * 86400.0
MOST_COPIES = 10_000

_OWN_CAPABILITY = re.compile(r"(lang|x):[a-z0-9._-]{1,58}")
_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?")
_CURRENCY = re.compile(r"[A-Z]{3}")
_REVISION = re.compile(r"[!-~]{0,63}")
_COUNTS = ("context_tokens", "blocks", "block_tokens", "slots")
_LOCAL_COUNTS = ("memory_bytes", "step_tokens")
_OF_ADAPTERS = frozenset(
    {"name", "source", "memory_bytes", "capabilities", "labels", "price", "revision", "base", "shares_prefix"}
)
"""What an adapter has of its own; all else is its base's."""


@dataclass(frozen=True, slots=True)
class Referrers:
    """Who counts on a model's name, beside its adapters."""

    routes: Mapping[str, Sequence[str]]
    """Models that a route may lead to, by alias."""
    tenants: Mapping[str, Sequence[str]]
    """Models that a tenant may use, by tenant."""
    pins: Mapping[str, str] = field(default_factory=dict)
    """Models by pinned prefix."""
    scheduling: frozenset[str] = frozenset()
    """Models that have rules of scheduling of their own."""
    breakers: frozenset[str] = frozenset()
    """Models that have breakers of their own."""


def entry(model: registry_pb2.Model) -> Iterator[Fault]:
    """What is wrong with an entry by itself."""
    yield from _name(model.name)
    if not model.source:
        yield Fault("source", "required: a path, package:NAME, or simulated:, triton: or remote:")
    yield from _capabilities(model.capabilities)
    yield from _price(model)
    if not _REVISION.fullmatch(model.revision):
        yield Fault("revision", "at most 63 printable characters without blanks")
    if model.base:
        yield from _adapter(model)
    else:
        yield from _base(model)


def across(models: Mapping[str, registry_pb2.Model], routes: Iterable[str] = ()) -> Iterator[tuple[str, Fault]]:
    """(model, fault): what is wrong between the entries of a whole catalogue.

    Args:
        routes: Aliases, which share the callers' names with the models.
    """
    aliases = frozenset(routes)
    for name, model in models.items():
        if name in aliases:
            yield name, Fault("name", f"{name!r} is the alias of a route already")
        base = models.get(model.base)
        if not model.base or model.base == name:
            continue
        if base is None:
            yield name, Fault("base", f"there is no model {model.base!r}{nearest(model.base, models)}")
        elif base.base:
            yield name, Fault("base", f"{model.base!r} is itself an adapter, of {base.base!r}: name a model of its own")
        elif model.memory_bytes > base.adapter_memory_bytes:
            room = f"has room for {base.adapter_memory_bytes} bytes (its adapter_memory_bytes)"
            yield name, Fault("memory_bytes", f"{model.memory_bytes}, but a copy of {base.name!r} {room}")


def why_kept(name: str, after: Mapping[str, registry_pb2.Model], referrers: Referrers, *, force: bool) -> Iterator[str]:
    """What stands against taking a model out; `force` overrules all but adapters.

    Args:
        after: The catalogue without it.
    """
    adapters = sorted(model.name for model in after.values() if model.base == name)
    if adapters:
        yield f"it is the base of {_some(adapters)}: take adapters out before their base, or with it"
    if force:
        return
    if routes := sorted(alias for alias, models in referrers.routes.items() if name in models):
        yield f"the route {_some(routes)} leads to it: change the route first, or force it"
    if tenants := sorted(tenant for tenant, models in referrers.tenants.items() if name in models):
        yield f"the tenant {_some(tenants)} names it: change the tenant first, or force it"
    if pins := sorted(pin for pin, model in referrers.pins.items() if model == name):
        yield f"the prefix {_some(pins)} is pinned for it: unpin it first, or force it"
    if name in referrers.scheduling:
        yield "rules of scheduling are made for it: remove them first, or force it"
    if name in referrers.breakers:
        yield "a breaker is made for it: remove it first, or force it"


def nearest(word: str, known: Iterable[str]) -> str:
    """'; did you mean "…"?' for the known word that is nearest; "" where none is near."""
    found = get_close_matches(word.lower(), [*known], n=1, cutoff=0.6)
    return f"; did you mean {found[0]!r}?" if found else ""


def _name(name: str) -> Iterator[Fault]:
    if not name:
        yield Fault("name", "required")
    elif not NAME.fullmatch(name):
        yield Fault("name", f"{name!r} is not a name: a-z, 0-9, '.', '_', '-', not '.', '_' or '-' first; at most 63")


def _capabilities(capabilities: Sequence[str]) -> Iterator[Fault]:
    for index, capability in enumerate(capabilities):
        path = f"capabilities[{index}]"
        if capability not in CAPABILITIES and not _OWN_CAPABILITY.fullmatch(capability):
            known = ", ".join([*sorted(CAPABILITIES), "lang:…", "x:…"])
            yield Fault(path, f"{capability!r} is not one of {known}{nearest(capability, CAPABILITIES)}")
        elif capability in capabilities[:index]:
            yield Fault(path, f"{capability!r} is named twice")


def _price(model: registry_pb2.Model) -> Iterator[Fault]:
    if not model.HasField("price"):
        return
    for name in ("input", "cached_input", "output"):
        if not 0 <= getattr(model.price, name) < 1e9:
            yield Fault(f"price.{name}", f"{getattr(model.price, name):g}: per million tokens, at least 0")
    if not _CURRENCY.fullmatch(model.price.currency):
        yield Fault("price.currency", f"{model.price.currency!r} is not three capital letters of ISO 4217, as USD")


def _adapter(model: registry_pb2.Model) -> Iterator[Fault]:
    if model.base == model.name:
        yield Fault("base", "an adapter is not its own base")
    yield from positive(model, ("memory_bytes",))
    for given, _ in model.ListFields():
        if given.name not in _OF_ADAPTERS:
            yield Fault(given.name, f"an adapter has that of its base, {model.base!r}: remove it here")


def _base(model: registry_pb2.Model) -> Iterator[Fault]:
    elsewhere = engine_rules.elsewhere(model)
    yield from positive(model, _COUNTS if elsewhere else (*_LOCAL_COUNTS, *_COUNTS))
    if 0 < model.blocks * model.block_tokens < model.context_tokens:
        held = f"{model.blocks} of {model.block_tokens} tokens"
        needed = -(-model.context_tokens // model.block_tokens)
        context = f"one context of {model.context_tokens} tokens"
        yield Fault("blocks", f"{held} do not hold {context}: at least {needed}")
    if model.shares_prefix:
        yield Fault("shares_prefix", "only an adapter can, and this has no base")
    if model.replicas > MOST_COPIES:
        yield Fault("replicas", f"{model.replicas}: at most {MOST_COPIES}")
    yield from _engines(model)
    yield from _scaling(model)
    yield from _labels(model)
    yield from _duration(model.drain_timeout, model.HasField("drain_timeout"), "drain_timeout", MOST_DRAIN_S)
    yield from engine_rules.options(model)


def _engines(model: registry_pb2.Model) -> Iterator[Fault]:
    for index, engine in enumerate(model.engines):
        path = f"engines[{index}]"
        if engine not in ENGINES:
            yield Fault(path, f"{engine!r} is not one of {', '.join(ENGINES)}{nearest(engine, ENGINES)}")
        elif engine in model.engines[:index]:
            yield Fault(path, f"{engine!r} is named twice")
    only = SOURCE_ENGINES.get(model.source.partition(":")[0] + ":", "")
    others = set(model.engines).intersection(ENGINES) - {only}
    if only and (others or (engine_rules.elsewhere(model) and not model.engines)):
        yield Fault("engines", f"with the source {model.source!r} only {only} executors can run it: [{only}]")


def _scaling(model: registry_pb2.Model) -> Iterator[Fault]:
    if not model.HasField("scaling"):
        return
    scaling = model.scaling
    if scaling.max < 1:
        yield Fault("scaling.max", "required: at least 1")
    elif scaling.min > scaling.max:
        yield Fault("scaling.min", f"{scaling.min} is more than scaling.max, {scaling.max}")
    if scaling.max > MOST_COPIES:
        yield Fault("scaling.max", f"{scaling.max}: at most {MOST_COPIES}")
    yield from _duration(scaling.idle, scaling.HasField("idle"), "scaling.idle", MOST_IDLE_S)


def _labels(model: registry_pb2.Model) -> Iterator[Fault]:
    form = "letters, digits, '.', '_', '/' and '-', a letter or digit at both ends, at most 63"
    for key, value in sorted(model.required_labels.items()):
        if not _LABEL.fullmatch(key):
            yield Fault("required_labels", f"the label {key!r} is not of the form: {form}")
        if not _LABEL.fullmatch(value):
            yield Fault(f"required_labels.{key}", f"{value!r} is not of the form: {form}")
    if model.spread_label and not _LABEL.fullmatch(model.spread_label):
        yield Fault("spread_label", f"{model.spread_label!r} is not of the form: {form}")
    try:
        json_format.MessageToDict(model.labels)
    except ValueError as error:  # the message allows NaN and infinity
        yield Fault("labels", f"cannot be written as JSON: {error}")


def _duration(duration: Duration, there: bool, path: str, most_s: float) -> Iterator[Fault]:
    seconds = duration.seconds + duration.nanos / 1e9
    mixed = abs(duration.nanos) >= 1e9 or duration.seconds * duration.nanos < 0
    if there and (mixed or not 0 < seconds <= most_s):
        yield Fault(path, f"{seconds:g}s: more than 0s, at most {most_s:g}s, its parts of one sign")


def positive(message: Message, fields: Iterable[str]) -> Iterator[Fault]:
    """Faults of the fields that have to be above zero and are not."""
    for name in fields:
        if getattr(message, name) <= 0:
            yield Fault(name, "must be more than 0")


def _some(names: Sequence[str], most: int = 3) -> str:
    """The first few, and how many more."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(repr(name) for name in names[:most]) + rest
