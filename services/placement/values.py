"""What a plan is made from, and what it is. Pure.

A pool ("name@version") on an executor is a copy. Times are Unix seconds, memory is in bytes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from libs.catalogue import ModelSpec

State = Literal["pending", "loading", "ready", "draining", "failed"]


@dataclass(frozen=True, slots=True)
class Rules:
    """The constants of placement."""

    churn_s: float = 600.0
    """A copy that has lain for less than this is not moved to make room, unless works wait (ModelMesh: 10 min)."""
    residency_s: float = 5.0
    """A copy is not unloaded for another before it was ready this long, nor before as long as it took to load."""
    tries: int = 3
    """Executors on which a pool may fail before no other is tried, and tries on the same one (ModelMesh: 3)."""
    backoff_s: float = 30.0
    """Until an executor on which a pool failed is tried again; doubles with each failure there."""
    moves: int = 3
    """Copies that are moved, at most, so that a model can lie at all."""


@dataclass(frozen=True, slots=True)
class Resident:
    """What an executor says of a copy that it holds."""

    state: State
    since: float = 0.0
    """When it came into this state."""
    memory_bytes: int = 0
    reason: str = ""
    attempts: int = 0
    """Loads that failed in a row."""


@dataclass(frozen=True, slots=True)
class ExecutorView:
    """What placement knows of an executor."""

    engine: str
    """Empty while it is not known: then it may be any."""
    memory_bytes: int
    labels: Mapping[str, str] | None = field(default_factory=dict)
    """None while they are not known: then they may be any."""
    residents: Mapping[str, Resident] = field(default_factory=dict)
    """By pool; also those that it is about to give up."""
    draining: bool = False
    present: bool = True
    """False while it is missing but may be restarting: it keeps what it has and gets nothing new."""


@dataclass(frozen=True, slots=True)
class Copy:
    """A pool that lies, or is to lie, on an executor."""

    executor: str
    spec: ModelSpec
    """As it was placed; the catalogue may have a newer version by now."""
    reason: str
    placed_at: float = 0.0

    @property
    def key(self) -> tuple[str, str]:
        """(executor, pool)."""
        return self.executor, self.spec.pool


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked of a model, over all batchers."""

    running: int = 0
    waiting: int = 0
    oldest_waiting_s: float = 0.0
    last_request: float = 0.0
    """0: never, as far as is known."""
    peak: int = 0
    """Most works, running and waiting, within the time after which a copy counts as idle."""
    rate: float = 0.0
    """Requests per second, lately."""

    @property
    def works(self) -> int:
        """Running and waiting."""
        return self.running + self.waiting


@dataclass(frozen=True, slots=True)
class Failure:
    """A pool could not be loaded on an executor. It is forgotten some time after the last attempt."""

    at: float
    attempts: int
    reason: str


@dataclass(frozen=True, slots=True)
class World:
    """Everything that a plan looks at."""

    models: Mapping[str, ModelSpec]
    """The catalogue's base models; adapters need no place of their own."""
    executors: Mapping[str, ExecutorView]
    copies: Sequence[Copy] = ()
    """Today's placements."""
    loads: Mapping[str, Load] = field(default_factory=dict)
    """By model."""
    failures: Mapping[tuple[str, str], Failure] = field(default_factory=dict)
    """By (executor, pool)."""
    stories: Mapping[str, str] = field(default_factory=dict)
    """Why models lie nowhere, as earlier plans said."""
    now: float = 0.0


@dataclass(frozen=True, slots=True)
class Lack:
    """A model has fewer copies than it should, or none."""

    reason: str
    missing: int = 0
    """Copies; 0 when none is wanted now."""
    hopeless: bool = False
    """No executor could hold it, even an empty one."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is wanted, whole."""

    copies: Sequence[Copy]
    """In order of model, then pool, then executor."""
    lacks: Mapping[str, Lack]
    """By model."""
