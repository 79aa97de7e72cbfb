"""The batcher's books: every work it holds, where it stands, and the few steps from one place to another.

    WAITING → ASKING → RUNNING → ENDED         LEAVING, and back to WAITING, when it is pushed out.

Whoever decides (dispatch, pressure, warmth) moves works through these steps only, so that slots, blocks, spans,
fairness and the manager's reservations agree at any time.
"""

from collections.abc import Mapping

from libs.catalogue import model_of
from libs.clock import Clock
from libs.errors import Cancelled, HeadraceError
from libs.lane.deadlines import Deadlines
from libs.lane.passages import Passages
from libs.lane.work import FinishReason, Outcome, Tier, Work
from libs.telemetry import names
from libs.telemetry.tracing import Tracing
from services.batcher.asked import Asked as Demands
from services.batcher.executors import Executor
from services.batcher.held import NOTHING, Held, Place
from services.batcher.lengths import Lengths
from services.batcher.memory import Memory
from services.batcher.observe import Observer
from services.batcher.parking import Parked
from services.batcher.pool import Pool
from services.batcher.queue import Entry
from services.batcher.rules import Rules

UNKNOWN = 1 << 40
"""More tokens than any answer has."""
LIKELY = 0.5
"""Quantile of the answers' lengths by which tenants are charged in advance, and promises are made."""


class Book:
    """What the batcher knows. Bounded by the works held, and by what the registry lists."""

    def __init__(
        self, instance: str, memory: Memory, rules: Rules, tracing: Tracing, observer: Observer, clock: Clock
    ) -> None:
        self.instance = instance
        self.memory = memory
        self.rules = rules
        self.tracing = tracing
        self.observer = observer
        self.clock = clock
        self.pools: dict[str, Pool] = {}
        self.executors: dict[str, Executor] = {}
        self.passages: Passages[Held] = Passages()
        self.held = self.passages.works
        self.deadlines = Deadlines(self.held)
        self.lengths = Lengths()
        self.demands = Demands()

    def next(self) -> int:
        """A number that was never used."""
        return self.passages.next()

    def pool(self, name: str) -> Pool:
        """The pool of a name, made when there is none."""
        pool = self.pools.get(name)
        if pool is None:
            pool = self.pools[name] = self.new_pool(name)
        return pool

    def new_pool(self, name: str) -> Pool:
        """A pool that is in no book."""
        pool = Pool(name, self.rules.scheduling(model_of(name)))
        pool.follow_executors(self.executors)
        return pool

    def set_executors(self, executors: Mapping[str, Executor]) -> None:
        """Replaces the executors, and with them those of each pool."""
        self.executors = dict(executors)
        for name in {pool for executor in executors.values() for pool in executor.info.models}:
            self.pool(name)
        for pool in self.pools.values():
            pool.follow_executors(self.executors)

    def forget_pools(self) -> None:
        """Drops the pools that nobody asks for and no executor has; brings the rules of the others up to date."""
        now = self.clock.monotonic()
        for name, pool in list(self.pools.items()):
            pool.follow(self.rules.scheduling(pool.model))
            pool.rivals.forget(now)
            if not pool.held and not pool.executors:
                del self.pools[name]

    # --- the steps of a work -----------------------------------------------------------------------

    def enter(self, pool: Pool, held: Held, parked: Parked | None = None) -> None:
        """A work came: it waits. What has begun elsewhere waits in front."""
        self.passages.enter(held.key, held)
        held.lane.held[held.down_id] = held
        self.deadlines.add(held.work.deadline, held.key)
        self._wait(pool, held, parked, front=bool(held.work.resumed))
        pool.held += 1
        pool.rivals.came(held.work.tenant, held.work.weight, held.arrived)
        self.demands.arrived(pool.name, self.clock.now())
        pool.load.arrived(held.work.tenant, held.work.tier, False, held.arrived)

    def enter_aside(self, held: Held) -> None:
        """A work of the batcher's own: it does not wait, and is no demand."""
        self.passages.enter(held.key, held)
        held.lane.held[held.down_id] = held
        self.deadlines.add(held.work.deadline, held.key)

    def place(self, pool: Pool, held: Held, executor: Executor, blocks: int, compute: int, reason: str) -> None:
        """A work leaves the queue, or has left a slot somewhere else: it has a slot and blocks; it is not running
        yet."""
        now = self.clock.monotonic()
        waits, waited = held.place is Place.WAITING and not held.once, now - held.queued_since
        if waits:
            self._leave_queue(pool, held, held.prompt_tokens, now)
            held.aged = held.aged or waited >= self.rules.tier(Tier.ASYNC).limits.age_s
        held.place = Place.ASKING
        executor.add(held, blocks, compute, now)
        pool.rivals.placed(held.work.tenant)
        self._charge(pool, held)
        held.queue_span.end()
        if waits:
            held.queued_s += waited
            self.observer.dispatched(pool.name, held.work.tier, waited)
            self.demands.left_queue(pool.name, waited)
        held.dispatch_span = span = self.tracing.start(names.DISPATCH, held.work.traceparent)
        if span.recording:
            span.set(names.EXECUTOR, executor.name)
            span.set(names.REASON, reason)
            span.set(names.ATTEMPT, held.attempts + 1)
            span.set(names.BLOCKS_RESERVED, blocks)
            span.set(names.RESUMED_TOKENS, held.progress.count)
            if held.attempts:
                span.event(names.RESUMED)

    def run(self, held: Held, executor: Executor) -> Work:
        """A work runs from now on; returns it as it is to be sent."""
        assert held.dispatch_span is not None
        held.place, held.ran = Place.RUNNING, True
        tokens = held.progress.count
        held.attempts = held.attempts + 1 if tokens == held.sent_tokens else 1
        held.sent_tokens = tokens
        now = self.clock.monotonic()
        executor.sent(held, now)
        self.passages.stream(held.key, executor)
        if not held.once:
            self.pools[held.work.pool].drain.left(held.prompt_tokens, now)
        return held.as_sent(held.dispatch_span.traceparent)

    def vacate(self, held: Held, executor: Executor, *, lost: bool = False, found_tokens: int | None = None) -> None:
        """The slot and the blocks of a work are free.

        Args:
            lost: Nobody knows when its last token came.
            found_tokens: Prompt tokens that the engine had in its cache.
        """
        pool = self.pools[held.work.pool]
        block = executor.seats[pool.name].capacity.block_tokens
        self.memory.release(held.reservation, None if found_tokens is None else found_tokens // block)
        if held.place is Place.ASKING:
            self._take_back(pool, held)
        elif held.live:
            self.passages.stream(held.key, None)
        executor.remove(held, self.clock.monotonic(), lost=lost)
        if pool.name not in executor.seats:  # its copy had gone, and that was the last work on it
            pool.follow_executors(self.executors)
        pool.vacated(held.key, executor.name)
        pool.leaving.pop(held.key, None)
        pool.rivals.left(held.work.tenant)
        if executor.gone and not executor.works:
            self._bury(executor)

    def requeue(self, held: Held, executor: Executor, why: str, *, lost: bool = False) -> None:
        """Back to the front of the queue, with the tokens so far."""
        self.vacate(held, executor, lost=lost)
        tokens = held.progress.count
        if held.dispatch_span is not None:
            held.dispatch_span.error(why)
            held.dispatch_span.end()
        if tokens >= held.work.sampling.max_tokens:  # only the outcome was lost
            self.end(held, Outcome(
                finish=FinishReason.LENGTH, output_tokens=tokens, cached_tokens=held.cached_tokens or 0,
                queued_s=held.queued_s, executor=executor.name,
            ))  # fmt: skip
            return
        if held.once:
            self.end(held, Outcome(error=Cancelled(why), output_tokens=tokens))
            return
        held.told = NOTHING
        held.queued_since = self.clock.monotonic()
        held.queue_span = self.tracing.start(names.QUEUE, held.work.traceparent, attributes={names.REASON: why})
        self._wait(self.pools[held.work.pool], held, None, front=True)

    def stop(self, held: Held, error: HeadraceError) -> None:
        """Ends a work from this side, wherever it stands."""
        place, executor = held.place, held.executor
        name = executor.name if executor is not None else ""
        if executor is None:
            pool = self.pools[held.work.pool]
            self._leave_queue(pool, held, 0, self.clock.monotonic())
            held.queue_span.end()
        elif place is Place.ASKING:
            self.vacate(held, executor)
        self.end(held, Outcome(
            error=error, output_tokens=held.progress.count, queued_s=held.queued_s, executor=name
        ))  # fmt: skip
        if place is Place.RUNNING and executor is not None and executor.lane is not None:
            executor.lane.cancel(held.key)  # the slot is free when the executor says so

    def end(self, held: Held, outcome: Outcome) -> None:
        """Passes the outcome on; a work has exactly one."""
        held.place = Place.ENDED
        self.passages.leave(held.key)
        pool, work = self.pools[held.work.pool], held.work
        tokens = max(held.progress.count, outcome.output_tokens)
        if held.charged:
            pool.counters.settle(work.tenant, held.charged, tokens, work.weight)
            self.lengths.seen(work.tenant, pool.model, tokens, outcome.finish is not FinishReason.STOP)
        if held.dispatch_span is not None:
            if outcome.error is not None:
                held.dispatch_span.error(outcome.error.message, outcome.error.reason)
            held.dispatch_span.end()
        if not held.once:
            pool.held -= 1
            self.observer.ended(work, outcome)
        if held.lane.held.pop(held.down_id, None) is not None:
            held.lane.sink.on_outcome(held.down_id, outcome)

    def likely_tokens(self, pool: Pool, work: Work) -> int:
        """Tokens that the answer of a work likely has in all; 1 while nothing is known of such answers, so that
        nobody is refused for what is not known."""
        known = self.lengths.expected(work.tenant, pool.model, UNKNOWN, LIKELY)
        return 1 if known == UNKNOWN else min(known, work.sampling.max_tokens)

    def check_integrity(self) -> None:
        """Raises AssertionError when works, queues, slots and blocks disagree."""
        for key, held in self.held.items():
            assert held.key == key
            assert held.live
            assert (held.executor is None) == (held.place is Place.WAITING)
            assert self.passages.streams(key, held.executor) == held.streaming
        self.passages.check_integrity()
        for executor in self.executors.values():
            executor.check_integrity()
        placed = [held for executor in self.executors.values() for held in executor.works.values()]
        assert all(held.executor is not None and held.key in held.executor.works for held in placed)
        assert {h.key for h in self.held.values() if h.executor is not None} == {h.key for h in placed if h.live}
        for name, pool in self.pools.items():
            assert pool.executors == {n: e for n, e in self.executors.items() if name in e.seats}
            pool.check_integrity(
                [held for held in self.held.values() if held.work.pool == name and not held.once],
                [held for held in placed if held.work.pool == name],
            )
        assert {held.work.pool for held in [*self.held.values(), *placed]} <= self.pools.keys()

    def _wait(self, pool: Pool, held: Held, parked: Parked | None, *, front: bool) -> None:
        held.place = Place.WAITING
        work = held.work
        entry = Entry(held.key, work.tier, held.prompt_tokens, held.queued_since, work.tenant, work.weight, held.due)
        if front:
            pool.queue.push_front(entry, parked)
        else:
            pool.queue.push(entry, parked)
        pool.standing.came(work.tenant, work.tier, held.queued_since)

    def _leave_queue(self, pool: Pool, held: Held, tokens: int, now: float) -> None:
        """A work waits no more. `tokens` of its prompt go to an executor."""
        if (entry := pool.queue.remove(held.key)) is not None:
            pool.load.left(entry, self.rules.tier(entry.tier).target_s, now)
        pool.standing.left(held.work.tenant, held.work.tier, tokens, now)

    def _charge(self, pool: Pool, held: Held) -> None:
        """Charges a tenant for a work once, with the answer that it likely has; set right at its end."""
        if not held.charged and not held.once:
            work = held.work
            held.charged = self.lengths.expected(work.tenant, pool.model, work.sampling.max_tokens, LIKELY)
            pool.counters.charge(work.tenant, len(work.prompt), held.charged, work.weight)

    def _take_back(self, pool: Pool, held: Held) -> None:
        """Takes the charge of a work back that did not run, not even before."""
        if held.charged and not held.ran:
            work = held.work
            pool.counters.take_back(work.tenant, len(work.prompt), held.charged, work.weight)
            held.charged = 0

    def _bury(self, executor: Executor) -> None:
        """Closes the lane of an executor that has gone, once nothing runs there."""
        if executor.lane is not None:
            executor.lane.close()
        self.set_executors({name: e for name, e in self.executors.items() if e is not executor})

    def retire(self, name: str) -> None:
        """An executor has gone from the registry; what runs there ends there, or comes back."""
        executor = self.executors[name]
        executor.gone = True
        executor.refresh(self.clock.monotonic())
        # Out of the way of a new one of this name.
        self.set_executors({(f"{n} (before {self.next()})" if n == name else n): e for n, e in self.executors.items()})
        if not executor.works:
            self._bury(executor)
