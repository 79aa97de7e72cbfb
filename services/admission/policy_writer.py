"""Writes rules for operators: reads what is there, judges both together, and swaps only what is as it was read.

All writers through OperationsService come one after the other: each transaction holds, and replaces, one key that
tells who changed what last. Who writes to etcd directly (`headrace policy apply`) is noticed where it counts: the
objects that are written, and those that they name, have to be as they were read. Whoever comes second judges anew.
"""

import asyncio
import json
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import structlog
from google.protobuf.message import Message

from etcdserverpb import rpc_pb2
from headrace.operations.v1 import operations_pb2 as pb
from headrace.policy.v1 import policy_pb2
from libs.catalogue.rules import NAME, nearest
from libs.clock import Clock
from libs.errors import CatalogueChanged, PolicyUnknown, RequestInvalid, Violation
from libs.policy.changes import Wanted, relied_on, violations, why_kept
from libs.policy.kinds import KINDS, OF_FIELD, POLICIES, Kind, key_of
from libs.registry import Entry, Registry, ValueUnreadable, decode, encode, keys, transaction

log = structlog.get_logger()

MOST_OBJECTS = 60
MOST_HELD = 120
"""Objects that one transaction writes or relies on; etcd takes 128 comparisons."""
MOST_BYTES = 1_000_000
"""Of one transaction; etcd takes 1.5 MiB."""
TRIES = 10
"""How often a change is judged anew, because somebody else was quicker."""


@dataclass(frozen=True, slots=True)
class _Stored:
    """What etcd held when it was read."""

    objects: Mapping[str, Message]
    """By key; what cannot be read is left out."""
    revisions: Mapping[str, int]
    """Of every key, unreadable ones and keys.POLICY_CHANGE included."""


class PolicyWriter:
    """Methods raise RegistryError, and what is told to the caller."""

    def __init__(self, registry: Registry, clock: Clock) -> None:
        self._registry = registry
        self._clock = clock

    async def apply(self, request: pb.ApplyPolicyRequest, operator: str) -> list[str]:
        """The keys that change, in the order of the request; written unless it is a dry run.

        Raises RequestInvalid and CatalogueChanged.
        """
        _well_formed(request)
        for _ in range(TRIES):
            stored = await self._read()
            wanted = [_wanted(index, each, stored) for index, each in enumerate(request.objects)]
            if found := await asyncio.to_thread(violations, stored.objects, wanted):
                raise RequestInvalid.of(found)
            changed = {key_of(each.message): each.message for each in wanted}
            changed = {key: message for key, message in changed.items() if stored.objects.get(key) != message}
            relied = relied_on(stored.objects, list(changed.values()))
            if len(changed.keys() | relied) > MOST_HELD:
                said = f"they name {len(relied)} others: at most {MOST_HELD} altogether; apply them in parts"
                raise RequestInvalid.of([Violation("objects", said)])
            values = {key: encode(message) for key, message in changed.items()}
            if (size := sum(map(len, values.values()))) > MOST_BYTES:
                said = f"{size} bytes at once: at most {MOST_BYTES}; apply them in parts"
                raise RequestInvalid.of([Violation("objects", said)])
            operations = [transaction.put(key, value) for key, value in values.items()]
            if request.dry_run or not changed or await self._swap(stored, changed, relied, operations, operator):
                return list(changed)
        raise CatalogueChanged(f"the rules were changed {TRIES} times meanwhile; nothing was written; apply anew")

    async def delete(self, folder: str, name: str, operator: str) -> None:
        """Takes a rule away. Raises RequestInvalid, PolicyUnknown and CatalogueChanged."""
        kind = _kind(folder)
        if not NAME.fullmatch(name):
            raise RequestInvalid.of([Violation("name", f"{name!r} is not the name of a {kind.noun}")])
        key = kind.key(name)
        for _ in range(TRIES):
            stored = await self._read()
            if key not in stored.revisions:
                names = [each.removeprefix(kind.prefix) for each in stored.revisions if each.startswith(kind.prefix)]
                raise PolicyUnknown(f"there is no {kind.noun} {name!r}{nearest(name, names)}")
            if found := why_kept(stored.objects, folder, name):
                raise RequestInvalid.of(found)
            if await self._swap(stored, {key: None}, (), [transaction.delete(key)], operator):
                return
        raise CatalogueChanged(f"the rules were changed {TRIES} times meanwhile; nothing was deleted; try anew")

    async def all(self, folder: str) -> list[pb.PolicyObject]:
        """The rules of a kind, or with "" of every kind, by kind and name; tenants without their keys' hashes.

        Raises RequestInvalid for a kind that is none.
        """
        kinds = [_kind(folder)] if folder else list(POLICIES.values())
        stored = await self._objects(kinds)
        found: list[pb.PolicyObject] = []
        for kind in kinds:
            for key in sorted(key for key in stored.objects if key.startswith(kind.prefix)):
                each = pb.PolicyObject()
                getattr(each, kind.field).CopyFrom(stored.objects[key])
                if kind.field == "tenant":
                    each.tenant.ClearField("key_sha256")
                found.append(each)
        return found

    async def _read(self) -> _Stored:
        """Everything; who changed it last comes first, so that what follows is no older."""
        last = await self._registry.client.get(keys.POLICY_CHANGE)
        stored = await self._objects(list(KINDS.values()))
        revisions = {**stored.revisions, keys.POLICY_CHANGE: last.mod_revision if last is not None else 0}
        return _Stored(stored.objects, revisions)

    async def _objects(self, kinds: Sequence[Kind]) -> _Stored:
        read = [(kind, (await self._registry.client.get_prefix(kind.prefix))[1]) for kind in kinds]
        return await asyncio.to_thread(_decoded, read)  # thousands of tenants must not hold up a stream

    async def _swap(
        self,
        stored: _Stored,
        changed: Mapping[str, Message | None],
        relied: Collection[str],
        operations: Sequence[rpc_pb2.RequestOp],
        operator: str,
    ) -> bool:
        """Whether it is done; if not, something that counts is not as it was read."""
        told = {"operator": operator, "time": self._clock.now(), "changed": list(changed), "id": uuid.uuid4().hex}
        record = json.dumps(told).encode()
        compare = [
            transaction.unchanged(key, stored.revisions.get(key, 0)) for key in {keys.POLICY_CHANGE, *changed, *relied}
        ]
        put = transaction.put(keys.POLICY_CHANGE, record)
        answer, repeated = await self._registry.client.transact(compare, [*operations, put])
        if not answer.succeeded:
            last = await self._registry.client.get(keys.POLICY_CHANGE) if repeated else None
            if last is None or last.value != record:  # not an earlier attempt of ours, whose answer got lost
                return False
        log.info("rules changed", by=operator, keys=[key.removeprefix(keys.ROOT) for key in changed])
        return True


def _decoded(read: Sequence[tuple[Kind, Sequence[Entry]]]) -> _Stored:
    objects: dict[str, Message] = {}
    revisions: dict[str, int] = {}
    for kind, entries in read:
        for entry in entries:
            revisions[entry.key] = entry.mod_revision
            try:
                objects[entry.key] = decode(entry.value, kind.message)
            except ValueUnreadable as error:  # to be replaced, or removed by its name
                log.warning("a rule cannot be read", key=entry.key, error=str(error))
    return _Stored(objects, revisions)


def _well_formed(request: pb.ApplyPolicyRequest) -> None:
    """Raises RequestInvalid for a request that holds nothing, too much, or an empty object."""
    if not request.objects:
        raise RequestInvalid.of([Violation("objects", "is empty: it holds the rules to be written")])
    if len(request.objects) > MOST_OBJECTS:
        said = f"{len(request.objects)} at once; at most {MOST_OBJECTS}"
        raise RequestInvalid.of([Violation("objects", said)])
    empty = [index for index, each in enumerate(request.objects) if each.WhichOneof("object") is None]
    if empty:
        said = f"exactly one of {', '.join(OF_FIELD)} is required"
        raise RequestInvalid.of([Violation(f"objects[{index}]", said) for index in empty])


def _wanted(index: int, each: pb.PolicyObject, stored: _Stored) -> Wanted:
    """The object; a tenant that says nothing of its keys as it is to be stored."""
    field = each.WhichOneof("object")
    assert field is not None
    message: Message = getattr(each, field)
    if isinstance(message, policy_pb2.Tenant) and not message.key_sha256:
        there = stored.objects.get(keys.TENANTS + message.name)
        if isinstance(there, policy_pb2.Tenant):
            kept = policy_pb2.Tenant()
            kept.CopyFrom(message)
            kept.key_sha256.extend(there.key_sha256)
            message = kept
    return Wanted(f"objects[{index}].{field}", message)


def _kind(folder: str) -> Kind:
    """Raises RequestInvalid."""
    if folder not in POLICIES:
        said = f"{folder[:80]!r} is not one of {', '.join(POLICIES)}{nearest(folder[:80], POLICIES)}"
        raise RequestInvalid.of([Violation("kind", said)])
    return POLICIES[folder]
