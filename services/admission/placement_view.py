"""What an operator sees of models and copies: the catalogue, what placement wants, what executors say, and what is
asked for, joined from the registry's messages."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from google.protobuf.message import Message

from headrace.operations.v1 import operations_pb2 as pb
from headrace.registry.v1 import registry_pb2
from libs.catalogue import ModelSpec, model_of, resolve, version_of
from libs.errors import Overloaded

MOST_WATCHES = 64
"""Open WatchPlacements calls of one process; more are refused."""

M = TypeVar("M", bound=Message, covariant=True)
CopyKey = tuple[str, str]
"""Executor and pool."""


class Followed(Protocol[M]):
    """What a view needs of a Mirror."""

    @property
    def items(self) -> Mapping[str, M]:
        """By the rest of their key."""

    @property
    def stale_since(self) -> float | None:
        """Unix seconds; None while in touch."""

    def on_change(self, callback: Callable[[], None]) -> None:
        """Calls back after each batch of changes."""


@dataclass(frozen=True, slots=True)
class Picture:
    """Everything at one moment. Messages in it are its own."""

    copies: Mapping[CopyKey, pb.Copy] = field(default_factory=dict)
    """In order."""
    unplaced: Mapping[str, registry_pb2.Unplaced] = field(default_factory=dict)
    executors: Mapping[str, pb.ExecutorMemory] = field(default_factory=dict)
    models: Mapping[str, pb.ModelStatus] = field(default_factory=dict)
    """Without their copies."""
    stale_since: float = 0.0


@dataclass(frozen=True, slots=True)
class _Lies:
    """What is looked up for each model."""

    ready: Mapping[str, list[pb.Copy]]
    """Copies that answer, by pool."""
    placed: Mapping[str, set[str]]
    """Executors that are to hold it, by model."""
    asked: Mapping[str, list[registry_pb2.ModelDemand]]
    """What each batcher says of it, by model."""


class PlacementView:
    """Joins mirrors, which it does not own.

    Args:
        placements: By "executor/pool".
        unplaced: By model.
        demand: By batcher.
    """

    def __init__(
        self,
        models: Followed[registry_pb2.Model],
        executors: Followed[registry_pb2.Executor],
        placements: Followed[registry_pb2.Placement],
        unplaced: Followed[registry_pb2.Unplaced],
        demand: Followed[registry_pb2.Demand],
    ) -> None:
        self._models = models
        self._executors = executors
        self._placements = placements
        self._unplaced = unplaced
        self._demand = demand
        self._specs: Mapping[str, ModelSpec] | None = None
        self._watches: set[asyncio.Event] = set()
        models.on_change(self._catalogue_changed)
        for mirror in (models, executors, placements, unplaced, demand):
            mirror.on_change(self._changed)

    @contextmanager
    def watch(self) -> Iterator[asyncio.Event]:
        """An event that is set after each change. Raises Overloaded when too many watch."""
        if len(self._watches) >= MOST_WATCHES:
            raise Overloaded(f"{MOST_WATCHES} watches are open already", retry_after_s=5.0)
        event = asyncio.Event()
        self._watches.add(event)
        try:
            yield event
        finally:
            self._watches.discard(event)

    def placement(self, key: CopyKey) -> registry_pb2.Placement | None:
        """What placement wrote for a copy."""
        return self._placements.items.get("/".join(key))

    def picture(self, only: Iterable[str] = ()) -> Picture:
        """Everything now; with `only`, of these models and of adapters of them."""
        specs = self._resolved()
        chosen = {model_of(specs[name].pool) if name in specs else name for name in only}
        copies = self._copies(chosen)
        lies = self._lies(copies.values())
        models = {
            name: self._status(message, specs, lies)
            for name, message in sorted(self._models.items.items())
            if not chosen or (message.base or name) in chosen
        }
        stale = [since for mirror in (self._models, self._executors, self._placements) if (since := mirror.stale_since)]
        return Picture(
            copies,
            {name: message for name, message in sorted(self._unplaced.items.items()) if not chosen or name in chosen},
            {name: _memory(executor) for name, executor in sorted(self._executors.items.items())},
            models,
            min(stale, default=0.0),
        )

    def _catalogue_changed(self) -> None:
        self._specs = None

    def _changed(self) -> None:
        for event in self._watches:
            event.set()

    def _resolved(self) -> Mapping[str, ModelSpec]:
        if self._specs is None:
            self._specs = resolve(self._models.items)
        return self._specs

    def _copies(self, chosen: set[str]) -> dict[CopyKey, pb.Copy]:
        found: dict[CopyKey, pb.Copy] = {}
        for key, placement in self._placements.items.items():
            executor, _, pool = key.partition("/")
            name, _, version = pool.partition("@")
            present = executor in self._executors.items
            found[executor, pool] = pb.Copy(
                executor=executor, pool=pool, model=name, version=version,
                state=registry_pb2.MODEL_STATE_PENDING,
                reason="" if present else "its executor is away",
                since=placement.placed_at,
                memory_bytes=placement.model.memory_bytes + placement.model.adapter_memory_bytes,
                placed=True, placement_reason=placement.reason, executor_present=present,
                offered_adapters=sorted(_adapter(adapter) for adapter in placement.adapters),
            )  # fmt: skip
        for executor, record in self._executors.items.items():
            for held in record.models:
                pool = held.pool or held.model
                copy = found.setdefault((executor, pool), pb.Copy(executor=executor, pool=pool, executor_present=True))
                copy.model, copy.version = held.model, held.version
                copy.state, copy.reason, copy.attempts = held.state, held.reason, held.attempts
                copy.since = held.since or copy.since
                copy.memory_bytes = held.memory_bytes or copy.memory_bytes
                copy.adapters.extend(held.adapters)
        return {key: found[key] for key in sorted(found) if not chosen or found[key].model in chosen}

    def _lies(self, copies: Iterable[pb.Copy]) -> "_Lies":
        lies = _Lies(defaultdict(list), defaultdict(set), defaultdict(list))
        for copy in copies:
            if copy.state == registry_pb2.MODEL_STATE_READY and copy.executor_present:
                lies.ready[copy.pool].append(copy)
            if copy.placed:
                lies.placed[copy.model].add(copy.executor)
        for demand in self._demand.items.values():
            for asked in demand.models:
                lies.asked[asked.model].append(asked)
        return lies

    def _status(self, message: registry_pb2.Model, specs: Mapping[str, ModelSpec], lies: "_Lies") -> pb.ModelStatus:
        """How far a model is, without its copies."""
        spec = specs.get(message.name) or ModelSpec.from_proto(message)
        base = specs.get(message.base) if message.base else spec
        status = pb.ModelStatus(model=spec.name, version=spec.version, base=message.base, pool=spec.pool)
        if base is None:  # an adapter without a base
            return status
        ready = lies.ready.get(spec.pool, [])
        status.wanted = self._wanted(base, len(lies.placed.get(base.name, ())))
        status.ready = sum(not spec.adapter or spec.adapter in copy.offered_adapters for copy in ready)
        if spec.adapter:
            status.resident_on.extend(
                copy.executor for copy in ready if any(held.adapter == spec.adapter for held in copy.adapters)
            )
        for asked in lies.asked.get(base.name, ()):
            status.running += asked.running
            status.waiting += asked.waiting
            status.oldest_waiting_ms = max(status.oldest_waiting_ms, asked.oldest_waiting_ms)
        if (unplaced := self._unplaced.items.get(base.name)) is not None:
            status.unplaced.CopyFrom(unplaced)
        return status

    def _wanted(self, spec: ModelSpec, placed: int) -> int:
        """Copies that the catalogue, and where it leaves that open placement, wants now."""
        if spec.scaling is not None:
            return min(max(placed, spec.scaling.min), spec.scaling.max)
        return spec.replicas or sum(_could_hold(spec, executor) for executor in self._executors.items.values())


def _could_hold(spec: ModelSpec, executor: registry_pb2.Executor) -> bool:
    return (
        not executor.draining
        and (not spec.engines or executor.engine in spec.engines)
        and spec.copy_bytes <= executor.memory_bytes
        and all(executor.labels.get(key) == value for key, value in spec.required_labels.items())
    )


def _adapter(message: registry_pb2.Model) -> str:
    return f"{message.name}@{version_of(message)}"


def _memory(executor: registry_pb2.Executor) -> pb.ExecutorMemory:
    return pb.ExecutorMemory(
        executor=executor.instance,
        engine=executor.engine,
        memory_bytes=executor.memory_bytes,
        used_bytes=executor.used_bytes,
        draining=executor.draining,
        labels=executor.labels,
    )
