"""One pool in the batcher: its queue, and its executors with what runs on them."""

from collections.abc import Mapping
from dataclasses import dataclass

from libs.lane.stage import Lane, Stage
from services.batcher.dispatch import Candidate
from services.batcher.held import Held
from services.batcher.queue import WaitQueue


@dataclass(frozen=True, slots=True)
class ModelCapacity:
    """A model that is ready on an executor."""

    slots: int
    blocks: int
    block_tokens: int


@dataclass(frozen=True, slots=True)
class ExecutorInfo:
    """An executor as the registry has it."""

    stage: Stage
    """The same object as long as the endpoint is the same: its lane is kept then."""
    models: Mapping[str, ModelCapacity]
    """Models that are READY, by name."""


class Executor:
    """An executor: its lane, and the works on it by key."""

    def __init__(self, name: str, info: ExecutorInfo) -> None:
        self.name = name
        self.info = info
        self.lane: Lane | None = None
        self.gone = False
        """The registry has no record of it; what runs there may still end."""
        self.works: dict[int, Held] = {}
        self.reserved: dict[str, int] = {}
        """Blocks of the works in `works`, by pool."""
        self.running: dict[str, int] = {}
        """Works in `works`, by pool."""
        self.shut_until: dict[str, float] = {}
        """Pools for which it just refused a work: asked again from then on, or when a work there ends."""

    def candidate(self, pool: str, now: float) -> Candidate | None:
        """What `dispatch.choose` is to know of it; None when it takes nothing for this pool now."""
        ready = self.lane is not None and self.lane.ready
        return self.capacity(pool) if ready and self.shut_until.get(pool, 0.0) <= now else None

    def capacity(self, pool: str) -> Candidate | None:
        """What it holds for a pool, whether or not it takes works now; None when that is nothing."""
        capacity = self.info.models.get(pool)
        if capacity is None or self.gone:
            return None
        return Candidate(
            self.name, capacity.slots, self.running.get(pool, 0), capacity.blocks, self.reserved.get(pool, 0),
            capacity.block_tokens,
        )  # fmt: skip

    def add(self, held: Held, blocks: int) -> None:
        """Gives a work a slot and blocks."""
        pool = held.work.pool
        held.executor, held.blocks = self, blocks
        self.works[held.key] = held
        self.running[pool] = self.running.get(pool, 0) + 1
        self.reserved[pool] = self.reserved.get(pool, 0) + blocks

    def remove(self, held: Held) -> None:
        """Takes them back."""
        pool = held.work.pool
        del self.works[held.key]
        self.running[pool] -= 1
        self.reserved[pool] -= held.blocks
        held.executor, held.blocks = None, 0
        self.shut_until.pop(pool, None)


class Pool:
    """The queue of one pool."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.queue = WaitQueue()
        self.held = 0
        """Works of this pool without an outcome, wherever they stand."""
