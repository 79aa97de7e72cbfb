"""The placement controller's metrics and log lines. Models are those of the catalogue: a bounded set."""

from collections.abc import Mapping

import structlog

from libs.catalogue import ModelSpec, model_of
from libs.telemetry import names
from libs.telemetry.metrics import Metrics
from services.placement.values import Plan

log = structlog.get_logger()


class Observer:
    """Counts plans and what they change."""

    def __init__(self, metrics: Metrics) -> None:
        self._leading = metrics.gauge(names.PLACEMENT_LEADING)
        self._plans = metrics.counter(names.PLACEMENT_PLANS)
        self._took = metrics.histogram(names.PLACEMENT_PLAN)
        self._changes = metrics.counter(names.PLACEMENT_CHANGES)
        self._missing = metrics.gauge(names.PLACEMENT_UNPLACED)
        self._copies = metrics.gauge(names.PLACEMENT_COPIES)
        self._failures = metrics.counter(names.PLACEMENT_FAILURES)
        self._models: set[str] = set()

    def leading(self, leads: bool) -> None:
        """Whether this process leads."""
        self._leading.set(leads)

    def planned(self, plan: Plan, models: Mapping[str, ModelSpec], seconds: float) -> None:
        """A plan was made, in so many seconds."""
        self._took.observe(seconds)
        for gone in self._models - models.keys():
            self._missing.remove(gone)
            self._copies.remove(gone)
        self._models = set(models)
        copies = dict.fromkeys(models, 0)
        for copy in plan.copies:
            copies[copy.spec.name] += 1
        for model, count in copies.items():
            self._copies.labels(model).set(count)
            lack = plan.lacks.get(model)
            self._missing.labels(model).set(lack.missing if lack else 0)

    def placed(self, pool: str, executor: str, reason: str, epoch: int) -> None:
        """A placement was written."""
        self._changes.labels("placed").inc()
        log.info("placed", pool=pool, executor=executor, reason=reason, epoch=epoch)

    def withdrawn(self, placement: str, epoch: int) -> None:
        """A placement, "executor/pool", was deleted."""
        self._changes.labels("withdrawn").inc()
        log.info("placement withdrawn", placement=placement, epoch=epoch)

    def written(self) -> None:
        """A plan's difference was written, whole."""
        self._plans.inc()

    def failed(self, pool: str) -> None:
        """A copy could not be loaded."""
        self._failures.labels(model_of(pool)).inc()
