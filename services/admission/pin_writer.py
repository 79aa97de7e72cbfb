"""Writes pins for operators: tokenizes as the model does, and swaps only what is as it was read."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import structlog
from google.protobuf.message import Message

from etcdserverpb import rpc_pb2
from headrace.operations.v1 import operations_pb2 as pb
from headrace.policy.v1 import policy_pb2
from headrace.registry.v1 import registry_pb2
from libs.catalogue import pin_rules
from libs.catalogue.rules import NAME
from libs.errors import CatalogueChanged, PinUnknown, RequestInvalid, Violation
from libs.registry import Entry, Registry, ValueUnreadable, decode, encode, keys, transaction
from libs.tokens.template import TemplateRefusedError
from libs.tokens.tokenizer import Tokenizer
from services.admission import leading
from services.admission.convert import turns
from services.admission.request import Request
from services.admission.validate import violations

log = structlog.get_logger()

M = TypeVar("M", bound=Message)
MOST_CHARACTERS = 1_000_000
"""Of what is to be pinned: far more than the tokens that can be."""
_AGAIN = "nothing was written; look at the pins again, then decide anew"


@dataclass(frozen=True, slots=True)
class _Seen:
    """What etcd held when it was read."""

    pins: Mapping[str, policy_pb2.Pin]
    models: Mapping[str, registry_pb2.Model]
    """The model, and its base."""
    tenants: Mapping[str, policy_pb2.Tenant]
    revisions: Mapping[str, int]
    """Of all keys that were read; 0 for one that is not there."""


class PinWriter:
    """Methods raise RegistryError, and what is told to the caller.

    Args:
        aliases: Gives the models that the routes lead to.
        tokenizer: Gives the tokenizer of a model; raises StageUnavailable while it has none.
    """

    def __init__(
        self, registry: Registry, aliases: Callable[[], Mapping[str, str]], tokenizer: Callable[[str], Tokenizer]
    ) -> None:
        self._registry = registry
        self._aliases = aliases
        self._tokenizer = tokenizer

    async def all(self) -> list[pb.PinnedPrefix]:
        """Every pin, by name; one that cannot be read has a name and a revision."""
        _, entries = await self._registry.client.get_prefix(keys.PINS)
        models = await self._registry.get_messages(keys.MODELS, registry_pb2.Model)
        return [_told(_pin(entry), models, entry.mod_revision) for entry in entries]

    async def pin(self, request: pb.PinPrefixRequest, operator: str) -> pb.PinnedPrefix:
        """Pins a prefix. Raises RequestInvalid, StageUnavailable and CatalogueChanged."""
        model = self._aliases().get(request.model, request.model)
        pin = policy_pb2.Pin(name=request.name, model=model, tenant=request.tenant, copies=request.copies)
        seen = await self._read(pin)
        found, field = list(violations(_asked(request))), request.WhichOneof("input") or "input"
        if not found and model in seen.models:
            refused = await self._tokenize(request, seen.models[model], pin)
            found += [Violation("chat", refused)] if refused else []
        wrong = {violation.subject for violation in found}
        faults = [*pin_rules.entry(pin), *pin_rules.across(pin, seen.models, seen.tenants)]
        others = {name: other for name, other in seen.pins.items() if name != pin.name}
        faults += (fault for name, fault in pin_rules.in_all({**others, pin.name: pin}) if name == pin.name)
        for fault in faults:
            if fault.path != "token_ids":
                found += [Violation(fault.path, fault.text)] if fault.path not in wrong else []
            elif pin.token_ids or (model in seen.models and not found):
                found.append(Violation(field, fault.text))
        if found:
            raise RequestInvalid.of(found)
        key = keys.pin(pin.name)
        _expect(request, seen.revisions[key])
        if seen.pins.get(pin.name) == pin:
            return _told(pin, seen.models, seen.revisions[key])
        compare = [transaction.unchanged(each, revision) for each, revision in seen.revisions.items()]
        revision = await self._write(pin, compare)
        log.info(
            "prefix pinned", name=pin.name, model=pin.model, tenant=pin.tenant, tokens=len(pin.token_ids),
            copies=pin.copies, by=operator,
        )  # fmt: skip
        return _told(pin, seen.models, revision)

    async def unpin(self, request: pb.UnpinPrefixRequest, operator: str) -> None:
        """Unpins a prefix. Raises RequestInvalid, PinUnknown and CatalogueChanged."""
        if not NAME.fullmatch(request.name):
            raise RequestInvalid.of([Violation("name", f"{request.name!r} is not the name of a pin")])
        key = keys.pin(request.name)
        entry = await self._registry.client.get(key)
        if entry is None:
            raise PinUnknown(f"no prefix is pinned as {request.name}")
        _expect(request, entry.mod_revision)
        compare = [transaction.unchanged(key, entry.mod_revision)]
        answer, repeated = await self._registry.client.transact(compare, [transaction.delete(key)])
        if not answer.succeeded and not (repeated and await self._registry.client.get(key) is None):
            raise CatalogueChanged(f"the pin {request.name} was changed meanwhile; {_AGAIN}")
        log.info("prefix unpinned", name=request.name, by=operator)

    async def _read(self, pin: policy_pb2.Pin) -> _Seen:
        """The pins, and what the pin names. A name that is none names nothing."""
        client = self._registry.client
        _, entries = await client.get_prefix(keys.PINS)
        revisions = {keys.pin(pin.name): 0} if NAME.fullmatch(pin.name) else {}
        for entry in entries:
            if entry.key in revisions:
                revisions[entry.key] = entry.mod_revision
        models: dict[str, registry_pb2.Model] = {}
        tenants: dict[str, policy_pb2.Tenant] = {}

        async def read(key: str) -> Entry | None:
            entry = await client.get(key)
            revisions[key] = entry.mod_revision if entry is not None else 0
            return entry

        name = pin.model
        while NAME.fullmatch(name) and name not in models and (model := await read(keys.model(name))) is not None:
            models[name] = _decoded(model, registry_pb2.Model(name=name))
            name = models[name].base
        if NAME.fullmatch(pin.tenant) and (tenant := await read(keys.tenant(pin.tenant))) is not None:
            tenants[pin.tenant] = _decoded(tenant, policy_pb2.Tenant(name=pin.tenant))
        pins = {each.name: each for each in map(_pin, entries)}
        return _Seen(pins, models, tenants, revisions)

    async def _tokenize(self, request: pb.PinPrefixRequest, model: registry_pb2.Model, pin: policy_pb2.Pin) -> str:
        """Sets the pin's tokens; why the model does not take the chat, where it does not."""
        tokenizer = self._tokenizer(model.name)
        chat = [(turn.role, turn.content) for turn in turns(request.chat)]
        if chat and not tokenizer.has_chat_template:
            return f"{model.name} has no chat template: give a prompt"

        def tokenize() -> list[int]:
            if chat:
                return leading.of_chat(lambda said: tokenizer.render_chat([*chat, ("user", said)]))
            return leading.of_text(request.prompt, lambda text: tokenizer.encode(text, add_special=True))

        try:
            pin.token_ids.extend(await asyncio.to_thread(tokenize))
        except TemplateRefusedError as refusal:
            return f"the model's template does not take these turns in front of the user's: {refusal}"
        return ""

    async def _write(self, pin: policy_pb2.Pin, compare: Sequence[rpc_pb2.Compare]) -> int:
        key, value = keys.pin(pin.name), encode(pin)
        answer, repeated = await self._registry.client.transact(compare, [transaction.put(key, value)])
        if answer.succeeded:
            return answer.header.revision
        entry = await self._registry.client.get(key)
        if repeated and entry is not None and entry.value == value:  # an earlier attempt, whose answer got lost
            return entry.mod_revision
        raise CatalogueChanged(f"the pin {pin.name}, its model or its tenant was changed meanwhile; {_AGAIN}")


def _asked(request: pb.PinPrefixRequest) -> Request:
    """As a request whose prompt begins so; its rules are those of all requests."""
    kind = request.WhichOneof("input")
    length = len(request.prompt) + sum(len(turn.content) for turn in request.chat.messages)
    if length > MOST_CHARACTERS:
        text = f"has {length} characters; at most {MOST_CHARACTERS} are allowed"
        raise RequestInvalid.of([Violation(kind or "input", text)])
    return Request(
        model=request.model,
        chat=turns(request.chat) if kind == "chat" else None,
        prompt=request.prompt if kind == "prompt" else None,
    )


def _expect(request: pb.PinPrefixRequest | pb.UnpinPrefixRequest, revision: int) -> None:
    """Raises CatalogueChanged unless the pin is as the caller saw it."""
    if request.HasField("expected_revision") and request.expected_revision != revision:
        now = f"is at revision {revision}" if revision else "is not there"
        raise CatalogueChanged(f"the pin {request.name} {now}, not at {request.expected_revision}; {_AGAIN}")


def _pin(entry: Entry) -> policy_pb2.Pin:
    return _decoded(entry, policy_pb2.Pin(name=entry.key.removeprefix(keys.PINS)))


def _decoded(entry: Entry, otherwise: M) -> M:
    """The message; one that cannot be read is to be replaced, or removed by its name."""
    try:
        return decode(entry.value, type(otherwise))
    except ValueUnreadable:
        return otherwise


def _told(pin: policy_pb2.Pin, models: Mapping[str, registry_pb2.Model], revision: int) -> pb.PinnedPrefix:
    model = models.get(pin.model)
    base = models.get(model.base, model) if model is not None else None
    return pb.PinnedPrefix(
        name=pin.name,
        model=pin.model,
        tenant=pin.tenant,
        tokens=len(pin.token_ids),
        blocks=len(pin.token_ids) // base.block_tokens if base is not None and base.block_tokens else 0,
        copies=pin.copies,
        revision=revision,
    )
