"""What the KV-cache manager knows, as one: prefix index, ledger, and the reports that feed both."""

from collections.abc import Sequence
from dataclasses import dataclass

from libs.errors import Overloaded
from libs.kvcache.values import Answer, BlockEvent, CacheInfo, CacheState, Question, Reservation
from services.kvcache.index import PrefixIndex
from services.kvcache.ledger import Held, Ledger
from services.kvcache.reports import Reports, Verdict

MAX_MATCHES = 16
"""Executors in one answer."""
MAX_BATCHERS = 1024
"""Batchers with a stream; one more is refused."""


@dataclass(frozen=True, slots=True)
class CacheView:
    """What is known of one pool's cache on one executor."""

    executor: str
    info: CacheInfo
    reserved: int
    """Blocks."""
    indexed: int
    """Blocks."""
    live: bool
    """Whether the executor's report stream is up."""


@dataclass(frozen=True, slots=True)
class Expired:
    """Whose leases are over."""

    batchers: Sequence[str]
    executors: Sequence[str]


class Memory:
    """Answers batchers and takes in what executors report. Times are monotonic seconds; a stream is any
    object that stands for it. All of it is soft state."""

    def __init__(self, index: PrefixIndex, ledger: Ledger, reports: Reports) -> None:
        self.index = index
        self.ledger = ledger
        self.reports = reports
        self._batchers: dict[str, object] = {}

    def expire(self, now: float) -> Expired:
        """Ends the leases that are over. Cheap when there are none: call it before whatever could notice."""
        batchers = self.ledger.expire(now)
        executors = self.reports.expire(now)
        for executor, report in executors:
            self.index.forget(executor)
            for pool in report.pools:
                self.ledger.set_capacity(executor, pool, 0)
        return Expired(batchers, [executor for executor, _report in executors])

    def batcher_connected(self, batcher: str, stream: object, claims: Sequence[Reservation]) -> None:
        """A batcher's stream begins, with all that the batcher holds; an older stream of it counts no more.

        Raises Overloaded when there are too many batchers.
        """
        if batcher not in self._batchers and len(self._batchers) >= MAX_BATCHERS:
            raise Overloaded(f"{MAX_BATCHERS} batchers have streams", retry_after_s=1.0)
        self._batchers[batcher] = stream
        self.ledger.claim(batcher, ((claim.id, Held(claim.executor, claim.pool, claim.blocks)) for claim in claims))

    def batcher_owns(self, batcher: str, stream: object) -> bool:
        """Whether this is the batcher's newest stream."""
        return self._batchers.get(batcher) is stream

    def batcher_disconnected(self, batcher: str, stream: object, now: float) -> None:
        """A stream ended: the batcher's grace period begins, unless there is a newer stream."""
        if self.batcher_owns(batcher, stream):
            del self._batchers[batcher]
            self.ledger.batcher_gone(batcher, now)

    def ask(self, batcher: str, question: Question) -> Answer:
        """Looks the prefix up, and reserves if an executor is named."""
        every = self.index.match(question.pool, question.block_hashes)
        matches = every[:MAX_MATCHES]
        executor, pool = question.executor, question.pool
        if not executor:
            return Answer(matches, reserved=False, free_blocks=0)
        matches += [match for match in every[MAX_MATCHES:] if match.executor == executor]
        reserved = self.ledger.reserve(batcher, question.id, executor, pool, question.blocks)
        return Answer(matches, reserved, self.ledger.free(executor, pool))

    def executor_connected(self, executor: str, stream: object) -> None:
        """An executor's stream begins; an older stream of it counts no more.

        Raises Overloaded when there are too many executors.
        """
        if not self.reports.connect(executor, stream):
            raise Overloaded("too many executors report", retry_after_s=1.0)

    def snapshot(self, executor: str, sequence: int, states: Sequence[CacheState]) -> int:
        """Replaces what was known of an executor; returns how many blocks there was no room for."""
        gone = self.reports.snapshot(executor, sequence, {state.info.pool: state.info for state in states})
        for pool in gone:
            self.index.forget(executor, pool)
            self.ledger.set_capacity(executor, pool, 0)
        refused = 0
        for state in states:
            refused += self.index.snapshot(executor, state.info.pool, state.hashes)
            self.ledger.set_capacity(executor, state.info.pool, state.info.capacity)
        return refused

    def events(self, executor: str, sequence: int, events: Sequence[tuple[str, BlockEvent]]) -> tuple[Verdict, int]:
        """Takes a batch of (pool, change) in; returns what became of it and how many blocks there was no room
        for. A change of a pool that no snapshot named counts as a gap."""
        verdict = self.reports.events(executor, sequence)
        if verdict is not Verdict.TAKE:
            return verdict, 0
        pools = self.reports.executors[executor].pools
        refused = 0
        for pool, event in events:
            if pool not in pools:
                return self.reports.missed(executor), refused
            refused += self.index.apply(executor, pool, (event,))
        return verdict, refused

    def caches(self) -> list[CacheView]:
        """By executor, then pool."""
        return [
            CacheView(
                executor,
                info,
                reserved=self.ledger.reserved(executor, pool),
                indexed=self.index.size(executor, pool),
                live=report.stream is not None,
            )
            for executor, report in sorted(self.reports.executors.items())
            for pool, info in sorted(report.pools.items())
        ]
