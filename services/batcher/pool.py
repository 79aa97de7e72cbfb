"""One pool in the batcher: its queue, its seats and what is known of them; and the executors behind those."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import inf

from libs.catalogue import model_of
from libs.lane.stage import Lane, Stage
from libs.lane.work import Tier
from services.batcher.drain import Drain
from services.batcher.fairness import Counters
from services.batcher.flock import Flock
from services.batcher.held import Held
from services.batcher.hot import Hot
from services.batcher.policies import make
from services.batcher.queue import WaitQueue
from services.batcher.rates import Rates
from services.batcher.scheduling import SchedulingRules
from services.batcher.seat import ModelCapacity, Seat

SPEED_S = 0.1
"""How old a look at the speed of a pool may be, in seconds."""
SHARE_WEIGHT = 0.02
"""Of the newest work, in the mean share that has to be computed."""
LEAD = "work "
RIVAL_S = 60.0
"""A tenant counts as a rival for what is scarce this long after its last work came."""


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


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast the open seats of a pool are; 0 where nothing was measured."""

    pool_prefill: float = 0.0
    """Tokens per second, of all together."""
    seat_prefill: float = 0.0
    """Of the mean one."""
    token_s: float = 0.0
    """Seconds from one token of a work to its next, on the mean one."""
    slots: int = 0
    """Of all together."""


class Executor:
    """An executor: its lane, the works on it by key, and its seat in each pool."""

    def __init__(self, name: str, info: ExecutorInfo) -> None:
        self.name = name
        self.info = info
        self.lane: Lane | None = None
        self.gone = False
        """The registry has no record of it; what runs there may still end."""
        self.works: dict[int, Held] = {}
        self.prefilling: dict[int, Held] = {}
        """Of these, those that wait for their first token there."""
        self.seats: dict[str, Seat] = {}
        """By pool; those whose copy has gone stay while works run there."""
        self.rates: dict[str, Rates] = {}
        self.shut_until: dict[str, float] = {}
        """Pools for which it just refused a work: asked again from then on, or when a work there ends."""
        self.follow(info)

    def follow(self, info: ExecutorInfo) -> None:
        """Takes in what the registry says now."""
        self.info = info
        for pool, capacity in info.models.items():
            seat = self.seats.get(pool)
            if seat is None:
                self.seats[pool], self.rates[pool] = Seat(self.name, capacity), Rates()
            else:
                seat.capacity = capacity
        self._forget()

    def takes(self, pool: str, now: float) -> bool:
        """Whether it takes works of a pool now."""
        if self.gone or self.lane is None or not self.lane.ready or pool not in self.info.models:
            return False
        return not self.shut_until or self.shut_until.get(pool, 0.0) <= now

    def add(self, held: Held, blocks: int, compute: int, now: float) -> None:
        """Gives a work a slot and blocks."""
        pool = held.work.pool
        held.executor, held.blocks, held.compute, held.context = self, blocks, compute, 0
        self.works[held.key] = held
        seat = self.seats[pool]
        held.prefill_s = seat.foresee(held.prompt_tokens, compute)
        seat.take(held.work.adapter, held.work.tier is Tier.ASYNC, blocks, compute, held.prefill_s, now)

    def sent(self, held: Held, now: float) -> None:
        """A work was sent to the engine."""
        self.prefilling[held.key] = held
        held.sent_at = now
        self.rates[held.work.pool].placed(held.key, held.compute, now)

    def correct(self, held: Held, compute: int) -> None:
        """What a work has to compute turns out to be another number of tokens."""
        seat = self.seats[held.work.pool]
        seconds = seat.foresee(held.prompt_tokens, compute)
        seat.correct(compute - held.compute, seconds - held.prefill_s)
        held.compute, held.prefill_s = compute, seconds

    def started(self, held: Held, now: float) -> None:
        """The first token of a work came."""
        pool = held.work.pool
        seat, rates = self.seats[pool], self.rates[pool]
        del self.prefilling[held.key]
        rates.first_token(held.key, now)
        seat.prefill_rate = rates.prefill_rate
        # Engines compute prompts in turn, so it began when the one in front of it was done.
        seconds = now - max(held.sent_at, seat.first_token_at)
        held.context = held.prompt_tokens
        before = held.context - 1  # its first token has been counted in
        seat.pace.add(before, before - held.compute, seconds)
        seat.started(held.compute, held.prefill_s, held.context, now)
        held.compute = 0

    def remove(self, held: Held, now: float, *, lost: bool = False) -> None:
        """Takes slot and blocks back. `lost`: nobody knows when its last token came."""
        pool = held.work.pool
        seat, rates = self.seats[pool], self.rates[pool]
        del self.works[held.key]
        self.prefilling.pop(held.key, None)
        made = len(held.progress.tokens) - held.sent_tokens
        rates.ended(held.key, now, 0 if lost else made)
        seat.token_s = rates.token_s
        work = held.work
        seat.give_back(
            work.adapter, work.tier is Tier.ASYNC, held.blocks, held.compute, held.prefill_s, held.context, now
        )
        held.executor, held.blocks, held.compute, held.context, held.growing = None, 0, 0, 0, False
        self.shut_until.pop(pool, None)
        self._forget()

    def grow(self, held: Held, blocks: int, tokens: int) -> None:
        """Gives a work more blocks, for so many tokens in all."""
        self.seats[held.work.pool].reserved += blocks - held.blocks
        held.blocks, held.given_tokens = blocks, tokens

    def _forget(self) -> None:
        """Drops the seats of copies that have gone, once nothing is on them."""
        for pool in [p for p, seat in self.seats.items() if p not in self.info.models and not seat.works]:
            del self.seats[pool], self.rates[pool]


def lead(key: int) -> str:
    """What works wait for that wait for another one to compute their prefix. An executor is waited for by name."""
    return f"{LEAD}{key}"


class Pool:
    """The queue of one pool, and the executors that serve it."""

    def __init__(self, name: str, rules: SchedulingRules) -> None:
        self.name = name
        self.model = model_of(name)
        self.counters = Counters()
        """What its tenants have been served. Of this pool alone: a tenant that is served fast elsewhere would else be
        owed nothing here, for as long as that goes on."""
        self.queue = WaitQueue(self.counters)
        self.executors: dict[str, Executor] = {}
        """Those with a seat for it."""
        self.rules = rules
        self.policy = make(rules)
        self.flock = Flock()
        self.hot = Hot()
        self.drain = Drain()
        self._speed = Speed()
        self._speed_at = -inf
        self.computed_share = 1.0
        """Of the prompt tokens that were placed lately, the share that had to be computed."""
        self.held = 0
        """Works of this pool without an outcome, wherever they stand."""
        self.told = ""
        """What works that wait for a copy were told last."""
        self.freed: set[str] = set()
        """Executors on which something came free since the queue was looked at last."""
        self.leaving: set[int] = set()
        """Works that are being pushed out."""
        self.placed: Counter[str] = Counter()
        """Works on executors, by tenant."""
        self._rivals: dict[str, tuple[float, float]] = {}
        """Last arrival and weight of each tenant that is a rival."""

    def follow(self, rules: SchedulingRules) -> None:
        """Takes in the rules as they are now."""
        if rules != self.rules:
            self.rules, self.policy = rules, make(rules)

    def seats(self, now: float) -> list[Seat]:
        """Of all executors; whether each takes works now is in it."""
        name = self.name
        seats = []
        for executor in self.executors.values():
            seat = executor.seats.get(name)
            if seat is not None:  # else its copy went, with the last work on it
                seat.open = executor.takes(name, now)
                seats.append(seat)
        return seats

    def speed(self, now: float) -> Speed:
        """How fast the open seats are; looked at again after SPEED_S, or when the executors change."""
        if now - self._speed_at >= SPEED_S:
            self._speed_at = now
            seats = [seat for seat in self.seats(now) if seat.open]
            rates = [seat.prefill_rate for seat in seats if seat.prefill_rate]
            paces = [seat.token_s for seat in seats if seat.token_s]
            mean = sum(rates) / len(rates) if rates else 0.0
            self._speed = Speed(
                mean * len(seats), mean, sum(paces) / len(paces) if paces else 0.0, sum(s.capacity.slots for s in seats)
            )
        return self._speed

    def came(self, tenant: str, weight: float, now: float) -> None:
        """A work of a tenant arrived."""
        self._rivals[tenant] = (now, weight)

    def forget_rivals(self, now: float) -> None:
        """Forgets the tenants that have not come for long. Bounds what is kept by who came in RIVAL_S."""
        if self._rivals and min(last for last, _ in self._rivals.values()) + RIVAL_S < now:
            self._rivals = {tenant: kept for tenant, kept in self._rivals.items() if kept[0] + RIVAL_S >= now}

    def spare(self, tenant: str) -> float:
        """Share of each executor that a tenant leaves to others: the headroom, when it has more than its share of
        what runs."""
        if len(self._rivals) < 2 or tenant not in self._rivals:
            return 0.0
        whole = sum(weight for _, weight in self._rivals.values())
        share = self._rivals[tenant][1] / whole
        return self.rules.headroom if self.placed[tenant] > share * self.placed.total() else 0.0

    def started(self, key: int, executor: str) -> set[int]:
        """A work on an executor has its first token: who was held back for either is looked at again. Returns those
        that waited for its prefix."""
        followers = self.flock.ended(key)
        self.queue.unpark(lead(key))
        self.freed.add(executor)
        return followers

    def vacated(self, key: int, executor: str) -> None:
        """A work has left an executor."""
        self.started(key, executor)

    def found(self, prompt_tokens: int, compute: int) -> None:
        """A work was placed that has so much of its prompt to compute."""
        self.computed_share += (compute / prompt_tokens - self.computed_share) * SHARE_WEIGHT

    def drain_rate(self, now: float) -> float:
        """Prompt tokens per second by which the queue is worked off; 0 when nothing was measured."""
        speed, waiting = self.speed(now), len(self.queue) > 0
        forecast = self.drain.forecast(speed.slots, speed.pool_prefill, self.computed_share)
        self.drain.observe(waiting, forecast, now)
        return self.drain.rate or forecast

    def follow_executors(self, executors: Mapping[str, Executor]) -> None:
        """Takes in who serves it now."""
        self.executors = {name: e for name, e in executors.items() if self.name in e.seats}
        self._speed_at = -inf

    def fits_nowhere(self, tokens: int) -> bool:
        """Whether even an empty executor of the pool, ready or not, could not hold so many tokens."""
        capacities = [e.info.models.get(self.name) for e in self.executors.values() if not e.gone]
        known = [capacity for capacity in capacities if capacity is not None]
        return bool(known) and all(-(-tokens // c.block_tokens) > c.blocks for c in known)

    def waiting(self, works: Mapping[int, Held]) -> Iterator[Held]:
        """The works in the queue, of those that are held when their turn comes."""
        for key in [entry.key for entry in self.queue]:
            if (held := works.get(key)) is not None:
                yield held
