"""The registry's messages as values of placement, and back."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from headrace.registry.v1 import registry_pb2
from libs.catalogue import ModelSpec
from services.placement.demand import Asked
from services.placement.values import Copy, ExecutorView, Failure, Resident, State

STATES: Mapping[int, State] = {
    registry_pb2.MODEL_STATE_PENDING: "pending",
    registry_pb2.MODEL_STATE_LOADING: "loading",
    registry_pb2.MODEL_STATE_READY: "ready",
    registry_pb2.MODEL_STATE_DRAINING: "draining",
    registry_pb2.MODEL_STATE_FAILED: "failed",
}
"""A state that this version does not know is taken for pending."""


def executor_view(executor: registry_pb2.Executor) -> ExecutorView:
    """What an executor says of itself."""
    residents = {
        copy.pool: Resident(
            STATES.get(copy.state, "pending"), copy.since, copy.memory_bytes, copy.reason, copy.attempts
        )
        for copy in executor.models
        if copy.pool
    }
    return ExecutorView(executor.engine, executor.memory_bytes, dict(executor.labels), residents, executor.draining)


def copy(placement: registry_pb2.Placement) -> Copy:
    """A placement as it was written. Its pool is what it says, even if a version is made differently now."""
    spec = ModelSpec.from_proto(placement.model)
    version = placement.pool.partition("@")[2]
    spec = replace(spec, version=version, pool=placement.pool)
    return Copy(placement.executor, spec, placement.reason, placement.placed_at)


def placement(
    copy: Copy, model: registry_pb2.Model, adapters: Iterable[registry_pb2.Model], epoch: int
) -> registry_pb2.Placement:
    """A placement to be written."""
    return registry_pb2.Placement(
        executor=copy.executor,
        model=model,
        epoch=epoch,
        reason=copy.reason,
        adapters=adapters,
        pool=copy.spec.pool,
        placed_at=round(copy.placed_at, 3),
    )


def adapters(models: Mapping[str, registry_pb2.Model]) -> dict[str, list[registry_pb2.Model]]:
    """The adapters of a catalogue by the name of their base, each list in order of name."""
    found: dict[str, list[registry_pb2.Model]] = {}
    for _, model in sorted(models.items()):
        if model.base:
            found.setdefault(model.base, []).append(model)
    return found


def asked(demand: registry_pb2.Demand) -> dict[str, Asked]:
    """What a batcher says, by model."""
    return {
        one.model: Asked(one.requests, one.running, one.waiting, one.oldest_waiting_ms / 1000, one.last_request)
        for one in demand.models
    }


def failure(message: registry_pb2.LoadFailure) -> Failure:
    """A failure as it was written."""
    return Failure(message.at, message.attempts, message.reason)


def load_failure(executor: str, pool: str, failure: Failure) -> registry_pb2.LoadFailure:
    """A failure to be written."""
    return registry_pb2.LoadFailure(
        executor=executor, pool=pool, reason=failure.reason, attempts=failure.attempts, at=failure.at
    )
