"""What is asked of each model, counted: placement decides by it how many copies there are. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from libs.catalogue import model_of
from libs.lane.work import Tier
from services.batcher.pool import Pool
from services.batcher.saturation import Saturation, refused_share

MOST_MODELS = 4096
"""Models that are counted, at most; of more, those asked for longest ago are forgotten."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What is asked of one model, its adapters included. Counts are since this process started."""

    model: str
    requests: int
    running: int
    waiting: int
    oldest_waiting_s: float
    last_request: float
    """Unix seconds."""
    queued_s: float
    """Time in the queue of all works that left it, added up."""
    saturations: Sequence[Saturation] = ()
    """How saturated it is, by tier."""


class _Count:
    __slots__ = ("last_request", "queued_s", "requests")

    def __init__(self) -> None:
        self.requests = 0
        self.queued_s = 0.0
        self.last_request = 0.0


class Asked:
    """The counters of one batcher."""

    def __init__(self) -> None:
        self._counts: dict[str, _Count] = {}

    def arrived(self, pool: str, now: float) -> None:
        """A work arrived at Unix time `now`."""
        count = self._count(pool)
        count.requests += 1
        count.last_request = now

    def left_queue(self, pool: str, waited_s: float) -> None:
        """A work left the queue for an executor."""
        self._count(pool).queued_s += waited_s

    def demands(self, pools: Iterable[Pool], targets: Mapping[Tier, float], now: float) -> Sequence[Demand]:
        """By model.

        Args:
            targets: Seconds within which a first token is to come, by tier.
            now: Monotonic seconds, as the queues' arrivals.
        """
        versions: dict[str, list[Pool]] = {}
        for pool in pools:
            versions.setdefault(model_of(pool.name), []).append(pool)
        return [
            _demand(model, count, versions.get(model, ()), targets, now)
            for model, count in sorted(self._counts.items())
        ]

    def keep(self, models: Mapping[str, object]) -> None:
        """Forgets models that are not in the catalogue any more."""
        self._counts = {model: count for model, count in self._counts.items() if model in models}

    def _count(self, pool: str) -> _Count:
        model = model_of(pool)
        count = self._counts.get(model)
        if count is None:
            if len(self._counts) >= MOST_MODELS:
                del self._counts[min(self._counts, key=lambda name: self._counts[name].last_request)]
            count = self._counts[model] = _Count()
        return count


def risen(before: Iterable[Demand], after: Iterable[Demand]) -> bool:
    """Whether a model is more saturated, for some tier, than it was; see Saturation.risen."""
    known = {(demand.model, each.tier): each for demand in before for each in demand.saturations}
    return any(
        each.risen(known.get((demand.model, each.tier), Saturation(each.tier)))
        for demand in after
        for each in demand.saturations
    )


def _demand(model: str, count: _Count, versions: Sequence[Pool], targets: Mapping[Tier, float], now: float) -> Demand:
    waiting = sum(len(pool.queue) for pool in versions)
    oldest = [at for pool in versions for tier in Tier if (at := pool.queue.oldest(tier)) is not None]
    return Demand(
        model=model,
        requests=count.requests,
        running=sum(pool.held for pool in versions) - waiting,
        waiting=waiting,
        oldest_waiting_s=now - min(oldest) if oldest else 0.0,
        last_request=count.last_request,
        queued_s=count.queued_s,
        saturations=_saturations(versions, targets, now),
    )


def _saturations(versions: Sequence[Pool], targets: Mapping[Tier, float], now: float) -> Sequence[Saturation]:
    """Of a model: the longest wait of any of its versions; the others of all together."""
    seats = []
    for pool in versions:
        up = [e.seats[pool.name] for e in pool.executors.values() if e.up and pool.name in e.info.models]
        pool.load.follow(bool(up), now)
        seats += up
    waits = [pool.load.waits(pool.queue, targets, now) for pool in versions]
    blocks = sum(seat.capacity.blocks for seat in seats)
    reserved = sum(seat.reserved for seat in seats)
    return [
        Saturation(
            tier,
            sum(pool.queue.waiting(tier) for pool in versions),
            max((wait[tier] for wait in waits), default=0.0),
            min(reserved / blocks, 1.0) if blocks else 0.0,
            refused_share([pool.load for pool in versions], tier, now),
        )
        for tier in Tier
    ]
