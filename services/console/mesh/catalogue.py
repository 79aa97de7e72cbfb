"""How far the models of the policy are, from what the executors say of themselves. Pure."""

from collections.abc import Iterable, Sequence

from headrace.registry.v1 import registry_pb2
from services.console.mesh.snapshot import ModelSnapshot


def runnable(models: Iterable[registry_pb2.Model], engines: Sequence[str]) -> list[registry_pb2.Model]:
    """The models that executors with these engines can run; adapters come with their bases."""
    return [m for m in models if not m.base and (not m.engines or any(engine in m.engines for engine in engines))]


def states(models: Iterable[registry_pb2.Model], executors: Sequence[registry_pb2.Executor]) -> list[ModelSnapshot]:
    """One per model: ready as soon as one executor answers with it."""
    return [_state(model, executors) for model in models]


def settled(models: Iterable[registry_pb2.Model], executors: Sequence[registry_pb2.Executor], wanted: int) -> bool:
    """Whether every model is on as many executors as it can be: it wants `replicas` copies, 0 meaning one on
    each of the `wanted` executors, or the least that its scaling allows."""
    return all(
        sum(
            held.state == registry_pb2.MODEL_STATE_READY
            for executor in executors
            for held in executor.models
            if held.model == model.name
        )
        >= min(model.scaling.min if model.HasField("scaling") else model.replicas or wanted, wanted)
        for model in models
    )


def loading(executors: Iterable[registry_pb2.Executor]) -> bool:
    """Whether an executor is busy loading a model."""
    return any(held.state == registry_pb2.MODEL_STATE_LOADING for executor in executors for held in executor.models)


def _state(model: registry_pb2.Model, executors: Sequence[registry_pb2.Executor]) -> ModelSnapshot:
    name, on_demand = model.name, model.HasField("scaling") and not model.scaling.min
    held = [(executor.instance, copy) for executor in executors for copy in executor.models if copy.model == name]
    where = {
        state: [instance for instance, copy in held if copy.state == state]
        for state in registry_pb2.ModelState.values()
    }
    if ready := where[registry_pb2.MODEL_STATE_READY]:
        return ModelSnapshot(name, "ready", "on " + ", ".join(sorted(ready)), executors=tuple(sorted(ready)))
    if loading := where[registry_pb2.MODEL_STATE_LOADING]:
        return ModelSnapshot(name, "loading", "on " + ", ".join(sorted(loading)))
    if where[registry_pb2.MODEL_STATE_FAILED]:
        instance, copy = next(pair for pair in held if pair[1].state == registry_pb2.MODEL_STATE_FAILED)
        return ModelSnapshot(name, "failed", f"on {instance}: {copy.reason}")
    if on_demand:
        return ModelSnapshot(name, "asleep", "until it is asked for")
    return ModelSnapshot(name, "waiting", "for its placement")
