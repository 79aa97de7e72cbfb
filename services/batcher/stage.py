"""The batcher as a stage: decides when each work runs, and on which executor of its pool.

    arrives → WAITING (queue.py) → a slot is free: ASKING (dispatch.py chooses, the KV-cache manager
    reserves) → RUNNING → outcome.   Executor lost, or full after all: back to WAITING, at the front.

Everything here is synchronous and driven from outside: by lanes, by the registry, by the manager's answers,
and by `tick`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import structlog

from libs.catalogue import model_of
from libs.clock import Clock
from libs.errors import (
    Cancelled,
    CapacityError,
    DeadlinePassed,
    HeadraceError,
    InternalError,
    NoExecutor,
    Overloaded,
    StageUnavailable,
)
from libs.lane.deadlines import Deadlines
from libs.lane.forwarder import DRAINING
from libs.lane.progress import Gap
from libs.lane.stage import Sink
from libs.lane.work import POOL_GONE, Decision, FinishReason, Note, Outcome, QueueState, Tier, Work
from libs.telemetry import names
from libs.telemetry.tracing import Tracing
from services.batcher.asked import Asked, Demand
from services.batcher.dispatch import Candidate, Choice, choose, fits_nowhere
from services.batcher.held import Held, Place
from services.batcher.lanes import BatcherLane, ExecutorSink
from services.batcher.memory import Ask, Memory, Reply
from services.batcher.observe import Observer
from services.batcher.pool import Executor, ExecutorInfo, Pool
from services.batcher.queue import Entry, Limits
from services.batcher.queue_state import queue_states
from services.batcher.waiting import gone, why_waiting

log = structlog.get_logger()

SHUT_S = 0.05
"""An executor that refused a work of a pool is left alone this long, unless a work on it ends before."""
TOO_LARGE = "prompt and max_tokens together are larger than the KV cache of any executor"
ATTEMPTS = 5
"""A work that was dispatched this often without a single new token is given up: it may be what kills them."""


class Batcher:
    """A Stage over the executors of many pools.

    Args:
        instance: This process's name.
        memory: The KV-cache manager.
        limits: Bounds of a pool's queue for a tier, as the policy has them now.
        pick: `pick(n)` gives a random index below n.
    """

    def __init__(
        self,
        instance: str,
        memory: Memory,
        limits: Callable[[Tier], Limits],
        tracing: Tracing,
        observer: Observer,
        clock: Clock,
        pick: Callable[[int], int],
    ) -> None:
        self.instance = instance
        self.draining = False
        self._memory = memory
        self._limits = limits
        self._tracing = tracing
        self._observer = observer
        self._clock = clock
        self._pick = pick
        self._pools: dict[str, Pool] = {}
        self._executors: dict[str, Executor] = {}
        self._held: dict[int, Held] = {}
        self._deadlines: Deadlines[Held] = Deadlines()
        self._sequence = 0
        self._asked = Asked()
        self._versions: frozenset[str] | None = None
        self.starved: Callable[[], None] = lambda: None
        """Called when a work waits for a pool that no executor has."""

    # --- from outside ------------------------------------------------------------------------------

    def set_executors(self, infos: Mapping[str, ExecutorInfo]) -> None:
        """Replaces what is known of executors. A lane is kept as long as its Stage is the same object."""
        for name, executor in list(self._executors.items()):
            if executor.gone:
                continue
            info = infos.get(name)
            if info is None or info.stage is not executor.info.stage:
                executor.gone = True
                # Out of the way of a new one of this name; what runs there ends there, or comes back.
                self._executors[f"{name} (before {self._next()})"] = self._executors.pop(name)
                self._bury(executor)
            else:
                executor.info = info
        for name, info in infos.items():
            if name not in self._executors:
                self._executors[name] = executor = Executor(name, info)
                executor.lane = info.stage.open(ExecutorSink(self, executor))
        self._sort_out()
        self._pump_all()

    def set_versions(self, pools: frozenset[str]) -> None:
        """Replaces the pools that the catalogue has now. Those of other versions live on while copies do."""
        self._versions = pools
        self._asked.keep({model_of(pool): None for pool in pools})
        self._sort_out()

    def demands(self) -> Sequence[Demand]:
        """What is asked of each model."""
        return self._asked.demands(self._pools.values(), self._clock.monotonic())

    def tick(self) -> None:
        """Ends what is past its deadline and tries again what waits. To be called several times a second."""
        self._deadlines.prune(len(self._held))
        for held in self._deadlines.passed(self._clock.now()):
            where = "queue" if held.place is Place.WAITING else "executor"
            self._observer.expired(held.work.pool)
            error = DeadlinePassed(f"the deadline passed in the batcher ({where})", metadata={"stage": where})
            self.stop(held, error)
        self._sort_out()
        self._pump_all()
        self._observer.pools(self._pools.values())
        for name, pool in list(self._pools.items()):
            if not pool.held:
                del self._pools[name]  # bounds the dictionary by the works held

    def close(self) -> None:
        """Closes all lanes to executors."""
        for executor in self._executors.values():
            if executor.lane is not None:
                executor.lane.close()

    @property
    def in_flight(self) -> int:
        """Works without an outcome."""
        return len(self._held)

    # --- the face to the router --------------------------------------------------------------------

    def open(self, sink: Sink) -> BatcherLane:
        """A lane that is ready at once."""
        return BatcherLane(self, sink)

    async def explain(self, work: Work) -> Sequence[Decision]:
        """What the queue and the choice of an executor would be now."""
        pool = self._pools.get(work.pool) or Pool(work.pool)
        refusal = pool.queue.refusal(work.tier, len(work.prompt), self._limits(work.tier))
        if refusal is not None:
            return [Decision("batcher", "refuse", refusal)]
        waiting = len(pool.queue)
        queue = Decision("batcher", "queue" if waiting else "no wait", f"{waiting} works wait in pool {work.pool}")
        choice = self._choose(work.pool, work.adapter, len(work.prompt) + work.sampling.max_tokens)
        if choice.executor is None:
            return [queue, Decision("batcher", "wait", choice.reason)]
        behind = await self._executors[choice.executor].info.stage.explain(work)
        return [queue, Decision("batcher", f"executor {choice.executor}", choice.reason), *behind]

    async def queues(self) -> Sequence[QueueState]:
        """One entry per pool and tier that holds something."""
        return queue_states(self.instance, self._pools.values(), self._held.values(), self._clock.monotonic())

    # --- a work's way ------------------------------------------------------------------------------

    def arrive(self, lane: BatcherLane, down_id: int, work: Work) -> None:
        if self.draining:
            error = StageUnavailable(f"{self.instance} is draining", metadata={DRAINING: "true"}, retry_after_s=1.0)
            lane.sink.on_outcome(down_id, Outcome(error=error, output_tokens=len(work.resumed)))
            return
        pool = self._pools.get(work.pool)
        if pool is None:
            pool = self._pools[work.pool] = Pool(work.pool)
        refusal = None
        if not work.resumed:  # what has begun is let in: it was accepted once
            refusal = pool.queue.refusal(work.tier, len(work.prompt), self._limits(work.tier))
        if refusal is None and self._too_large(work.pool, len(work.prompt) + work.sampling.max_tokens):
            refusal = TOO_LARGE
        if refusal is not None:
            full = Overloaded(refusal, retry_after_s=1.0)
            lane.sink.on_outcome(down_id, Outcome(error=full, output_tokens=len(work.resumed)))
            return
        key, now = self._next(), self._clock.monotonic()
        span = self._tracing.start(names.QUEUE, work.traceparent, attributes={names.QUEUE_WAITING: len(pool.queue)})
        held = lane.held[down_id] = self._held[key] = Held(key, lane, down_id, work, now, span)
        self._deadlines.add(work.deadline, held)
        entry = Entry(key, work.tier, len(work.prompt), now)
        if work.resumed:
            pool.queue.push_front(entry)
        else:
            pool.queue.push(entry)
        pool.held += 1
        self._asked.arrived(pool.name, self._clock.now())
        self._pump(pool)
        if held.place is Place.WAITING:
            self._tell(pool, held)

    def _pump(self, pool: Pool) -> None:
        """Dispatches from the head of the queue as long as there is a place for the head."""
        now = self._clock.monotonic()
        while (entry := pool.queue.peek(now)) is not None:
            held = self._held[entry.key]
            choice = self._choose(pool.name, held.work.adapter, held.total_tokens)
            if choice.executor is None:
                if not self._too_large(pool.name, held.total_tokens):
                    return
                # The executors changed since it came; nobody behind it is to wait for what cannot be.
                self.stop(held, Overloaded(TOO_LARGE, retry_after_s=1.0))
                continue
            pool.queue.remove(entry.key)
            self._place(pool, held, self._executors[choice.executor], choice)

    def _pump_all(self) -> None:
        for pool in list(self._pools.values()):
            self._pump(pool)

    def _too_large(self, pool: str, tokens: int) -> bool:
        """Whether no executor of the pool, busy or not, could ever hold a work."""
        return fits_nowhere([c for e in self._executors.values() if (c := e.capacity(pool)) is not None], tokens)

    def _choose(self, pool: str, adapter: str, tokens: int) -> Choice:
        return choose(self._candidates(pool, adapter), tokens, self._pick)

    def _candidates(self, pool: str, adapter: str) -> list[Candidate]:
        now = self._clock.monotonic()
        return [c for e in self._executors.values() if (c := e.candidate(pool, adapter, now)) is not None]

    def _sort_out(self) -> None:
        """Hands back what waits for a version that is gone, and tells the others what they wait for."""
        infos = {e.name: e.info for e in self._executors.values() if not e.gone}
        for pool in list(self._pools.values()):
            if not len(pool.queue):
                continue
            if gone(pool.name, self._versions, infos.values()):
                why = f"{pool.name} was withdrawn"
                for held in self._waiting(pool):
                    self.stop(held, NoExecutor(why, metadata={POOL_GONE: "true"}, retry_after_s=1.0))
            elif (told := why_waiting(pool.name, infos)) != pool.told:
                pool.told = told
                for held in self._waiting(pool):
                    self._note(held, told)

    def _waiting(self, pool: Pool) -> Iterator[Held]:
        """The works in a queue; each, unless what was done about one before it has ended it."""
        for held in [self._held[entry.key] for entry in pool.queue]:
            if held.place is Place.WAITING:
                yield held

    def _tell(self, pool: Pool, held: Held) -> None:
        """Tells a work that has just come what it waits for, if that is a copy."""
        pool.told = why_waiting(pool.name, {e.name: e.info for e in self._executors.values() if not e.gone})
        if pool.told:
            self._note(held, pool.told)
            self.starved()

    def _note(self, held: Held, waiting: str) -> None:
        if waiting:
            held.lane.sink.on_note(held.down_id, Note(waiting=waiting))

    def _place(self, pool: Pool, held: Held, executor: Executor, choice: Choice) -> None:
        """Takes a slot for a work and asks the manager for its blocks."""
        held.place = Place.ASKING
        executor.add(held, choice.blocks)
        waited = self._clock.monotonic() - held.queued_since
        held.queued_s += waited
        held.queue_span.end()
        self._observer.dispatched(pool.name, held.work.tier, waited)
        self._asked.left_queue(pool.name, waited)
        held.dispatch_span = span = self._tracing.start(
            names.DISPATCH,
            held.work.traceparent,
            attributes={
                names.EXECUTOR: executor.name,
                names.REASON: choice.reason,
                names.ATTEMPT: held.attempts + 1,
                names.BLOCKS_RESERVED: choice.blocks,
                names.RESUMED_TOKENS: len(held.progress.tokens),
            },
        )
        if held.attempts:
            span.event(names.RESUMED)
        held.reservation = reservation = self._next()
        ask = Ask(reservation, pool.name, held.work.block_hashes, executor.name, choice.blocks, span.traceparent)
        self._memory.ask(ask, lambda reply: self._answered(held, executor, reservation, reply))

    def _answered(self, held: Held, executor: Executor, reservation: int, reply: Reply | None) -> None:
        if held.place is not Place.ASKING or held.reservation != reservation:
            self._memory.release(reservation)  # it ended, or its executor went, while the manager was asked
            return
        assert held.dispatch_span is not None
        pool = held.work.pool
        if reply is not None:
            held.dispatch_span.set(names.BLOCKS_MATCHED, reply.matched_blocks)
            if not reply.reserved:
                self._requeue(held, executor, f"the KV cache has {reply.free_blocks} blocks free")
                self._shut(executor, pool)
                return
        if executor.gone or executor.lane is None or not executor.lane.ready:
            self._requeue(held, executor, "the executor went away")
            return
        held.place = Place.RUNNING
        tokens = len(held.progress.tokens)
        held.attempts = held.attempts + 1 if tokens == held.sent_tokens else 1
        held.sent_tokens = tokens
        work = replace(held.progress.resume(), traceparent=held.dispatch_span.traceparent)
        executor.lane.submit(held.key, work)

    def _requeue(self, held: Held, executor: Executor, why: str) -> None:
        """Back to the front of the queue, with the tokens so far."""
        self._vacate(held, executor)
        tokens = len(held.progress.tokens)
        if held.dispatch_span is not None:
            held.dispatch_span.error(why)
            held.dispatch_span.end()
        if tokens >= held.work.sampling.max_tokens:  # only the outcome was lost
            self._end(held, Outcome(
                finish=FinishReason.LENGTH, output_tokens=tokens, cached_tokens=held.cached_tokens or 0,
                queued_s=held.queued_s, executor=executor.name,
            ))  # fmt: skip
            return
        held.place = Place.WAITING
        held.queued_since = self._clock.monotonic()
        held.queue_span = self._tracing.start(names.QUEUE, held.work.traceparent, attributes={names.REASON: why})
        pool = self._pools[held.work.pool]
        pool.queue.push_front(Entry(held.key, held.work.tier, len(held.work.prompt), held.arrived))

    def lost(self, executor: Executor, reason: str) -> None:
        """An executor's lane broke: everything on it comes back, in the order in which it came."""
        for held in list(executor.works.values()):
            self._observer.requeued("broken")
            self._retry(held, executor, f"the executor was lost: {reason}")
        self._pump_all()

    def returned(self, executor: Executor, key: int, outcome: Outcome) -> None:
        """An outcome came from an executor."""
        held = executor.works.get(key)
        if held is None:
            return
        if held.place is Place.ENDED:  # the caller has its answer already; only now the slot is free
            self._vacate(held, executor)
        elif isinstance(outcome.error, CapacityError):  # it lost the model, is draining, or its engine died
            self._observer.requeued("refused")
            if isinstance(outcome.error, NoExecutor) or DRAINING in outcome.error.metadata:
                held.attempts -= 1  # it never ran
            self._retry(held, executor, outcome.error.message)
            self._shut(executor, held.work.pool)
        else:
            self._vacate(held, executor)
            if held.cached_tokens is None:
                held.cached_tokens = min(outcome.cached_tokens, len(held.work.prompt))
            self._end(held, replace(outcome, queued_s=held.queued_s, cached_tokens=held.cached_tokens))
        if (pool := self._pools.get(held.work.pool)) is not None:
            self._pump(pool)

    def _retry(self, held: Held, executor: Executor, why: str) -> None:
        """Queues a work again whose executor failed it, unless it has failed too often."""
        if held.place is Place.ENDED:
            self._vacate(held, executor)
        elif held.cancelled:
            self._vacate(held, executor)
            self._end(
                held, Outcome(error=Cancelled("cancelled by the caller"), output_tokens=len(held.progress.tokens))
            )
        elif held.attempts >= ATTEMPTS and len(held.progress.tokens) == held.sent_tokens:
            self._vacate(held, executor)
            error = StageUnavailable(f"given up after {ATTEMPTS} attempts; the last: {why}", retry_after_s=1.0)
            self._end(held, Outcome(error=error, output_tokens=len(held.progress.tokens)))
        else:
            self._requeue(held, executor, why)

    def broke_promise(self, held: Held, executor: Executor, gap: Gap) -> None:
        """An executor left tokens out: a bug there, and the caller must not see a wrong answer."""
        log.error("gap on a lane", executor=executor.name, gap=str(gap))
        if held.place is Place.RUNNING:
            self.stop(held, InternalError("internal error; the mesh's logs have the cause"))

    def stop(self, held: Held, error: HeadraceError) -> None:
        """Ends a work from this side, wherever it stands."""
        place, executor = held.place, held.executor
        name = executor.name if executor is not None else ""
        if executor is None:
            self._pools[held.work.pool].queue.remove(held.key)
            held.queue_span.end()
        elif place is Place.ASKING:
            self._vacate(held, executor)
        self._end(held, Outcome(
            error=error, output_tokens=len(held.progress.tokens), queued_s=held.queued_s, executor=name
        ))  # fmt: skip
        if place is Place.RUNNING and executor is not None and executor.lane is not None:
            executor.lane.cancel(held.key)  # the slot is free when the executor says so

    def cancel(self, held: Held) -> None:
        """The caller changed its mind. A running work ends where it runs, so that its tokens are counted."""
        held.cancelled = True
        if held.place is Place.RUNNING and held.executor is not None and held.executor.lane is not None:
            held.executor.lane.cancel(held.key)
        else:
            self.stop(held, Cancelled("cancelled by the caller"))

    def _vacate(self, held: Held, executor: Executor) -> None:
        executor.remove(held)
        self._memory.release(held.reservation)
        self._bury(executor)

    def _shut(self, executor: Executor, pool: str) -> None:
        executor.shut_until[pool] = self._clock.monotonic() + SHUT_S

    def _end(self, held: Held, outcome: Outcome) -> None:
        """Passes the outcome on; a work has exactly one."""
        held.place = Place.ENDED
        del self._held[held.key]
        self._pools[held.work.pool].held -= 1
        if held.dispatch_span is not None:
            if outcome.error is not None:
                held.dispatch_span.error(outcome.error.message, outcome.error.reason)
            held.dispatch_span.end()
        self._observer.ended(held.work, outcome)
        if held.lane.held.pop(held.down_id, None) is not None:
            held.lane.sink.on_outcome(held.down_id, outcome)

    def _bury(self, executor: Executor) -> None:
        """Closes the lane of an executor that has gone, once nothing runs there."""
        if executor.gone and not executor.works and executor.lane is not None:
            executor.lane.close()
            self._executors = {name: e for name, e in self._executors.items() if e is not executor}

    def _next(self) -> int:
        self._sequence += 1
        return self._sequence
