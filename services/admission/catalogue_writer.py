"""Writes the catalogue for operators: reads what is there, compares, and swaps only what is as it was read."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import structlog
from google.protobuf.message import Message

from etcdserverpb import rpc_pb2
from headrace.operations.v1 import operations_pb2 as pb
from headrace.policy.v1 import policy_pb2
from headrace.registry.v1 import registry_pb2
from libs.catalogue.changes import Change, changes, removal, violations
from libs.catalogue.rules import NAME, Referrers, why_kept
from libs.clock import Clock
from libs.errors import CatalogueChanged, ModelUnknown, RequestInvalid, Violation
from libs.policy.references import references
from libs.registry import Entry, Registry, ValueUnreadable, decode, encode, keys, transaction

log = structlog.get_logger()

TRACE_S = 86_400
"""How long the record of a model's last change is kept."""
AT_ONCE = 60
"""Changes in one transaction; etcd takes 128 operations, and each change has two."""

_KINDS = {
    "unchanged": pb.CHANGE_KIND_UNCHANGED,
    "added": pb.CHANGE_KIND_ADDED,
    "changed": pb.CHANGE_KIND_CHANGED,
    "removed": pb.CHANGE_KIND_REMOVED,
}


@dataclass(frozen=True, slots=True)
class _Catalogue:
    """As it was read."""

    models: Mapping[str, registry_pb2.Model]
    revisions: Mapping[str, int]
    """Of every key, unreadable ones included."""
    referrers: Referrers


class CatalogueWriter:
    """Methods raise RegistryError, and what is told to the caller."""

    def __init__(self, registry: Registry, clock: Clock) -> None:
        self._registry = registry
        self._clock = clock

    async def apply(self, request: pb.ApplyModelsRequest, operator: str) -> list[pb.ModelChange]:
        """What changes; written unless it is a dry run. Raises RequestInvalid and CatalogueChanged."""
        catalogue = await self._read()
        await self._check_expected(request, catalogue)
        found = violations(
            catalogue.models, request.models, catalogue.referrers, prune=request.prune, force=request.force
        )
        if found:
            raise RequestInvalid.of(found)
        planned = changes(catalogue.models, request.models, prune=request.prune)
        written = {} if request.dry_run else await self._write(planned, catalogue, operator)
        return [
            _told(change, written.get(change.model, catalogue.revisions.get(change.model, 0))) for change in planned
        ]

    async def delete(self, name: str, operator: str, *, force: bool) -> pb.ModelChange:
        """Takes one model out. Raises ModelUnknown, RequestInvalid and CatalogueChanged."""
        catalogue = await self._read()
        model = catalogue.models.get(name)
        if model is None:
            raise ModelUnknown(f"the catalogue has no model {name!r}", metadata={"model": name})
        after = {other: kept for other, kept in catalogue.models.items() if other != name}
        if reasons := list(why_kept(name, after, catalogue.referrers, force=force)):
            raise RequestInvalid.of([Violation("name", reason) for reason in reasons])
        change = removal(model)
        await self._write([change], catalogue, operator)
        return _told(change, 0)

    async def _read(self) -> _Catalogue:
        _, entries = await self._registry.client.get_prefix(keys.MODELS)
        models: dict[str, registry_pb2.Model] = {}
        for entry in entries:
            name = entry.key.removeprefix(keys.MODELS)
            try:
                models[name] = decode(entry.value, registry_pb2.Model)
            except ValueUnreadable:  # to be replaced, or removed by its name
                models[name] = registry_pb2.Model(name=name)
        routes = await self._registry.get_messages(keys.ROUTES, policy_pb2.Route)
        tenants = await self._registry.get_messages(keys.TENANTS, policy_pb2.Tenant)
        pins = await self._registry.get_messages(keys.PINS, policy_pb2.Pin)
        scheduling = await self._registry.get_messages(keys.SCHEDULING, policy_pb2.Scheduling)
        breakers = await self._registry.get_messages(keys.BREAKERS, policy_pb2.Breaker)
        return _Catalogue(
            models,
            {entry.key.removeprefix(keys.MODELS): entry.mod_revision for entry in entries},
            Referrers(
                {alias: _named(route) for alias, route in routes.items()},
                {name: _named(tenant) for name, tenant in tenants.items()},
                {name: pin.model for name, pin in pins.items()},
                frozenset(scheduling),
                frozenset(breakers),
            ),
        )

    async def _check_expected(self, request: pb.ApplyModelsRequest, catalogue: _Catalogue) -> None:
        """Whether the catalogue is as the caller saw it."""
        expected = dict(request.expected_revisions)
        if not expected:
            return
        strange = [name for name in expected if name not in catalogue.revisions and not NAME.fullmatch(name)]
        if strange:
            said = "is no name of a model"
            raise RequestInvalid.of([Violation(f"expected_revisions[{name[:80]!r}]", said) for name in strange])
        if request.prune:  # what the caller did not see it must not remove
            expected = dict.fromkeys(catalogue.revisions, 0) | expected
        differ = [name for name, seen in expected.items() if catalogue.revisions.get(name, 0) != seen]
        if differ:
            raise await self._overtaken(differ[:AT_ONCE])

    async def _write(self, planned: Sequence[Change], catalogue: _Catalogue, operator: str) -> dict[str, int]:
        """Writes what differs; returns the revisions. Bases before their adapters, and out after them."""
        wanted = [change for change in planned if change.kind != "unchanged"]
        if not wanted:
            return {}
        # Of what is written the models of their own come first, of what is taken out the adapters.
        wanted.sort(key=lambda change: (change.after is None, bool(change.base) == (change.after is not None)))
        lease = await self._registry.client.grant(TRACE_S)
        written: dict[str, int] = {}
        for start in range(0, len(wanted), AT_ONCE):
            part = wanted[start : start + AT_ONCE]
            revisions = {name: written.get(name, catalogue.revisions.get(name, 0)) for name in _guarded(part)}
            compare = [transaction.unchanged(keys.model(name), seen) for name, seen in revisions.items()]
            told = {change.model: self._record(change, operator) for change in part}
            operations = [
                operation
                for change in part
                for operation in (
                    _operation(change),
                    transaction.put(keys.change(change.model), told[change.model], lease),
                )
            ]
            answer, repeated = await self._registry.client.transact(compare, operations)
            revision = answer.header.revision if answer.succeeded else await self._revision_of(told) if repeated else 0
            if not revision:
                raise await self._overtaken(list(revisions), revisions, len(written))
            written |= {change.model: 0 if change.after is None else revision for change in part}
            for change in part:
                log.info(
                    "catalogue changed", model=change.model, kind=change.kind, by=operator,
                    version=change.version, rolls_out=change.rolls_out,
                    fields=[difference.path for difference in change.differences],
                )  # fmt: skip
        return written

    def _record(self, change: Change, operator: str) -> bytes:
        message = _told(change, 0)
        message.operator, message.time = operator, self._clock.now()
        return encode(message)

    async def _revision_of(self, told: Mapping[str, bytes]) -> int:
        """Of an earlier attempt that did it all, and whose answer got lost; 0 if none did."""
        revision = 0
        for name, record in told.items():
            entry = await self._registry.client.get(keys.change(name))
            if entry is None or entry.value != record:
                return 0
            revision = entry.mod_revision
        return revision

    async def _overtaken(
        self, names: Sequence[str], seen: Mapping[str, int] | None = None, written: int = 0
    ) -> CatalogueChanged:
        """The error for a caller who decided on what is no more: who changed what."""
        stories: list[Violation] = []
        who: set[str] = set()
        for name in names:
            entry = await self._registry.client.get(keys.model(name))
            revision = entry.mod_revision if entry is not None else 0
            if seen is not None and revision == seen[name]:
                continue
            record = await self._registry.client.get(keys.change(name))
            change = _cause(revision, record)
            if change is None:
                told = f"{name} was {'changed' if entry else 'removed'} without OperationsService"
            else:
                told = _tell(change, self._clock.now())
                who.add(change.operator)
            stories.append(Violation(name, told))
        before = f"{written} models were written before that; " if written else "nothing was written; "
        return CatalogueChanged(
            f"{'; '.join(story.description for story in stories)}; {before}look at the changes again, then apply anew",
            metadata={
                "models": ",".join(story.subject for story in stories),
                "changed_by": ",".join(sorted(who)),
            },
            violations=stories,
        )


def _guarded(part: Iterable[Change]) -> list[str]:
    """Models that must be as they were read: those that change, and the bases that new adapters rely on."""
    names = [change.model for change in part]
    bases = [change.base for change in part if change.base and change.after is not None]
    return list(dict.fromkeys([*names, *bases]))


def _operation(change: Change) -> rpc_pb2.RequestOp:
    key = keys.model(change.model)
    return transaction.delete(key) if change.after is None else transaction.put(key, encode(change.after))


def _told(change: Change, revision: int) -> pb.ModelChange:
    return pb.ModelChange(
        model=change.model,
        kind=_KINDS[change.kind],
        fields=[pb.FieldChange(path=d.path, before=d.before, after=d.after) for d in change.differences],
        version_before=change.version_before,
        version=change.version,
        base=change.base,
        rolls_out=change.rolls_out,
        revision=revision,
    )


def _cause(revision: int, record: Entry | None) -> pb.ModelChange | None:
    """The record of the last change, if it is that of this very change: both are written together."""
    try:
        change = decode(record.value if record else b"", pb.ModelChange)
    except ValueUnreadable:
        return None
    removed = change.kind == pb.CHANGE_KIND_REMOVED
    together = record is not None and record.mod_revision == revision
    return change if (removed and not revision) or (together and not removed) else None


def _tell(change: pb.ModelChange, now: float) -> str:
    verb = {pb.CHANGE_KIND_ADDED: "added", pb.CHANGE_KIND_REMOVED: "removed"}.get(change.kind, "changed")
    fields = [f"{field.path} {field.before or 'unset'} → {field.after or 'unset'}" for field in change.fields[:3]]
    more = f" and {len(change.fields) - 3} more" if len(change.fields) > 3 else ""
    what = f": {', '.join(fields)}{more}" if verb == "changed" and fields else ""
    return f"{change.model} was {verb} by {change.operator} {max(0.0, now - change.time):.0f} s ago{what}"


def _named(message: Message) -> Sequence[str]:
    """Every model that a rule names."""
    return sorted({each.name for each in references(message) if "models" in each.folders})
