"""Which model belongs on which executor? Pure.

What lies well stays: a plan moves a model only when its executor is gone, cannot run it (any more, with all that
it is to hold), or the catalogue wants fewer copies. A missing copy goes to the executor with the most free memory.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from libs.catalogue import ModelSpec


@dataclass(frozen=True, slots=True)
class ExecutorView:
    """What placement knows of an executor."""

    engine: str
    """Empty while it is not known: then it may be any."""
    memory_bytes: int
    failed: frozenset[str] = frozenset()
    """Models that it could not load."""
    draining: bool = False
    present: bool = True
    """False while it is missing but may be restarting: it keeps what it has and gets nothing new."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A model on an executor."""

    executor: str
    model: str
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What is wanted, whole."""

    placements: Sequence[Placed]
    """In order of model, then executor."""
    missing: Mapping[str, str]
    """Models with fewer copies than wanted, and why."""


def plan(
    models: Mapping[str, ModelSpec], executors: Mapping[str, ExecutorView], current: Mapping[tuple[str, str], str]
) -> Plan:
    """Plans from scratch, leaning on what is.

    Args:
        current: Reasons of today's placements, by (executor, model).
    """
    free = {name: executor.memory_bytes for name, executor in executors.items()}
    placed: list[Placed] = []
    missing: dict[str, str] = {}
    kept: dict[str, list[str]] = {}
    # First what stays, for all models: nothing new may take the memory of something that lies well.
    for name, spec in sorted(models.items()):
        stay = [
            executor
            for executor in sorted(executors)
            if (executor, name) in current
            and not _obstacle(spec, executors[executor])
            and free[executor] >= spec.memory_bytes  # a model may have grown
        ]
        stay.sort(key=lambda executor: name in executors[executor].failed)  # the failed ones go first
        kept[name] = stay[: spec.replicas] if spec.replicas else stay
        for executor in kept[name]:
            free[executor] -= spec.memory_bytes
            placed.append(Placed(executor, name, current[executor, name]))
    for name, spec in sorted(models.items()):
        can = [e for e in executors if not _obstacle(spec, executors[e])]
        wanted = spec.replicas or len(can)
        while len(kept[name]) < wanted:
            candidates = [
                executor
                for executor in can
                if executor not in kept[name]
                and executors[executor].present
                and name not in executors[executor].failed
                and free[executor] >= spec.memory_bytes
            ]
            if not candidates:
                missing[name] = _why_missing(spec, executors, can, len(kept[name]), wanted)
                break
            chosen = min(candidates, key=lambda executor: (-free[executor], executor))
            reason = f"copy {len(kept[name]) + 1} of {wanted}: most free memory of {len(candidates)} executors"
            placed.append(Placed(chosen, name, reason))
            kept[name].append(chosen)
            free[chosen] -= spec.memory_bytes
    return Plan(sorted(placed, key=lambda p: (p.model, p.executor)), missing)


def _obstacle(spec: ModelSpec, executor: ExecutorView) -> str:
    """Why an executor cannot hold a model at all; "" if it can."""
    if executor.draining:
        return "it is draining"
    if spec.engines and executor.engine and executor.engine not in spec.engines:
        return f"its engine is {executor.engine}"
    if executor.memory_bytes < spec.memory_bytes:
        return "it is too small"
    return ""


def _why_missing(
    spec: ModelSpec, executors: Mapping[str, ExecutorView], can: Sequence[str], copies: int, wanted: int
) -> str:
    if not can:
        obstacles = sorted({_obstacle(spec, executor) for executor in executors.values()})
        return f"none of {len(executors)} executors can hold it: {'; '.join(obstacles) or 'there is none'}"
    return f"{copies} of {wanted} copies lie; the other executors are full, away, or failed to load it"
