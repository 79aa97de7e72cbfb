"""From the queue to an executor: who runs next, and where.

    head of the queue → its prefix is being computed by another, or its holder is busy: held back, bounded
                      → a seat: its blocks are reserved → the engine; what is remembered there is heard before or then
                      → no seat: pressure may push async work out; else everybody waits

Late binding: this runs whenever something has come free, not when a work arrives, so that one long request never
blocks a queue behind it. Policies that bind early are asked once, on arrival, and never find a seat taken.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from libs.errors import DeadlinePassed
from libs.lane.work import Tier
from libs.telemetry import names
from services.batcher import promise
from services.batcher.book import Book
from services.batcher.executors import Executor
from services.batcher.flock import Leader
from services.batcher.held import Held, Place
from services.batcher.memory import Ask, Reply
from services.batcher.parking import Parked
from services.batcher.policies.policy import Asked, Choice, Pick, Policy
from services.batcher.pool import LEAD, Pool, lead
from services.batcher.pressure import GROWTH, Pressure
from services.batcher.recollection import Recollection
from services.batcher.refusals import late, too_large
from services.batcher.scheduling import Reserve
from services.batcher.seat import LEAST_MARGIN, Seat
from services.batcher.worth import ASK_S, computing_s

SHUT_S = 0.05
"""An executor that refused a work of a pool is left alone this long, unless a work on it ends before."""
LOOK_S = 0.1
"""A work waits at most this long for the manager to say who remembers its prefix."""
FRESH_S = 0.05
"""What the manager said longer ago is asked again when the work runs: others have computed meanwhile."""
LEARN_S = 0.1
"""Of works that run alone or are quick, unasked, one in such a time is asked about: for what is usual to be known."""
QUICK_S = 0.005
"""A prompt that takes less to compute is done before it would be known how much of it there is to compute."""
MOST_PASSED = 8
"""Tenants beyond their share that others pass at a time: each costs a look at all executors."""
AWAY, AWAY_S = "away", 0.5
"""A work that only fits where no work is taken now lets others pass, and looks again after so many seconds."""


class Dispatch:
    """Decides for one batcher.

    Args:
        pick: `pick(n)` gives a random index below n.
    """

    def __init__(self, book: Book, pressure: Pressure, pick: Pick) -> None:
        self._book = book
        self._pressure = pressure
        self._pick = pick
        self._recollection = Recollection(book)
        self._heard: dict[Pool, None] | None = None
        """Pools for whose works the manager has answered, while answers that came together are taken in."""

    @contextmanager
    def together(self) -> Iterator[None]:
        """What the manager answers in here came together: who waited for it is dispatched at the end, in one go."""
        heard = self._heard = {}
        try:
            yield
        finally:
            self._heard = None
            for pool in heard:
                self.pump(pool)

    def arrived(self, pool: Pool, held: Held) -> None:
        """A work enters the queue. Where several executors could remember its prefix, the manager is asked first who
        does, unless the work can run now and that is worth more."""
        hashes = held.work.block_hashes
        if hashes:
            self._recollection.foresee(pool, held)
        if not hashes or len(pool.executors) < 2 or self._runs_unasked(pool, held):
            self._book.enter(pool, held)
            self.pump(pool)
            return
        on = _look(held)
        self._book.enter(pool, held, Parked(held.arrived + LOOK_S, on))
        ask = Ask(self._book.next(), pool.name, hashes, "", 0, held.work.traceparent)
        self._book.memory.ask(ask, lambda reply: self._looked(pool, held, on, reply))

    def _runs_unasked(self, pool: Pool, held: Held) -> bool:
        """Whether a work that has come need not wait until it is known who remembers its prefix: it can run now,
        nobody computes any of its prefix, and little is to be gained."""
        return (
            pool.policy.late
            and not pool.queue
            and any(seat.open and seat.free_slots > 0 for seat in pool.seats)
            and self._led(pool, held, held.remembered_blocks, held.arrived) is None
            and not pool.worth.asking(held.prompt_tokens, pool.speed(held.arrived).seat_prefill)
        )

    def _led(self, pool: Pool, held: Held, blocks: int, now: float) -> tuple[Leader, int] | None:
        """Who computes more of a prompt than its first blocks, which are there, and how many it will find then; None
        when nobody does, or what it would be spared is not worth the wait."""
        led = pool.flock.leader(held.work.block_hashes, blocks)
        if led is None:
            return None
        spared = (led[1] - blocks) * held.work.block_tokens
        return led if computing_s(spared, pool.speed(now).seat_prefill) > ASK_S else None

    def pump(self, pool: Pool) -> None:
        """Dispatches from the head of the queue as long as there is a place for the head. Called while it runs, by what
        it has caused, it begins anew when it is through: so no chain of answers that come at once is ever deep."""
        if not pool.pumped and not pool.queue.runnable and not any(map(pool.queue.waits_for, pool.freed)):
            pool.freed.clear()  # nobody can be placed: the usual case where there is room
            pool.due = False
            pool.looked_through(False, self._book.clock.monotonic())
            return
        pool.due = True
        if pool.pumped:
            return
        pool.pumped = True
        try:
            while pool.due:
                pool.due = False
                self._look_through(pool)
        finally:
            pool.pumped = False

    def _look_through(self, pool: Pool) -> None:
        book = self._book
        now = book.clock.monotonic()
        age_s = book.rules.tier(Tier.ASYNC).limits.age_s
        stuck, passed = False, 0
        while pool.freed:
            self._serve_held(pool, pool.freed.pop(), now, age_s)
        while (entry := pool.queue.peek(now, age_s)) is not None:
            held = book.held[entry.key]
            choice = self.choose(pool, held, now, pool.policy)
            if choice.seat is not None:
                if (late := self._too_late(pool, held, choice.seat)) is not None:
                    book.stop(held, late)
                    continue
                self._place(pool, held, choice.seat, choice.reason)
            elif choice.hold_for:
                self._hold(pool, held, choice, now)
            elif pool.fits_nowhere(held.total_tokens):
                # The executors changed since it came; nobody behind it is to wait for what cannot be.
                book.stop(held, too_large(pool, held))
            elif _only_elsewhere(pool, held):
                pool.queue.park(entry.key, now + AWAY_S, AWAY)
            else:
                stuck = True
                asked = self._asked(pool, held, now, 0.0)
                self._pressure.make_room(pool, held, asked)
                if not asked.spare or passed == MOST_PASSED:
                    break
                passed += 1
                pool.queue.set_aside(held.work.tenant)  # what it leaves to others is for those behind it
        pool.queue.take_in()
        pool.looked_through(stuck, now)

    def _serve_held(self, pool: Pool, name: str, now: float, age_s: float) -> None:
        """Something came free on an executor: it goes first to those that were held back for it, since their turn
        had come already; but not before more urgent ones."""
        keys = pool.queue.waiting_for(name)
        if not keys:
            return
        executor = pool.executors.get(name)
        if executor is None or not executor.seats[pool.name].open:
            pool.queue.unpark(name)
            return
        seat = executor.seats[pool.name]
        head = pool.queue.peek(now, age_s)
        for key in keys:
            held = self._book.held.get(key)
            if held is None or held.place is not Place.WAITING:
                continue  # what was done for one before it has ended it
            if head is not None and head.tier < held.work.tier:
                continue
            choice = pool.policy.choose(self._asked(pool, held, now, 0.0), _able(pool, held, (seat,)), self._pick)
            if choice.seat is None:
                return
            if (late := self._too_late(pool, held, choice.seat)) is not None:
                self._book.stop(held, late)
                continue
            self._place(pool, held, choice.seat, choice.reason)

    def choose(self, pool: Pool, held: Held, now: float, policy: Policy, *, told: bool = False) -> Choice:
        """What would be done with a work now. Changes nothing but what the policy remembers, the pool's or another
        one.

        Args:
            told: Whether the reason is read though the work is not traced.
        """
        hold_s = self._may_hold(pool, held, now)
        if hold_s > 0:
            if now < held.due and (led := self._led(pool, held, held.remembered_blocks, now)) is not None:
                leader, common = led
                why = f"{common} blocks of its prompt are being computed on {leader.executor}"
                return Choice(None, why, lead(leader.key), min(hold_s, held.due - now))
            for name in held.matches:
                if (executor := pool.executors.get(name)) is not None:
                    executor.seats[pool.name].awaited = pool.queue.awaited(name)
        return policy.choose(self._asked(pool, held, now, hold_s, told), _able(pool, held, pool.seats), self._pick)

    def _asked(self, pool: Pool, held: Held, now: float, hold_s: float, told: bool = False) -> Asked:
        return Asked(
            held.prompt_tokens, self.reserve_tokens(pool, held), held.matches, now, held.work.adapter,
            held.due - now, hold_s, pool.spare(held.work.tenant), pool.speed(now).seat_prefill,
            told or held.queue_span.recording,
        )  # fmt: skip

    def reserve_tokens(self, pool: Pool, held: Held) -> int:
        """Tokens that a work is to have blocks for when it starts."""
        rules, work = pool.rules, held.work
        if rules.reserve is Reserve.WHOLE or held.pushes >= rules.max_pushes:
            return held.total_tokens  # one that has been pushed out too often is to outgrow nothing any more
        answer = self._book.lengths.expected(work.tenant, pool.model, work.sampling.max_tokens, rules.quantile)
        ahead = GROWTH * LEAST_MARGIN if held.ran else work.block_tokens + 1
        return min(max(len(work.prompt) + answer, held.prompt_tokens + ahead), held.total_tokens)

    def place_on(self, pool: Pool, held: Held, executor: Executor, reason: str) -> None:
        """Places a work that does not wait in the queue."""
        self._place(pool, held, executor.seats[pool.name], reason)

    def started(self, executor: Executor, keys: Iterable[int]) -> None:
        """Tokens of these works came: of some it is the first."""
        book, now = self._book, self._book.clock.monotonic()
        pools: dict[Pool, None] = {}
        for key in executor.prefilling.keys() & set(keys):
            held = executor.prefilling[key]
            executor.started(held, now)
            pool = book.pools[held.work.pool]
            pools[pool] = None
            if followers := pool.started(key, executor.name):
                self._recollection.computed(held, executor, followers, len(held.work.block_hashes))
        for pool in pools:
            self.pump(pool)

    def shut(self, executor: Executor, pool: str) -> None:
        """Leaves an executor alone that refused a work."""
        executor.shut(pool, self._book.clock.monotonic() + SHUT_S)

    def _looked(self, pool: Pool, held: Held, on: str, reply: Reply | None) -> None:
        if held.place is Place.WAITING:
            if reply is not None and reply.matches is not None:
                held.looked, held.looked_at = True, self._book.clock.monotonic()
                held.matches = self._recollection.heard(pool, held, reply.matches)
            pool.queue.unpark(on)
            if self._heard is None:
                self.pump(pool)
            else:
                self._heard[pool] = None

    def _hold(self, pool: Pool, held: Held, choice: Choice, now: float) -> None:
        if held.hold_until is None:
            held.hold_until = now + self._may_hold(pool, held, now)
        held.queue_span.set(names.HELD_FOR, choice.reason)
        self._book.observer.held_back(pool.name)
        until = min(now + choice.hold_s, held.hold_until)
        pool.queue.park(held.key, until, choice.hold_for, held.missing(choice.hold_for))
        if choice.hold_for.startswith(LEAD):
            pool.flock.follow(int(choice.hold_for.removeprefix(LEAD)), held.key)

    def _may_hold(self, pool: Pool, held: Held, now: float) -> float:
        """Seconds for which a work may still be held back."""
        if not pool.policy.late:
            return 0.0
        return pool.rules.max_hold_s if held.hold_until is None else held.hold_until - now

    def _too_late(self, pool: Pool, held: Held, seat: Seat) -> DeadlinePassed | None:
        """The error for a work that cannot meet its deadline any more, not even if it ran now."""
        output = max(self._book.likely_tokens(pool, held.work) - held.progress.count, 1)
        match = held.matches.get(seat.executor)
        found = match.tokens if match is not None else 0
        estimate = promise.estimate(0, held.prompt_tokens, found, output, 0.0, seat.prefill_rate, seat.token_s)
        why = promise.broken(estimate, held.work.deadline - self._book.clock.now())
        if why is None or estimate is None:
            return None
        self._book.observer.expired(pool.name)
        return DeadlinePassed(f"the deadline cannot be met: {why}", metadata=late(estimate, "queue"))

    def _place(self, pool: Pool, held: Held, seat: Seat, reason: str) -> None:
        """Takes a slot for a work and asks the manager for its blocks."""
        book, executor, hashes = self._book, pool.executors[seat.executor], held.work.block_hashes
        compute = held.missing(executor.name)
        held.given_tokens = self.reserve_tokens(pool, held)
        blocks = seat.blocks_for(held.given_tokens) if pool.policy.late else 0
        book.place(pool, held, executor, blocks, compute, reason)
        if held.work.block_tokens:
            pool.flock.lead(held.key, executor.name, hashes, held.remembered_blocks)
        held.reservation = reservation = book.next()
        assert held.dispatch_span is not None
        ask = Ask(reservation, pool.name, hashes, executor.name, blocks, held.dispatch_span.traceparent)
        book.memory.ask(ask, lambda reply: self._answered(pool, held, executor, reservation, reply))

    def _answered(self, pool: Pool, held: Held, executor: Executor, reservation: int, reply: Reply | None) -> None:
        book = self._book
        if held.place is not Place.ASKING or held.reservation != reservation:
            book.memory.release(reservation)  # it ended, or its executor went, while the manager was asked
            return
        assert held.dispatch_span is not None
        if reply is not None:
            if not reply.reserved:
                book.requeue(held, executor, f"the KV cache has {reply.free_blocks} blocks free")
                if not held.once:  # a warm-up says nothing about what else fits
                    self.shut(executor, pool.name)
                self.pump(pool)
                return
            if reply.matches is not None:
                self._recollection.learn(pool, held, executor, reply.matches)
                if self._move(pool, held, executor):
                    return
            elif held.looked:
                self._recollection.found(pool, held, executor)
        if executor.gone or executor.lane is None or not executor.lane.ready:
            executor.refresh(book.clock.monotonic())
            book.requeue(held, executor, "the executor went away")
            self.pump(pool)
            return
        executor.lane.submit(held.key, book.run(held, executor))
        if reply is not None and reply.matches is None and held.work.block_hashes and not held.once:
            self._look_behind(pool, held, executor)
        if pool.due:  # some were held back for what is there already
            self.pump(pool)

    def _look_behind(self, pool: Pool, held: Held, executor: Executor) -> None:
        """Asks who remembers the prompt of a work that runs already: for what is ahead on its executor to be known, and
        who need not wait for its prefix. Not if that was just said, and seldom of one that is quick, or alone there, or
        where nothing new was said lately."""
        since = held.looked_at + FRESH_S if held.looked else pool.learned_at + LEARN_S
        rate = pool.speed(held.sent_at).seat_prefill
        little = computing_s(held.prompt_tokens, rate) < QUICK_S or not pool.worth.telling(held.prompt_tokens, rate)
        if held.sent_at < since and (held.looked or little or executor.seats[pool.name].prefilling == 1):
            return
        pool.learned_at = held.sent_at
        reservation = held.reservation

        def looked(reply: Reply | None) -> None:
            if reply is None or reply.matches is None:
                return
            here = held.executor is executor and held.reservation == reservation
            if not here or held.key not in executor.prefilling:
                self._recollection.heard(pool, held, reply.matches)
                return
            self._recollection.learn(pool, held, executor, reply.matches)
            if pool.due:
                self.pump(pool)

        ask = Ask(self._book.next(), pool.name, held.work.block_hashes, "", 0)
        self._book.memory.ask(ask, looked)

    def _move(self, pool: Pool, held: Held, executor: Executor) -> bool:
        """Places a work elsewhere if it was placed without knowing who remembers its prefix, and somebody does.
        At most once."""
        if held.looked or held.once or not held.matches or not pool.policy.late or len(pool.executors) < 2:
            return False
        held.looked = True
        now = self._book.clock.monotonic()
        if len(held.matches) == 1 and executor.name in held.matches:
            return False
        choice = self.choose(pool, held, now, pool.policy)
        if choice.seat is None or choice.seat.executor == executor.name:
            return False
        here, there = held.matches.get(executor.name), held.matches.get(choice.seat.executor)
        if there is None or (here is not None and here.tokens >= there.tokens):
            return False
        assert held.dispatch_span is not None
        held.dispatch_span.set(names.REASON, f"{choice.seat.executor} remembers more of its prompt")
        held.dispatch_span.end()
        self._book.vacate(held, executor)
        held.queued_since = now
        self._place(pool, held, choice.seat, choice.reason)
        return True


def _able(pool: Pool, held: Held, seats: Sequence[Seat]) -> Sequence[Seat]:
    """Those seats that could hold a work with its whole answer, and beside what fills their blocks now."""
    tokens = held.total_tokens
    if tokens > pool.smallest:
        seats = [seat for seat in seats if seat.blocks_for(tokens) <= seat.capacity.blocks]
    if pool.rules.overcommit > 1:
        seats = [seat for seat in seats if seat.has_room_for(held.prompt_tokens)]
    return seats


def _only_elsewhere(pool: Pool, held: Held) -> bool:
    """Whether works are taken, but nowhere where this one fits."""
    if held.total_tokens <= pool.smallest:
        return False
    fits = [seat.blocks_for(held.total_tokens) <= seat.capacity.blocks for seat in pool.seats if seat.open]
    return bool(fits) and not any(fits)


def _look(held: Held) -> str:
    return f"look {held.key}"
