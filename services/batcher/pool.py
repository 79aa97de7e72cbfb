"""One pool in the batcher: its queue, its seats and what is known of them; and the executors behind those."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf

from libs.catalogue import model_of
from libs.lane.stage import Lane, Stage
from libs.lane.work import Tier
from services.batcher.drain import Drain
from services.batcher.fairness import Counters
from services.batcher.flock import Flock
from services.batcher.held import Held, Place
from services.batcher.hot import Hot
from services.batcher.policies import make
from services.batcher.queue import WaitQueue
from services.batcher.rates import Rates
from services.batcher.rivals import Rivals
from services.batcher.scheduling import SchedulingRules
from services.batcher.seat import ModelCapacity, Seat

SPEED_S = 0.1
"""How old a look at the speed of a pool may be, in seconds."""
SHARE_WEIGHT = 0.02
"""Of the newest work, in the mean share that has to be computed."""
LEAD = "work "


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
        self._shut_until: dict[str, float] = {}
        """Pools for which it just refused a work: asked again from then on, or when a work there ends."""
        self.follow(info, 0.0)

    def follow(self, info: ExecutorInfo, now: float) -> None:
        """Takes in what the registry says now."""
        self.info = info
        for pool, capacity in info.models.items():
            seat = self.seats.get(pool)
            if seat is None:
                self.seats[pool], self.rates[pool] = Seat(self.name, capacity), Rates()
            else:
                seat.capacity = capacity
        self._forget()
        self.refresh(now)

    def refresh(self, now: float) -> None:
        """Sets which seats are open. To be called when its lane or its record has changed, and now and then, since a
        refusal lapses by itself: so that whoever looks at a seat need not ask for all that."""
        up = not self.gone and self.lane is not None and self.lane.ready
        for pool, seat in self.seats.items():
            seat.open = up and pool in self.info.models and self._shut_until.get(pool, 0.0) <= now

    def shut(self, pool: str, until: float) -> None:
        """It refused a work of a pool: it is left alone for a moment."""
        self._shut_until[pool] = until
        if (seat := self.seats.get(pool)) is not None:
            seat.open = False

    def add(self, held: Held, blocks: int, compute: int, now: float) -> None:
        """Gives a work a slot and blocks."""
        pool = held.work.pool
        held.executor, held.blocks, held.compute, held.context = self, blocks, compute, 0
        self.works[held.key] = held
        seat = self.seats[pool]
        seat.partial += held.partial
        seat.filled += seat.filled_by(held.prompt_tokens, held.total_tokens)
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
        seat.partial -= held.partial
        made = len(held.progress.tokens) - held.sent_tokens
        rates.ended(held.key, now, 0 if lost else made)
        seat.token_s = rates.token_s
        work = held.work
        seat.give_back(
            work.adapter, work.tier is Tier.ASYNC, held.blocks, held.compute, held.prefill_s, held.context, now
        )
        held.executor, held.blocks, held.compute, held.context, held.growing = None, 0, 0, 0, False
        if self._shut_until.pop(pool, None) is not None:
            self.refresh(now)
        self._forget()

    def grow(self, held: Held, blocks: int, tokens: int) -> None:
        """Gives a work more blocks, for so many tokens in all."""
        seat = self.seats[held.work.pool]
        seat.reserved += blocks - held.blocks
        seat.partial -= held.partial
        held.blocks, held.given_tokens = blocks, tokens
        seat.partial += held.partial

    def check_integrity(self) -> None:
        """Raises AssertionError when its seats say something else than the works on them."""
        for name, seat in self.seats.items():
            works = [held for held in self.works.values() if held.work.pool == name]
            waiting = [held for held in works if not held.context]
            assert seat.works == len(works)
            assert seat.adapters == Counter(held.work.adapter for held in works)
            assert seat.patient == sum(held.work.tier is Tier.ASYNC for held in works)
            assert seat.reserved == sum(held.blocks for held in works)
            assert seat.partial == sum(held.partial for held in works)
            assert seat.prefilling == len(waiting)
            assert seat.prefill_tokens == sum(held.compute for held in waiting)
            assert abs(seat.prefill_s - sum(held.prefill_s for held in waiting)) < 1e-6 * (1 + seat.prefill_s)
            assert seat.context_tokens == sum(held.context for held in works)
        assert self.works.keys() >= self.prefilling.keys()
        assert all(held.executor is self and held.work.pool in self.seats for held in self.works.values())
        assert self.seats.keys() == self.rates.keys()

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
        self.seats: list[Seat] = []
        """Theirs."""
        self.largest = 0
        """Tokens that the largest of their copies could hold, ready or not; 0 when there is none."""
        self.smallest = 0
        """The same of the smallest."""
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
        self.due = False
        """Something has changed since the queue was looked through last."""
        self.pumped = False
        """That is being done."""
        self.freed: set[str] = set()
        """Executors on which something came free since the queue was looked at last."""
        self.leaving: dict[int, float] = {}
        """Works that are being pushed out, with when that began, in monotonic seconds."""
        self.rivals = Rivals()

    def follow(self, rules: SchedulingRules) -> None:
        """Takes in the rules as they are now."""
        if rules != self.rules:
            self.rules, self.policy = rules, make(rules)

    def speed(self, now: float) -> Speed:
        """How fast the open seats are; looked at again after SPEED_S, or when the executors change."""
        if now - self._speed_at >= SPEED_S:
            self._speed_at = now
            seats = [seat for seat in self.seats if seat.open]
            rates = [seat.prefill_rate for seat in seats if seat.prefill_rate]
            paces = [seat.token_s for seat in seats if seat.token_s]
            mean = sum(rates) / len(rates) if rates else 0.0
            self._speed = Speed(
                mean * len(seats), mean, sum(paces) / len(paces) if paces else 0.0, sum(s.capacity.slots for s in seats)
            )
        return self._speed

    def spare(self, tenant: str) -> float:
        """Share of each executor that a tenant leaves to others: the headroom, when it has more than its share of
        what runs."""
        return self.rules.headroom if self.rivals.ahead(tenant) else 0.0

    def started(self, key: int, executor: str) -> set[int]:
        """A work on an executor has its first token: who was held back for either is looked at again. Returns those
        that waited for its prefix."""
        followers = self.flock.ended(key)
        self.queue.unpark(lead(key))
        self.freed.add(executor)
        return followers

    def corrected(self, key: int, remembered: int) -> set[int]:
        """A work that was placed finds so many blocks of its prompt. Returns those that waited for these in vain: they
        are looked at again."""
        followers = self.flock.correct(key, remembered)
        if followers:
            self.queue.unpark(lead(key))
            self.due = True
        return followers

    def vacated(self, key: int, executor: str) -> None:
        """A work has left an executor."""
        self.started(key, executor)

    def found(self, prompt_tokens: int, compute: int) -> None:
        """A work was placed that has so much of its prompt to compute."""
        self.computed_share += (compute / prompt_tokens - self.computed_share) * SHARE_WEIGHT

    def drain_rate(self, now: float) -> float:
        """Prompt tokens per second by which the queue is worked off; 0 when nothing was measured. Changes nothing."""
        speed = self.speed(now)
        return self.drain.rate(self.drain.forecast(speed.slots, speed.pool_prefill, self.computed_share))

    def looked_through(self, stuck: bool, now: float) -> None:
        """The queue was dispatched from as far as possible. `stuck`: a work is left that found no place."""
        if stuck or self.drain.busy:
            self.drain.observe(stuck, now)

    def follow_executors(self, executors: Mapping[str, Executor]) -> None:
        """Takes in who serves it now."""
        self.executors = {name: e for name, e in executors.items() if self.name in e.seats}
        self.seats = [e.seats[self.name] for e in self.executors.values()]
        here = [e.info.models[self.name] for e in self.executors.values() if not e.gone and self.name in e.info.models]
        sizes = [capacity.blocks * capacity.block_tokens for capacity in here]
        self.largest, self.smallest = max(sizes, default=0), min(sizes, default=0)
        self._speed_at = -inf

    def fits_nowhere(self, tokens: int) -> bool:
        """Whether even an empty executor of the pool, ready or not, could not hold so many tokens."""
        return 0 < self.largest < tokens

    def waiting(self, works: Mapping[int, Held]) -> Iterator[Held]:
        """The works in the queue, of those that are held when their turn comes."""
        for key in [entry.key for entry in self.queue]:
            if (held := works.get(key)) is not None:
                yield held

    def check_integrity(self, held: Sequence[Held], placed: Sequence[Held]) -> None:
        """Raises AssertionError when it disagrees with its works: those without an outcome, and those with a slot."""
        waiting = {work.key for work in held if work.place is Place.WAITING}
        assert self.held == len(held)
        assert {entry.key for entry in self.queue} == waiting
        assert self.leaving.keys() >= {work.key for work in placed if work.place is Place.LEAVING}
        assert self.leaving.keys() <= {work.key for work in placed if work.place in (Place.LEAVING, Place.ENDED)}
        assert self.rivals.running == Counter(work.work.tenant for work in placed)
        assert self.flock.leaders <= {work.key for work in placed}
        assert [seat.executor for seat in self.seats] == [executor.name for executor in self.executors.values()]
        self.queue.check_integrity()
        self.rivals.check_integrity()
        self.flock.check_integrity()
