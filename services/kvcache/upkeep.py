"""What keeps the manager's memory true while nobody asks: leases that end, books that are checked, caches that are
told again when they seem to be others than the index says."""

from collections.abc import Callable

import structlog

from libs.clock import Clock
from services.kvcache.memory import Memory
from services.kvcache.trust import Drift

log = structlog.get_logger()

IDLE_S = 1.0
"""Without a question for this long, the manager looks itself over."""
INDEX_S = 60.0
"""Between two checks of the index, while it is small enough for that."""
INDEX_BLOCKS = 20_000
"""Up to this many blocks, 10 ms, the index is checked as a whole."""
RECALL_S = 0.1
"""Between two times that batchers are told of the same lack of blocks."""
RENEW_S = 600.0
"""A cache that has not been told for this long is asked for: one in each turn."""


Recall = Callable[[str, str], None]
"""Tells a batcher of an executor and a pool."""


class Observer:
    """Hears what happens, for metrics. This one ignores it."""

    def lookup(self, pool: str, result: str, duration_s: float) -> None:
        """A question was answered; `result` is "hit", "miss" or "refused"."""

    def gap(self, executor: str) -> None:
        """Events were missed, and a snapshot asked for."""

    def distrusted(self, executor: str) -> None:
        """What the index says of an executor is not told any more, or less of it."""

    def fault(self) -> None:
        """Something did not add up, and was put right."""


class Upkeep:
    """Leases need no timer: whatever could see that one is over looks first, with `expire`."""

    def __init__(self, memory: Memory, clock: Clock, observer: Observer) -> None:
        self.memory = memory
        self.observer = observer
        self._clock = clock
        self._asked = clock.monotonic()
        self._index_checked = clock.monotonic()
        self._reporters: dict[str, tuple[Callable[[], None], float]] = {}
        self._batchers: dict[str, Recall] = {}
        self._recalled: dict[tuple[str, str], float] = {}

    def asked(self) -> None:
        """A batcher has asked something."""
        self._asked = self._clock.monotonic()

    def consults(self, batcher: str, recall: Recall | None) -> None:
        """A batcher's newest stream, by how it is told that blocks are lacking somewhere; None when it ended."""
        if recall is None:
            self._batchers.pop(batcher, None)
        else:
            self._batchers[batcher] = recall

    def refused(self, batcher: str, executor: str, pool: str) -> None:
        """A batcher found too few blocks: the others give back there what they hold in advance."""
        now, place = self._clock.monotonic(), (executor, pool)
        if now < self._recalled.get(place, -RECALL_S) + RECALL_S:
            return
        self._recalled = {other: at for other, at in self._recalled.items() if now < at + RECALL_S}
        self._recalled[place] = now
        for holder in self.memory.ledger.holders(executor, pool):
            if holder != batcher and (recall := self._batchers.get(holder)) is not None:
                recall(executor, pool)

    def renewed(self, executor: str, ask_again: Callable[[], None]) -> None:
        """An executor has sent, or is about to send, all that it has; `ask_again` makes it do so again."""
        self._reporters[executor] = (ask_again, self._clock.monotonic())

    def left(self, executor: str) -> None:
        """Its stream ended."""
        self._reporters.pop(executor, None)

    def expire(self) -> None:
        """Ends the leases that are over."""
        expired = self.memory.expire(self._clock.monotonic())
        for batcher in expired.batchers:
            log.info("reservations lapsed", batcher=batcher)
        for executor in expired.executors:
            log.info("executor forgotten", executor=executor)

    def turn(self) -> None:
        """Call it each second. If nobody has asked anything lately, checks the books, and puts them right."""
        self.expire()
        now = self._clock.monotonic()
        if now - self._asked < IDLE_S:
            return
        for fault in self.memory.ledger.heal():
            self.fault("ledger", fault)
        if now - self._index_checked >= INDEX_S:
            self._index_checked = now
            self._check_index()
        self._renew(now)

    def fault(self, part: str, fault: str) -> None:
        """Something did not add up, and was put right."""
        log.error("books did not add up, and were put right", part=part, fault=fault)
        self.observer.fault()

    def drifted(self, drift: Drift) -> None:
        """The index and an engine are of one mind no longer, or again."""
        about = {"executor": drift.executor, "pool": drift.pool, "told": drift.told.name.lower()}
        if drift.told < drift.before:
            log.warning("index distrusted", **about, accuracy=round(drift.accuracy, 3))
            self.observer.distrusted(drift.executor)
        elif drift.told > drift.before:
            log.info("index trusted again", **about, accuracy=round(drift.accuracy, 3))
        if drift.snapshot_wanted and drift.executor in self._reporters:
            log.info("snapshot asked for: the engine finds other blocks than the index says", **about)
            self._ask_again(drift.executor)

    def _check_index(self) -> None:
        if self.memory.indexed > INDEX_BLOCKS:
            return  # that is left to the snapshots, one executor at a time
        try:
            self.memory.index.check_integrity()
        except AssertionError as error:
            self.memory.forget_index()
            for executor in self._reporters:
                self._ask_again(executor)
            self.fault("index", str(error))

    def _renew(self, now: float) -> None:
        if not self._reporters:
            return
        executor, (_ask, renewed) = min(self._reporters.items(), key=lambda item: item[1][1])
        if now - renewed >= RENEW_S:
            self._ask_again(executor)

    def _ask_again(self, executor: str) -> None:
        ask_again, _renewed = self._reporters[executor]
        self._reporters[executor] = (ask_again, self._clock.monotonic())
        ask_again()
