"""Makes room on executors: the batcher pushes works out, so that no engine ever has to.

A work that is pushed out is cancelled where it runs and keeps its tokens; when the executor has let it go, it is back
in the queue, in front of its tier, and is resumed behind its tokens later.
"""

from collections.abc import Iterable
from copy import copy

from libs.lane.work import Tier
from services.batcher import push_out
from services.batcher.book import Book
from services.batcher.executors import Executor
from services.batcher.held import Held, Place
from services.batcher.memory import Ask, Reply
from services.batcher.policies.policy import Asked
from services.batcher.pool import Pool
from services.batcher.push_out import Room, Running
from services.batcher.seat import Seat

GROWTH = 4
"""Works that outgrow what they have are given so many margins (Seat.margin) more."""
LEAVE_S = 1.0
"""An executor that has not let a work go after this long is not waited for any more before others are pushed out."""


class Pressure:
    """Decides for one batcher who leaves."""

    def __init__(self, book: Book) -> None:
        self._book = book

    def make_room(self, pool: Pool, held: Held, asked: Asked) -> None:
        """Pushes async works out for an interactive one that found no seat, if it has one then. No more are on their
        way out at a time than interactive works may wait for their places."""
        if held.work.tier is not Tier.INTERACTIVE or not pool.policy.late or self._leaving(pool):
            return
        seats = {seat.executor: seat for seat in pool.seats if seat.open and seat.patient}
        rooms = [self._room(pool, pool.executors[name], seat, coming=False) for name, seat in seats.items()]
        needs = {name: seat.blocks_for(asked.reserve_tokens) for name, seat in seats.items()}
        for name, victims in push_out.for_interactive(rooms, needs, pool.rules.max_pushes):
            if self._would_do(pool, asked, seats[name], victims):
                self._push(pool, pool.executors[name], [victim.key for victim in victims], "interactive")
                return

    def relieve(self, pool: Pool, executor: Executor) -> None:
        """Where blocks are given by estimate or more than once: gives more to works that need more soon, and pushes
        works out before an executor has none left. To be called several times a second, and when one that was
        pushed out has left, before its blocks go to others."""
        seat = executor.seats.get(pool.name)
        if seat is None:
            return
        if pool.rules.overcommit > 1 or seat.reserved > seat.capacity.blocks:
            self._relieve_memory(pool, executor, seat)
        if seat.partial:
            for held in list(executor.works.values()):
                if held.work.pool == pool.name and held.place is Place.RUNNING and held.partial:
                    self._grow(pool, held, executor, seat)

    def _leaving(self, pool: Pool) -> bool:
        """Whether as many works are on their way out as interactive ones wait for."""
        late = self._book.clock.monotonic() - LEAVE_S
        leaving = sum(since > late for since in pool.leaving.values())
        return leaving >= max(pool.queue.waiting(Tier.INTERACTIVE) - pool.queue.parked(), 1)

    def _would_do(self, pool: Pool, asked: Asked, seat: Seat, victims: list[Running]) -> bool:
        """Whether the work would be placed there if these had left: it may lack something else as well."""
        then = copy(seat)
        then.works -= len(victims)
        then.reserved -= sum(victim.blocks for victim in victims)
        then.filled -= sum(seat.blocks_for(victim.tokens) for victim in victims)
        if pool.rules.overcommit > 1 and not then.has_room_for(asked.prompt_tokens):
            return False
        return copy(pool.policy).choose(asked, (then,), lambda _: 0).seat is not None

    def _relieve_memory(self, pool: Pool, executor: Executor, seat: Seat) -> None:
        """Pushes out what would make the engine run out of blocks within the margin, prefixes in common not
        counted."""
        works = [held for held in executor.works.values() if held.work.pool == pool.name and held.blocks]
        filled = {held.key: seat.filled_by(held.prompt_tokens, held.total_tokens) for held in works}
        seat.filled = sum(filled.values())
        lacking = sum(filled[held.key] for held in works if held.place in _STAYING) - seat.capacity.blocks
        if lacking > 0:
            running = [_running(h, seat.blocks_for(h.prompt_tokens)) for h in works if h.place is Place.RUNNING]
            room = Room(executor.name, 0, 0, running)
            self._push(pool, executor, push_out.for_memory(room, lacking, pool.rules.max_pushes), "memory")

    def _grow(self, pool: Pool, held: Held, executor: Executor, seat: Seat) -> None:
        """Asks for more blocks for a work that will soon have used its own."""
        if held.growing or held.prompt_tokens + seat.margin < held.given_tokens:
            return
        tokens = min(held.prompt_tokens + GROWTH * seat.margin, held.total_tokens)
        blocks, before = seat.blocks_for(tokens), (held.blocks, held.given_tokens)
        if seat.reserved + blocks - held.blocks > int(seat.capacity.blocks * pool.rules.overcommit):
            room = self._room(pool, executor, seat, coming=True)
            victims = push_out.for_growth(room, held.key, blocks - held.blocks, pool.rules.max_pushes)
            self._push(pool, executor, victims, "memory")
            return
        executor.grow(held, blocks, tokens)
        if blocks == before[0]:
            return
        held.growing, reservation = True, held.reservation
        ask = Ask(reservation, pool.name, (), executor.name, blocks)
        self._book.memory.ask(ask, lambda reply: self._grown(held, executor, reservation, before, reply))

    def _grown(
        self, held: Held, executor: Executor, reservation: int, before: tuple[int, int], reply: Reply | None
    ) -> None:
        if held.reservation != reservation or held.executor is not executor:
            self._book.memory.release(reservation)  # it left meanwhile
            return
        held.growing = False
        if reply is not None and not reply.reserved:  # another batcher has them
            executor.grow(held, *before)
            self._push(self._book.pools[held.work.pool], executor, [held.key], "memory")

    def _push(self, pool: Pool, executor: Executor, keys: Iterable[int], cause: str) -> None:
        for key in keys:
            held = executor.works.get(key)
            if held is None or held.place is not Place.RUNNING or executor.lane is None:
                continue
            held.place = Place.LEAVING
            held.pushes += 1
            pool.leaving[key] = self._book.clock.monotonic()
            self._book.observer.pushed(pool.name, cause)
            executor.lane.cancel(key)

    def _room(self, pool: Pool, executor: Executor, seat: Seat, *, coming: bool) -> Room:
        """Who could leave an executor, and what is free there. `coming`: or will be, when those have left that are
        leaving already; nobody else waits for it."""
        works = [held for held in executor.works.values() if held.work.pool == pool.name]
        leaving = [held for held in works if coming and held.place not in _STAYING]
        free = int(seat.capacity.blocks * pool.rules.overcommit) - seat.reserved
        return Room(
            executor.name,
            seat.free_slots + len(leaving),
            free + sum(held.blocks for held in leaving),
            [_running(held, held.blocks) for held in works if held.place is Place.RUNNING],
        )


_STAYING = (Place.ASKING, Place.RUNNING)


def _running(held: Held, blocks: int) -> Running:
    lost = 0 if held.once else held.prompt_tokens  # a warm-up is not made good
    tier = Tier.ASYNC if held.patient else Tier.INTERACTIVE
    return Running(held.key, tier, blocks, lost, held.pushes, held.sent_at)
