"""Keeps the placements in etcd as the plan wants them, while this process leads."""

import asyncio

import structlog

from headrace.registry.v1 import registry_pb2
from libs.catalogue import ModelSpec
from libs.clock import Clock
from libs.registry import keys
from libs.registry.election import Election
from libs.registry.errors import NotLeading, RegistryError
from libs.registry.mirror import Mirror
from libs.telemetry import names
from libs.telemetry.metrics import Metrics
from services.placement.plan import ExecutorView, Plan, plan

log = structlog.get_logger()

SETTLE_S = 0.1
"""Changes that come together make one plan."""
RETRY_S = 1.0
"""After a plan that could not be written."""


class Controller:
    """Plans after each change and writes the difference, each write only while still leading.

    Args:
        absence_s: How long a missing executor keeps its placements.
    """

    def __init__(
        self,
        election: Election,
        models: Mirror[registry_pb2.Model],
        executors: Mirror[registry_pb2.Executor],
        placements: Mirror[registry_pb2.Placement],
        metrics: Metrics,
        clock: Clock,
        absence_s: float,
    ) -> None:
        self._election = election
        self._models = models
        self._executors = executors
        self._placements = placements
        self._clock = clock
        self._absence_s = absence_s
        self._last_seen: dict[str, tuple[float, ExecutorView]] = {}
        self._changed = asyncio.Event()
        self._leading = metrics.gauge(names.PLACEMENT_LEADING)
        self._plans = metrics.counter(names.PLACEMENT_PLANS)
        self._unplaced = metrics.gauge(names.PLACEMENT_UNPLACED)
        for mirror in (models, executors, placements):
            mirror.on_change(self._changed.set)
        election.on_change(self._changed.set)

    async def run(self) -> None:
        """Plans, for ever. Wakes by itself too: absences run out without any change."""
        while True:
            try:
                await asyncio.wait_for(self._changed.wait(), self._absence_s / 4)
            except TimeoutError:
                pass
            await asyncio.sleep(SETTLE_S)
            self._changed.clear()
            self._leading.set(self._election.leading)
            if not self._election.leading:
                self._last_seen.clear()  # whoever leads later begins its absences then
            else:
                try:
                    await self._apply(self._plan())
                except NotLeading:
                    log.info("deposed while writing a plan")
                except RegistryError as error:
                    log.warning("plan not written", error=str(error))
                    await asyncio.sleep(RETRY_S)
                    self._changed.set()

    def _plan(self) -> Plan:
        models = {name: ModelSpec.from_proto(model) for name, model in self._models.items.items()}
        current = {(p.executor, p.model.name): p.reason for p in self._placements.items.values()}
        return plan(models, self._views({executor for executor, _ in current}), current)

    def _views(self, placed: set[str]) -> dict[str, ExecutorView]:
        """Executors that are there, and those that were a moment ago."""
        now = self._clock.monotonic()
        views: dict[str, ExecutorView] = {}
        for name, executor in self._executors.items.items():
            failed = frozenset(m.model for m in executor.models if m.state == registry_pb2.MODEL_STATE_FAILED)
            views[name] = ExecutorView(executor.engine, executor.memory_bytes, failed, executor.draining)
            self._last_seen[name] = now, views[name]
        for name in placed - views.keys():
            # A leader that has just come to power has seen nobody: absences begin with it.
            seen, view = self._last_seen.setdefault(name, (now, ExecutorView("", 2**63)))
            if now - seen < self._absence_s:
                views[name] = ExecutorView(view.engine, view.memory_bytes, view.failed, present=False)
        self._last_seen = {n: seen for n, seen in self._last_seen.items() if n in views or n in placed}
        return views

    async def _apply(self, wanted: Plan) -> None:
        """Writes the difference between the plan and etcd."""
        epoch = self._election.epoch
        changes = 0
        target = {f"{p.executor}/{p.model}": p for p in wanted.placements}
        for key, placed in target.items():
            model = self._models.items.get(placed.model)
            known = self._placements.items.get(key)
            if model is None or (known is not None and known.model == model):
                continue
            message = registry_pb2.Placement(executor=placed.executor, model=model, epoch=epoch, reason=placed.reason)
            await self._election.put_fenced(keys.placement(placed.executor, placed.model), message)
            log.info("placed", model=placed.model, executor=placed.executor, reason=placed.reason)
            changes += 1
        for key in self._placements.items.keys() - target.keys():
            await self._election.delete_fenced(keys.PLACEMENTS + key)
            log.info("placement withdrawn", placement=key)
            changes += 1
        if changes:
            self._plans.inc()
        for name in self._models.items:
            self._unplaced.labels(name).set(name in wanted.missing)
