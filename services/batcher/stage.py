"""The batcher as a stage: when each work runs, and on which executor of its pool.

    arrives ─▶ refused, if the queue is full or its deadline cannot be met (arrival.py)
            ─▶ waits (queue.py) ─▶ dispatch.py finds a place ─▶ runs ─▶ outcome
    executor lost, full after all, or pushed out (pressure.py): back to the queue, in front

Everything here is synchronous and driven from outside: by lanes, by the registry, by the manager's answers,
and by `tick`. So the simulator runs this very code in virtual time.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from copy import copy

import structlog

from libs.catalogue import model_of
from libs.clock import Clock
from libs.errors import Cancelled, CapacityError, DeadlinePassed, InternalError, NoExecutor, StageUnavailable
from libs.lane.forwarder import DRAINING
from libs.lane.passages import Passages
from libs.lane.progress import Gap
from libs.lane.stage import Sink
from libs.lane.work import POOL_GONE, Decision, Note, Outcome, QueueState, Tier, Work
from libs.telemetry import names
from libs.telemetry.tracing import Span, Tracing
from services.batcher.arrival import Arrival
from services.batcher.asked import Demand
from services.batcher.book import Book
from services.batcher.dispatch import Dispatch
from services.batcher.executors import Executor, ExecutorInfo
from services.batcher.held import Held, Place
from services.batcher.lanes import BatcherLane, ExecutorSink
from services.batcher.look import look
from services.batcher.memory import Ask, Memory
from services.batcher.observe import Observer
from services.batcher.policies.policy import Match
from services.batcher.pool import Pool
from services.batcher.pressure import Pressure
from services.batcher.queue_state import queue_states
from services.batcher.refusals import for_room, passed
from services.batcher.remembered import matches_of
from services.batcher.rules import Rules
from services.batcher.waiting import gone, why_waiting
from services.batcher.warmth import Nobody, Warmth

log = structlog.get_logger()

ATTEMPTS = 5
"""A work that was dispatched this often without a single new token is given up: it may be what kills them."""


class Batcher:
    """A Stage over the executors of many pools.

    Args:
        instance: This process's name.
        memory: The KV-cache manager.
        rules: The operators' rules, as they are now.
        pick: `pick(n)` gives a random index below n.
    """

    def __init__(
        self,
        instance: str,
        memory: Memory,
        rules: Rules,
        tracing: Tracing,
        observer: Observer,
        clock: Clock,
        pick: Callable[[int], int],
    ) -> None:
        self.draining = False
        self.starved: Callable[[], None] = lambda: None
        """Called when a work waits for a pool that no executor has."""
        self._clock = clock
        self._observer = observer
        self._versions: frozenset[str] | None = None
        self._book = book = Book(instance, memory, rules, tracing, observer, clock)
        self._arrival = Arrival(book)
        self._pressure = Pressure(book)
        self._dispatch = Dispatch(book, self._pressure, pick)
        self._warmth = Warmth(book, self._dispatch)

    # --- from outside ------------------------------------------------------------------------------

    def set_executors(self, infos: Mapping[str, ExecutorInfo]) -> None:
        """Replaces what is known of executors. A lane is kept as long as its Stage is the same object."""
        book, now = self._book, self._clock.monotonic()
        for name, executor in list(book.executors.items()):
            if executor.gone:
                continue
            info = infos.get(name)
            if info is None or info.stage is not executor.info.stage:
                book.retire(name)
            else:
                executor.follow(info, now)
        new = {name: Executor(name, info) for name, info in infos.items() if name not in book.executors}
        book.set_executors({**book.executors, **new})
        for executor in new.values():
            executor.lane = executor.info.stage.open(ExecutorSink(self, executor))
            executor.refresh(now)
        self._sort_out()
        self._pump_all()

    def set_versions(self, pools: frozenset[str]) -> None:
        """Replaces the pools that the catalogue has now. Those of other versions live on while copies do."""
        self._versions = pools
        self._book.demands.keep({model_of(pool): None for pool in pools})
        self._sort_out()

    def demands(self) -> Sequence[Demand]:
        """What is asked of each model."""
        book = self._book
        targets = {tier: book.rules.tier(tier).target_s for tier in Tier}
        return book.demands.demands(book.pools.values(), targets, self._clock.monotonic())

    def tick(self) -> None:
        """Ends what is past its deadline and tries again what waits. To be called several times a second."""
        book, now = self._book, self._clock.monotonic()
        book.deadlines.prune()
        for held in book.deadlines.passed(self._clock.now()):
            self._observer.expired(held.work.pool)
            book.stop(held, passed(held, now, book.pools[held.work.pool].told))
        book.forget_pools()
        self._sort_out()
        for executor in book.executors.values():
            executor.refresh(now)
        for pool in list(book.pools.values()):
            pool.queue.unpark_due(now)
            for executor in pool.executors.values():
                self._pressure.relieve(pool, executor)
        self._pump_all()
        if not self.draining:
            self._warmth.tick()
        self._observer.pools(book.pools.values())

    def together(self) -> AbstractContextManager[None]:
        """To be around answers of the KV-cache manager that came together: what they are about is dispatched at its
        end."""
        return self._dispatch.together()

    def close(self) -> None:
        """Closes all lanes to executors."""
        for executor in self._book.executors.values():
            if executor.lane is not None:
                executor.lane.close()

    @property
    def passages(self) -> Passages[Held]:
        """The works that it holds, for the frames that come from executors."""
        return self._book.passages

    @property
    def in_flight(self) -> int:
        """Works without an outcome."""
        return len(self._book.held)

    # --- the face to the router --------------------------------------------------------------------

    def open(self, sink: Sink) -> BatcherLane:
        """A lane that is ready at once."""
        return BatcherLane(self, sink)

    async def explain(self, work: Work) -> Sequence[Decision]:
        """What would become of a work now: in the queue, by the promise, and by the policy. Changes nothing."""
        book, now = self._book, self._clock.monotonic()
        pool = book.pools.get(work.pool) or book.new_pool(work.pool)
        held = Held(0, Nobody(), 0, work, now, Span())
        refusal, promised = self._arrival.judge(pool, held)
        if refusal is not None:
            return [Decision("batcher", "refuse", refusal.message)]
        waiting = len(pool.queue)
        queue = Decision("batcher", "queue" if waiting else "no wait", f"{waiting} works wait in pool {work.pool}")
        promise = [Decision("batcher", "promise", promised.reason)] if promised else []
        if len(work.block_hashes):
            held.matches = await self._look(pool, work)
        choice = self._dispatch.choose(pool, held, now, copy(pool.policy), told=True)
        policy = f"{pool.policy.name}: {choice.reason}"
        if choice.seat is None:
            return [queue, *promise, Decision("batcher", "hold" if choice.hold_for else "wait", policy)]
        chosen = Decision("batcher", f"executor {choice.seat.executor}", policy)
        return [queue, *promise, chosen, *await pool.executors[choice.seat.executor].info.stage.explain(work)]

    async def queues(self) -> Sequence[QueueState]:
        """One entry per pool and tier that holds something."""
        book = self._book
        return queue_states(book.instance, book.pools.values(), book.held.values(), self._clock.monotonic())

    def arrive(self, lane: BatcherLane, down_id: int, work: Work) -> None:
        """A work came up a router's lane."""
        if self.draining:
            error = StageUnavailable(
                f"{self._book.instance} is draining", metadata={DRAINING: "true"}, retry_after_s=1.0
            )
            lane.sink.on_outcome(down_id, Outcome(error=error, output_tokens=len(work.resumed)))
            return
        book, now = self._book, self._clock.monotonic()
        pool = book.pool(work.pool)
        waiting = {names.QUEUE_WAITING: len(pool.queue)}
        span = book.tracing.start(names.QUEUE, work.traceparent, attributes=waiting)
        held = Held(book.next(), lane, down_id, work, now, span)
        refusal, _ = self._arrival.judge(pool, held)
        if refusal is not None:
            span.error(refusal.message, refusal.reason)
            span.end()
            self._observer.refused(pool.name, work.tier, refusal)
            if for_room(pool, held, refusal):
                pool.load.arrived(work.tenant, work.tier, True, now)
            if isinstance(refusal, DeadlinePassed):
                self._observer.expired(pool.name)
            lane.sink.on_outcome(down_id, Outcome(error=refusal, output_tokens=len(work.resumed)))
            return
        self._dispatch.arrived(pool, held)
        if held.place is Place.WAITING:
            self._tell(pool, held)

    def cancel(self, held: Held) -> None:
        """The caller changed its mind. A running work ends where it runs, so that its tokens are counted."""
        held.cancelled = True
        if held.streaming and held.executor is not None and held.executor.lane is not None:
            held.executor.lane.cancel(held.key)
        else:
            self._stop(held, Cancelled("cancelled by the caller"))

    def abandon(self, works: Iterable[Held]) -> None:
        """The router's lane closed: all of these end, and only then others take their places."""
        pools = {held.work.pool for held in works}
        for held in works:
            if held.live:
                self._book.stop(held, Cancelled("the router's lane closed"))
        for name in pools:
            self._dispatch.pump(self._book.pool(name))

    # --- the face to the executors -----------------------------------------------------------------

    def ready(self, executor: Executor) -> None:
        """Its lane carries works. The next tick dispatches: no work waits longer than that for one that is back."""
        executor.refresh(self._clock.monotonic())

    def came(self, executor: Executor, keys: Iterable[int]) -> None:
        """Tokens of these works came, while some on their executor had none yet."""
        self._dispatch.started(executor, keys)

    def lost(self, executor: Executor, reason: str) -> None:
        """An executor's lane broke: everything on it comes back, in the order in which it came."""
        executor.refresh(self._clock.monotonic())
        for held in list(executor.works.values()):
            if held.executor is not executor:
                continue  # what was done about one before it has ended it
            self._observer.requeued("broken")
            self._retry(held, executor, f"the executor was lost: {reason}", lost=True)
        self._pump_all()

    def returned(self, executor: Executor, key: int, outcome: Outcome) -> None:
        """An outcome came from an executor."""
        held = executor.works.get(key)
        if held is None:
            return
        book, pool, error = self._book, self._book.pools[held.work.pool], outcome.error
        pushed = key in pool.leaving
        if held.place is Place.ENDED:  # the caller has its answer already; only now the slot is free
            book.vacate(held, executor)
        elif held.place is Place.LEAVING and isinstance(error, Cancelled) and not held.cancelled:
            self._observer.requeued("pushed")
            if held.context:  # what its prompt found there: later it finds its own
                self._cached(held, outcome)
            else:
                held.attempts -= 1  # it never came to anything, and not because it failed
            book.requeue(held, executor, f"pushed out of {executor.name}")
        elif isinstance(error, Cancelled) and not held.cancelled:  # a cancel that was meant for an earlier run of it
            self._observer.requeued("refused")
            self._retry(held, executor, f"cancelled on {executor.name} by nobody")
        elif isinstance(error, CapacityError):  # it lost the model, is draining, or its engine died
            self._observer.requeued("refused")
            if isinstance(error, NoExecutor) or DRAINING in error.metadata:
                held.attempts -= 1  # it never ran
            self._retry(held, executor, error.message)
            self._dispatch.shut(executor, held.work.pool)
        else:
            self._end(held, executor, outcome)
        if pushed:
            self._pressure.relieve(pool, executor)
        self._dispatch.pump(pool)

    def broke_promise(self, held: Held, executor: Executor, gap: Gap) -> None:
        """An executor left tokens out: a bug there, and the caller must not see a wrong answer."""
        log.error("gap on a lane", executor=executor.name, gap=str(gap))
        if held.streaming:
            self._book.stop(held, InternalError("internal error; the mesh's logs have the cause"))

    # --- inside ------------------------------------------------------------------------------------

    def _end(self, held: Held, executor: Executor, outcome: Outcome) -> None:
        """A work ended where it ran."""
        first = self._cached(held, outcome)
        found = outcome.cached_tokens if first and outcome.error is None else None
        stayed = self._clock.monotonic() - held.sent_at
        self._book.vacate(held, executor, found_tokens=found)
        if outcome.error is None:
            self._book.pools[held.work.pool].drain.stayed(stayed)
        cached = held.cached_tokens or 0
        self._book.end(
            held,
            Outcome(outcome.finish, outcome.error, outcome.output_tokens, cached, held.queued_s, outcome.executor),
        )

    def _cached(self, held: Held, outcome: Outcome) -> bool:
        """Notes how much of a prompt was found, where it was computed first; whether that was there."""
        first = held.cached_tokens is None
        if first:
            held.cached_tokens = min(outcome.cached_tokens, len(held.work.prompt))
        return first

    def _retry(self, held: Held, executor: Executor, why: str, *, lost: bool = False) -> None:
        """Queues a work again whose executor failed it, unless it has failed too often."""
        book, tokens = self._book, held.progress.count
        if held.place is Place.ENDED:
            book.vacate(held, executor, lost=lost)
        elif held.cancelled:
            book.vacate(held, executor, lost=lost)
            book.end(held, Outcome(error=Cancelled("cancelled by the caller"), output_tokens=tokens))
        elif held.attempts >= ATTEMPTS and tokens == held.sent_tokens:
            book.vacate(held, executor, lost=lost)
            error = StageUnavailable(f"given up after {ATTEMPTS} attempts; the last: {why}", retry_after_s=1.0)
            book.end(held, Outcome(error=error, output_tokens=tokens))
        else:
            book.requeue(held, executor, why, lost=lost)

    def _stop(self, held: Held, error: Cancelled) -> None:
        self._book.stop(held, error)
        self._dispatch.pump(self._book.pool(held.work.pool))

    def _pump_all(self) -> None:
        for pool in list(self._book.pools.values()):
            self._dispatch.pump(pool)

    def _sort_out(self) -> None:
        """Hands back what waits for a version that is gone, and tells the others what they wait for."""
        book = self._book
        infos, away = self._infos()
        for pool in list(book.pools.values()):
            if not len(pool.queue):
                continue
            if gone(pool.name, self._versions, infos.values()):
                why = f"{pool.name} was withdrawn"
                for held in self._waiting(pool):
                    book.stop(held, NoExecutor(why, metadata={POOL_GONE: "true"}, retry_after_s=1.0))
            elif (told := why_waiting(pool.name, infos, away)) != pool.told:
                pool.told = told
                for held in self._waiting(pool):
                    _note(held, told)

    def _infos(self) -> tuple[Mapping[str, ExecutorInfo], Collection[str]]:
        """Executors as the registry has them, and which of them do not answer."""
        there = [executor for executor in self._book.executors.values() if not executor.gone]
        away = {e.name for e in there if e.lane is None or not e.lane.ready}
        return {executor.name: executor.info for executor in there}, away

    def _waiting(self, pool: Pool) -> Iterable[Held]:
        """The works in a queue; each, unless what was done about one before it has ended it."""
        return (held for held in pool.waiting(self._book.held) if held.place is Place.WAITING)

    def _tell(self, pool: Pool, held: Held) -> None:
        """Tells a work that has just come what it waits for, if that is a copy."""
        pool.told = "" if any(seat.open for seat in pool.seats) else why_waiting(pool.name, *self._infos())
        if pool.told:
            _note(held, pool.told)
            self.starved()

    async def _look(self, pool: Pool, work: Work) -> Mapping[str, Match]:
        """Asks the manager who remembers a prompt."""
        ask = Ask(self._book.next(), pool.name, work.block_hashes, "", 0, work.traceparent)
        reply = await look(self._book.memory, ask)
        return matches_of(reply.matches, work.block_tokens) if reply is not None and reply.matches is not None else {}


def _note(held: Held, waiting: str) -> None:
    if waiting:
        held.lane.sink.on_note(held.down_id, Note(waiting=waiting))
