"""Keeps prefixes warm: those that are hot on an executor that has just come, and those that an operator has pinned.

A warm-up is an ordinary work of nobody: its prompt is the prefix, it wants one token, and its answer is thrown away.
It has blocks reserved like any other, runs where more than half of the slots are free, and is the first to go when
room is needed. An executor gets one at a time.
"""

from collections import deque
from collections.abc import Iterable
from functools import partial

from libs.lane.frame import Frame
from libs.lane.work import Note, Outcome, Sampling, Tier, Work
from libs.telemetry import names
from services.batcher.book import Book
from services.batcher.dispatch import Dispatch
from services.batcher.executors import Executor
from services.batcher.held import Held
from services.batcher.hot import Prefix
from services.batcher.memory import Ask, Reply
from services.batcher.pool import Pool

DEADLINE_S = 60.0
"""Of a warm-up."""
PINS_S = 5.0
"""Between two looks at who remembers the pinned prefixes."""
AGAIN_S = 60.0
"""A prefix is not brought to the same executor twice within this time."""
MOST_BLOCKS = 0.25
"""Share of an executor's blocks that one warm-up may take."""
MOST_WANTED = 32
"""Warm-ups that wait for one executor; further ones are left out."""
NOBODY = "headrace-warm-up"
"""The tenant of warm-ups in logs and traces."""


class Warmth:
    """Warms for one batcher. Bounded by executors × MOST_WANTED."""

    def __init__(self, book: Book, dispatch: Dispatch) -> None:
        self._book = book
        self._dispatch = dispatch
        self._lane = Nobody()
        self._known: dict[tuple[str, str], Executor] = {}
        """Executors with a copy of a pool, that were there at the last look."""
        self._wanted: dict[tuple[str, str], deque[Prefix]] = {}
        self._running: dict[tuple[str, str], Held] = {}
        self._warmed: dict[tuple[str, str, int], float] = {}
        self._looked_at = 0.0

    def tick(self) -> None:
        """Sees who has come, and starts what can start. To be called several times a second."""
        now = self._book.clock.monotonic()
        self._greet(now)
        if now - self._looked_at >= PINS_S:
            self._looked_at = now
            self._warmed = {key: at for key, at in self._warmed.items() if now - at < AGAIN_S}
            for pool in self._book.pools.values():
                for pin in self._book.rules.pins(pool.name):
                    ask = Ask(self._book.next(), pool.name, pin.prefix.hashes, "", 0)
                    self._book.memory.ask(ask, partial(self._pinned, pool, pin.prefix, pin.copies))
        for key in list(self._wanted):
            self._start(key, now)

    def _greet(self, now: float) -> None:
        """Notes the hot prefixes for executors that have come."""
        here: dict[tuple[str, str], Executor] = {}
        for pool in self._book.pools.values():
            for name, executor in pool.executors.items():
                if not executor.seats[pool.name].open:
                    if self._known.get((name, pool.name)) is executor and pool.name in executor.info.models:
                        here[name, pool.name] = executor  # it is back soon, with its cache
                    continue
                here[name, pool.name] = executor
                if self._known.get((name, pool.name)) is executor:
                    continue
                # One of this name may have been warmed a moment ago; it died, and its cache with it.
                self._warmed = {key: at for key, at in self._warmed.items() if key[:2] != (name, pool.name)}
                if not pool.rules.cold_start:
                    self._want(pool, executor, pool.hot.hottest(pool.rules.warm_prefixes), now)
        self._known = here
        self._wanted = {key: prefixes for key, prefixes in self._wanted.items() if key in here}
        self._running = {key: held for key, held in self._running.items() if held.live}

    def _pinned(self, pool: Pool, prefix: Prefix, copies: int, reply: Reply | None) -> None:
        """Brings a pinned prefix to the executors that lack it, as far as it is to have further copies."""
        if reply is None or reply.matches is None:
            return
        now, whole = self._book.clock.monotonic(), len(prefix.hashes)
        having = {match.executor for match in reply.matches if match.blocks >= whole}
        lacking = [e for name, e in sorted(pool.executors.items()) if name not in having and e.seats[pool.name].open]
        for executor in lacking[: max(copies - len(having), 0) if copies else None]:
            self._want(pool, executor, [prefix], now)

    def _want(self, pool: Pool, executor: Executor, prefixes: Iterable[Prefix], now: float) -> None:
        wanted = self._wanted.setdefault((executor.name, pool.name), deque(maxlen=MOST_WANTED))
        for prefix in prefixes:
            key = executor.name, pool.name, prefix.hashes[-1]
            if key not in self._warmed and len(wanted) < MOST_WANTED:
                self._warmed[key] = now
                wanted.append(prefix)

    def _start(self, key: tuple[str, str], now: float) -> None:
        """Starts the next warm-up of an executor, if it has time for it."""
        name, pool = key[0], self._book.pools.get(key[1])
        executor = pool.executors.get(name) if pool is not None else None
        wanted = self._wanted[key]
        if not wanted or pool is None or executor is None or not pool.policy.late:
            del self._wanted[key]
            return
        seat = executor.seats[pool.name]
        idle = seat.open and 2 * seat.works < seat.capacity.slots and not seat.backlog_s(now)
        if key in self._running or not idle:
            return
        prefix = wanted.popleft()
        blocks = seat.blocks_for(len(prefix.tokens) + 1)
        if blocks <= min(seat.capacity.blocks * MOST_BLOCKS, seat.free_blocks):
            self._running[key] = held = self._held(pool, prefix, now)
            self._book.observer.warmed(pool.name)
            self._book.enter_aside(held)
            self._dispatch.place_on(pool, held, executor, "warms a prefix")

    def _held(self, pool: Pool, prefix: Prefix, now: float) -> Held:
        key = self._book.next()
        work = Work(
            f"warm-up-{self._book.instance}-{key}", NOBODY, Tier.ASYNC, prefix.model, prefix.tokens,
            Sampling(max_tokens=1, ignore_end=True), self._book.clock.now() + DEADLINE_S, pool.name,
            block_hashes=prefix.hashes, block_tokens=len(prefix.tokens) // len(prefix.hashes),
            adapter=prefix.adapter, salt=prefix.salt,
        )  # fmt: skip
        held = Held(key, self._lane, key, work, now, self._book.tracing.start(names.QUEUE, ""))
        held.once = True
        return held


class Nobody:
    """The lane in front, and the sink, of works that nobody asked for."""

    def __init__(self) -> None:
        self.held: dict[int, Held] = {}

    @property
    def sink(self) -> "Nobody":
        return self

    def on_ready(self) -> None: ...

    def on_frame(self, frame: Frame) -> None: ...

    def on_note(self, work_id: int, note: Note) -> None: ...

    def on_outcome(self, work_id: int, outcome: Outcome) -> None: ...

    def on_broken(self, reason: str) -> None: ...
