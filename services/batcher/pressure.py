"""Makes room on executors: the batcher pushes works out, so that no engine ever has to.

A work that is pushed out is cancelled where it runs and keeps its tokens; when the executor has let it go, it is back
in the queue, in front of its tier, and is resumed behind its tokens later.
"""

from collections.abc import Sequence

from libs.lane.work import Tier
from services.batcher import push_out
from services.batcher.book import Book
from services.batcher.held import Held, Place
from services.batcher.memory import Ask, Reply
from services.batcher.pool import Executor, Pool
from services.batcher.push_out import Room, Running
from services.batcher.scheduling import Reserve
from services.batcher.seat import Seat

MARGIN_S = 0.2
"""Works get more blocks, or leave, when what they have lasts no longer than this at their pace: four ticks."""
LEAST_MARGIN = 16
"""Tokens of that margin, at least."""


class Pressure:
    """Decides for one batcher who leaves."""

    def __init__(self, book: Book) -> None:
        self._book = book

    def make_room(self, pool: Pool, held: Held, seats: Sequence[Seat], tokens: int) -> None:
        """Pushes async works out for an interactive one that found no seat, unless some are leaving already."""
        if held.work.tier is not Tier.INTERACTIVE or pool.leaving or not pool.policy.late:
            return
        able = [seat for seat in seats if seat.open and seat.patient]
        rooms = [self._room(pool, pool.executors[seat.executor], seat) for seat in able]
        needs = {seat.executor: seat.blocks_for(tokens) for seat in seats}
        found = push_out.for_interactive(rooms, needs, pool.rules.max_pushes)
        if found is not None:
            executor, victims = found
            for key in victims:
                self._push(pool, pool.executors[executor].works[key], "interactive")

    def relieve(self, pool: Pool) -> None:
        """Where blocks are given by estimate or more than once: gives more to works that need more soon, and pushes
        works out before an executor has none left. To be called several times a second."""
        if pool.rules.reserve is Reserve.WHOLE or not pool.policy.late:
            return
        for executor in pool.executors.values():
            seat = executor.seats[pool.name]
            margin = max(int(MARGIN_S / seat.token_s) if seat.token_s else 0, LEAST_MARGIN)
            self._relieve_memory(pool, executor, seat, margin)
            for held in list(executor.works.values()):
                if held.work.pool == pool.name and held.place is Place.RUNNING and not held.growing:
                    self._grow(pool, held, executor, seat, margin)

    def _relieve_memory(self, pool: Pool, executor: Executor, seat: Seat, margin: int) -> None:
        """Pushes out what would make the engine run out of blocks within the margin, prefixes in common not
        counted."""
        works = [held for held in executor.works.values() if held.work.pool == pool.name and held.streaming]
        soon = sum(seat.blocks_for(min(held.prompt_tokens + margin, held.total_tokens)) for held in works)
        leaving = sum(seat.blocks_for(held.prompt_tokens) for held in works if held.place is Place.LEAVING)
        excess = soon - leaving - seat.capacity.blocks
        if excess > 0:
            room = self._room(pool, executor, seat, used=True)
            for key in push_out.for_growth(room, room.free_blocks + excess, pool.rules.max_pushes) or ():
                self._push(pool, executor.works[key], "memory")

    def _grow(self, pool: Pool, held: Held, executor: Executor, seat: Seat, margin: int) -> None:
        """Asks for more blocks for a work that will soon have used its own."""
        if held.prompt_tokens + margin < held.given_tokens or held.given_tokens >= held.total_tokens:
            return
        tokens = min(held.prompt_tokens + 4 * margin, held.total_tokens)
        blocks, reservation = seat.blocks_for(tokens), held.reservation
        if seat.reserved + blocks - held.blocks > seat.capacity.blocks * pool.rules.overcommit:
            room = self._room(pool, executor, seat)
            victims = push_out.for_growth(room, blocks - held.blocks, pool.rules.max_pushes)
            for key in victims or (held.key,):
                self._push(pool, executor.works[key], "memory")
            return
        held.growing = True
        ask = Ask(reservation, pool.name, (), executor.name, blocks)
        self._book.memory.ask(ask, lambda reply: self._grown(held, executor, reservation, blocks, tokens, reply))

    def _grown(
        self, held: Held, executor: Executor, reservation: int, blocks: int, tokens: int, reply: Reply | None
    ) -> None:
        if held.reservation != reservation or held.executor is not executor:
            return  # it left meanwhile, and its reservation with it
        held.growing = False
        if reply is None or reply.reserved:
            executor.grow(held, blocks, tokens)
        elif held.place is Place.RUNNING:  # another batcher has them
            self._push(self._book.pools[held.work.pool], held, "memory")

    def _push(self, pool: Pool, held: Held, cause: str) -> None:
        executor = held.executor
        if held.place is not Place.RUNNING or executor is None or executor.lane is None:
            return
        held.place = Place.LEAVING
        held.pushes += 1
        pool.leaving.add(held.key)
        self._book.observer.pushed(pool.name, cause)
        executor.lane.cancel(held.key)

    def _room(self, pool: Pool, executor: Executor, seat: Seat, *, used: bool = False) -> Room:
        """Who could leave an executor. `used`: by the blocks that they use, not those that they were given."""
        running = [
            Running(
                held.key,
                held.work.tier,
                seat.blocks_for(held.prompt_tokens) if used else held.blocks,
                held.prompt_tokens,
                held.pushes,
                held.queued_since,
            )
            for held in executor.works.values()
            if held.work.pool == pool.name and held.place is Place.RUNNING
        ]
        return Room(executor.name, seat.free_slots, seat.free_blocks, running)
