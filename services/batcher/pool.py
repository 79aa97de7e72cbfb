"""One pool in the batcher: its queue, and its executors with what runs on them."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from libs.lane.stage import Lane, Stage
from services.batcher.dispatch import Affinity, Candidate
from services.batcher.held import Held
from services.batcher.queue import WaitQueue


@dataclass(frozen=True, slots=True)
class ModelCapacity:
    """A copy that is ready on an executor."""

    slots: int
    blocks: int
    block_tokens: int
    adapter_slots: int = 0
    """Adapters in one batch."""
    adapters: frozenset[str] = frozenset()
    """In its memory."""


@dataclass(frozen=True, slots=True)
class ExecutorInfo:
    """An executor as the registry has it."""

    stage: Stage
    """The same object as long as the endpoint is the same: its lane is kept then."""
    models: Mapping[str, ModelCapacity]
    """Copies that are READY, by pool."""
    coming: Mapping[str, str] = field(default_factory=dict)
    """Copies that are not there yet, by pool, with what they wait for."""
    leaving: frozenset[str] = frozenset()
    """Copies that end what they run."""


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
        self.running: dict[str, Counter[str]] = {}
        """Works in `works`, by pool and adapter, "" for the base."""
        self.shut_until: dict[str, float] = {}
        """Pools for which it just refused a work: asked again from then on, or when a work there ends."""

    def candidate(self, pool: str, adapter: str, now: float) -> Candidate | None:
        """What `dispatch.choose` is to know of it; None when it takes nothing for this pool now."""
        ready = self.lane is not None and self.lane.ready
        return self.capacity(pool, adapter) if ready and self.shut_until.get(pool, 0.0) <= now else None

    def capacity(self, pool: str, adapter: str = "") -> Candidate | None:
        """What it holds for a pool, whether or not it takes works now; None when that is nothing."""
        capacity = self.info.models.get(pool)
        if capacity is None or self.gone:
            return None
        running = self.running.get(pool, _NONE)
        return Candidate(
            self.name, capacity.slots, running.total(), capacity.blocks, self.reserved.get(pool, 0),
            capacity.block_tokens, _affinity(capacity, running, adapter),
        )  # fmt: skip

    def add(self, held: Held, blocks: int) -> None:
        """Gives a work a slot and blocks."""
        pool = held.work.pool
        held.executor, held.blocks = self, blocks
        self.works[held.key] = held
        self.running.setdefault(pool, Counter())[held.work.adapter] += 1
        self.reserved[pool] = self.reserved.get(pool, 0) + blocks

    def remove(self, held: Held) -> None:
        """Takes them back."""
        pool, adapter = held.work.pool, held.work.adapter
        del self.works[held.key]
        running = self.running[pool]
        running[adapter] -= 1
        if not running[adapter]:
            del running[adapter]
        if not running:
            del self.running[pool]
        self.reserved[pool] -= held.blocks
        if not self.reserved[pool]:
            del self.reserved[pool]
        held.executor, held.blocks = None, 0
        self.shut_until.pop(pool, None)


_NONE: Counter[str] = Counter()


def _affinity(capacity: ModelCapacity, running: Counter[str], adapter: str) -> Affinity:
    if not capacity.adapter_slots or adapter in running:
        return Affinity.RUNS
    if not adapter and capacity.adapter_slots > 1:
        return Affinity.RUNS  # the base runs beside any adapters, where several run at once
    # Where several run at once, the base takes none of their places.
    others = len(running) - ("" in running and capacity.adapter_slots > 1)
    if others >= capacity.adapter_slots:
        return Affinity.TAKEN
    return Affinity.LIES if not adapter or adapter in capacity.adapters else Affinity.ROOM


class Pool:
    """The queue of one pool."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.queue = WaitQueue()
        self.held = 0
        """Works of this pool without an outcome, wherever they stand."""
        self.told = ""
        """What works that wait for a copy were told last."""
