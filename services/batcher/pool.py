"""One pool in the batcher: its queue, its seats, and what is known of their speed."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf

from libs.catalogue import model_of
from services.batcher.approximate_index import ApproximateIndex
from services.batcher.drain import Drain
from services.batcher.executors import Executor
from services.batcher.fairness import IDLE_CREDIT, Counters
from services.batcher.flock import Flock
from services.batcher.held import Held, Place
from services.batcher.hot import Hot
from services.batcher.policies import make
from services.batcher.queue import WaitQueue
from services.batcher.rivals import Rivals
from services.batcher.saturation import Load
from services.batcher.scheduling import SchedulingRules
from services.batcher.seat import Seat
from services.batcher.standing import Standing
from services.batcher.worth import Worth

SPEED_S = 0.1
"""How old a look at the speed of a pool may be, in seconds."""
SHARE_WEIGHT = 0.02
"""Of the newest work, in the mean share that has to be computed."""
LEAD = "work "


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


def lead(key: int) -> str:
    """What works wait for that wait for another one to compute their prefix. An executor is waited for by name."""
    return f"{LEAD}{key}"


class Pool:
    """The queue of one pool, and the executors that serve it."""

    def __init__(self, name: str, rules: SchedulingRules) -> None:
        self.name = name
        self.model = model_of(name)
        self.counters = Counters(idle=IDLE_CREDIT)
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
        self.worth = Worth()
        self.approximate_index = ApproximateIndex()
        self.learned_at = -inf
        """When the manager was last asked about a work that ran already, in monotonic seconds."""
        self.drain = Drain()
        self.standing = Standing()
        self.load = Load()
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
        if followers:
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
        at_once = speed.slots
        if self.drain.busy:  # a seat that is shut for a moment still runs what it has
            at_once = sum(e.seats[self.name].works for e in self.executors.values() if not e.gone)
        return self.drain.rate(at_once, speed.pool_prefill, self.computed_share)

    def looked_through(self, stuck: bool, now: float) -> None:
        """The queue was dispatched from as far as possible. `stuck`: a work is left that found no place."""
        if stuck or self.drain.busy:  # while no executor is up, it is not the queue that is worked off slowly
            self.drain.observe(stuck and self.speed(now).slots > 0, now)

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
        queued = Counter((work.work.tenant, work.work.tier) for work in held if work.key in waiting)
        assert self.standing.waiting() == queued
        self.queue.check_integrity()
        self.rivals.check_integrity()
        self.flock.check_integrity()
        self.approximate_index.check_integrity()
