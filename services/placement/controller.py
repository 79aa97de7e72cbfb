"""Keeps the placements in etcd as the plan wants them, while this process leads."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

import structlog
from google.protobuf.message import Message

from headrace.registry.v1 import registry_pb2
from libs.catalogue import ModelSpec
from libs.clock import Clock
from libs.registry import keys
from libs.registry.election import Election
from libs.registry.errors import CompareFailed, NotLeading, RegistryError
from libs.registry.mirror import Mirror
from libs.registry.registry import Registry
from libs.telemetry.metrics import Metrics
from services.placement import records
from services.placement.book import Book
from services.placement.demand import Demand
from services.placement.failures import EXPIRY_S, Failures
from services.placement.observe import Observer
from services.placement.plan import plan
from services.placement.presence import Presence
from services.placement.values import Copy, ExecutorView, Failure, Plan, Rules, World

log = structlog.get_logger()

SETTLE_S = 0.1
"""Changes that come together make one plan."""
TICK_S = 1.0
"""Between two plans when nothing changes: absences, calm and back-off run out by themselves."""
SHARE = 0.2
"""Of its time, a large mesh's leader plans for this share at most."""
RETRY_S = 1.0
"""After a plan that could not be written."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """What the controller follows in etcd."""

    models: Mirror[registry_pb2.Model]
    executors: Mirror[registry_pb2.Executor]
    placements: Mirror[registry_pb2.Placement]
    """Only to notice when somebody else changes one: see Book."""
    demand: Mirror[registry_pb2.Demand]


class _Term:
    """What a leader knows, from its election to its end."""

    def __init__(
        self, epoch: int, book: Book, failures: Mapping[tuple[str, str], Failure], absence_s: float, now: float
    ) -> None:
        self.epoch = epoch
        self.book = book
        self.failures = Failures(failures)
        self.presence = Presence(absence_s)
        self.demand = Demand(now)


class Controller:
    """Plans after each change and each TICK_S, and writes the difference, each write only while still leading.

    Args:
        absence_s: How long a missing executor keeps its placements.
    """

    def __init__(
        self,
        registry: Registry,
        election: Election,
        inputs: Inputs,
        metrics: Metrics,
        clock: Clock,
        absence_s: float,
        rules: Rules,
    ) -> None:
        self._registry = registry
        self._election = election
        self._inputs = inputs
        self._clock = clock
        self._absence_s = absence_s
        self._rules = rules
        self._observer = Observer(metrics)
        self._term: _Term | None = None
        self._specs: dict[str, tuple[registry_pb2.Model, ModelSpec]] = {}
        self._copies: dict[str, tuple[registry_pb2.Placement, Copy]] = {}
        self._changed = asyncio.Event()
        for mirror in (inputs.models, inputs.executors, inputs.placements, inputs.demand):
            mirror.on_change(self._changed.set)
        election.on_change(self._changed.set)

    async def run(self) -> None:
        """Plans, for ever."""
        pause_s = SETTLE_S
        while True:
            try:
                async with asyncio.timeout(TICK_S):  # wait_for would swallow a cancel that comes with a change
                    await self._changed.wait()
            except TimeoutError:
                pass
            await asyncio.sleep(pause_s)
            self._changed.clear()
            self._observer.leading(self._election.leading)
            if not self._election.leading:
                self._term = None
                continue
            try:
                pause_s = max(SETTLE_S, await self._turn() / SHARE)
            except NotLeading:
                log.info("deposed while writing a plan")
                self._term = None
            except CompareFailed as error:
                log.warning("planning anew", error=str(error))
                self._changed.set()
            except RegistryError as error:
                log.warning("plan not written", error=str(error))
                await asyncio.sleep(RETRY_S)
                self._changed.set()
            except Exception:  # a bug must not end the only task that places anything
                log.exception("no plan could be made")
                await asyncio.sleep(RETRY_S)

    async def _turn(self) -> float:
        """One plan, carried out; returns the seconds that it took to make."""
        term = await self._current_term()
        now, started = self._clock.now(), self._clock.monotonic()
        there = {name: records.executor_view(one) for name, one in self._inputs.executors.items.items()}
        copies = self._copies_in(term.book)
        views = term.presence.views(there, {copy.executor for copy in copies}, started)
        await self._note_failures(term, there, now)
        models = self._catalogue()
        idle_s = {name: spec.scaling.idle_s if spec.scaling else 0.0 for name, spec in models.items()}
        asked = {name: records.asked(one) for name, one in self._inputs.demand.items.items()}
        stories = {m.model: m.reason for _, m in term.book.messages(keys.UNPLACED, registry_pb2.Unplaced)}
        loads = term.demand.loads(asked, idle_s, now)
        made = plan(World(models, views, copies, loads, term.failures.known, stories, now), self._rules)
        took_s = self._clock.monotonic() - started
        placements, unplaced = self._placements(term, made), self._unplaced(term, made, now)
        self._observer.planned(made, models, took_s)
        if placements or unplaced:
            await term.book.write({**placements, **unplaced})
            self._observer.written()
        for key, message in placements.items():
            if isinstance(message, registry_pb2.Placement):
                self._observer.placed(message.pool, message.executor, message.reason, term.epoch)
            else:
                self._observer.withdrawn(key.removeprefix(keys.PLACEMENTS), term.epoch)
        return took_s

    async def _current_term(self) -> _Term:
        """The running term; at its beginning, and when somebody else has changed a placement, reads etcd."""
        epoch, term = self._election.epoch, self._term
        if term is None or term.epoch != epoch:
            types: dict[str, type[Message]] = {
                keys.PLACEMENTS: registry_pb2.Placement,
                keys.UNPLACED: registry_pb2.Unplaced,
            }
            book = Book(self._registry.client, self._election, types)
            await book.read()
            left = await self._registry.get_messages(keys.FAILURES, registry_pb2.LoadFailure)
            failures = {(one.executor, one.pool): records.failure(one) for one in left.values()}
            self._term = term = _Term(epoch, book, failures, self._absence_s, self._clock.now())
        elif not term.book.certain:
            await term.book.read()
        elif (mirror := self._inputs.placements).revision >= term.book.revision:
            known = {key.removeprefix(keys.PLACEMENTS): message
                     for key, message in term.book.messages(keys.PLACEMENTS, registry_pb2.Placement)}  # fmt: skip
            if known != dict(mirror.items):
                await term.book.read()
        return term

    def _catalogue(self) -> dict[str, ModelSpec]:
        """The base models; what has not changed is not read again. One that this version cannot read stays as
        it was."""
        models = self._inputs.models.items
        for name, message in models.items():
            if name not in self._specs or self._specs[name][0] is not message:
                try:
                    self._specs[name] = message, ModelSpec.from_proto(message)
                except (KeyError, ValueError) as error:
                    log.error("model unreadable: correct its entry in the catalogue", model=name, error=str(error))
        self._specs = {name: known for name, known in self._specs.items() if name in models}
        return {name: spec for name, (_, spec) in self._specs.items() if not spec.base and spec.name == name}

    def _copies_in(self, book: Book) -> list[Copy]:
        read = dict[str, tuple[registry_pb2.Placement, Copy]]()
        for key, message in book.messages(keys.PLACEMENTS, registry_pb2.Placement):
            known = self._copies.get(key)
            read[key] = known if known and known[0] is message else (message, records.copy(message))
        self._copies = read
        return [copy for key, (_, copy) in read.items() if key == f"{keys.PLACEMENTS}{copy.executor}/{copy.spec.pool}"]

    async def _note_failures(self, term: _Term, there: Mapping[str, ExecutorView], now: float) -> None:
        """Writes down what could not be loaded, under a lease that ends when it is to be forgotten."""
        started = {name: one.start_time for name, one in self._inputs.executors.items.items()}
        for (executor, pool), failure in term.failures.observe(there, started, now).items():
            key = keys.failure(executor, pool)
            if failure is None:
                await self._election.delete_fenced(key)
                continue
            lease = await self._registry.client.grant(EXPIRY_S)
            await self._election.put_fenced(key, records.load_failure(executor, pool, failure), lease)
            self._observer.failed(pool)
            log.warning("copy could not be loaded", pool=pool, executor=executor, reason=failure.reason)

    def _placements(self, term: _Term, made: Plan) -> dict[str, Message | None]:
        """What is to be written so that the placements are those of the plan."""
        changes: dict[str, Message | None] = {}
        adapters = records.adapters(self._inputs.models.items)
        by_pool = {copy.spec.pool: message.model for message, copy in self._copies.values()}
        wanted = set[str]()
        for copy in made.copies:
            key, name = keys.placement(copy.executor, copy.spec.pool), copy.spec.name
            wanted.add(key)
            model, newest = self._specs[name]
            if copy.spec.pool != newest.pool:
                model = by_pool[copy.spec.pool]
            known = term.book.get(key)
            if (
                not isinstance(known, registry_pb2.Placement)
                or known.model != model
                or list(known.adapters) != adapters.get(name, [])
            ):
                changes[key] = records.placement(copy, model, adapters.get(name, []), term.epoch)
        for key in sorted(term.book.keys(keys.PLACEMENTS) - wanted):
            changes[key] = None
        return changes

    def _unplaced(self, term: _Term, made: Plan, now: float) -> dict[str, Message | None]:
        """The same for the models that have fewer copies than they should."""
        changes: dict[str, Message | None] = {}
        for name, lack in made.lacks.items():
            key = keys.unplaced(name)
            known = term.book.get(key)
            since = known.since if isinstance(known, registry_pb2.Unplaced) else round(now, 3)
            wanted = registry_pb2.Unplaced(model=name, reason=lack.reason, since=since, hopeless=lack.hopeless)
            wanted.epoch = known.epoch if isinstance(known, registry_pb2.Unplaced) else term.epoch
            if known != wanted:
                wanted.epoch = term.epoch
                changes[key] = wanted
                log.info("model lacks copies", model=name, missing=lack.missing, reason=lack.reason)
        for key in term.book.keys(keys.UNPLACED) - {keys.unplaced(name) for name in made.lacks}:
            changes[key] = None
        return changes
