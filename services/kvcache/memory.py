"""What the KV-cache manager knows, as one: prefix index, ledger, trust, and the reports that feed them."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from operator import attrgetter

from libs.catalogue import model_of
from libs.errors import Overloaded
from libs.kvcache.values import Answer, BlockEvent, CacheInfo, CacheState, Hashes, PrefixMatch, Question, Reservation
from services.kvcache.index import PrefixIndex
from services.kvcache.ledger import Held, Ledger
from services.kvcache.reports import Reports, Verdict
from services.kvcache.trust import Drift, Told, Trust

MAX_MATCHES = 16
"""Executors in one answer, beside the one asked about."""
MAX_LOOKED = 64
"""Executors that are looked at for an answer when some of them are distrusted; what more there are is not told."""
MAX_BATCHERS = 1024
"""Batchers with a stream; one more is refused."""
DEFAULT = "default"
"""The name of the overcommit of models that have none of their own."""

_NAME = attrgetter("executor")


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
    trusted: bool = True
    accuracy: float = 1.0
    """See Trust."""


@dataclass(frozen=True, slots=True)
class Expired:
    """Whose leases are over."""

    batchers: Sequence[str]
    executors: Sequence[str]


_NONE_EXPIRED = Expired([], [])


class Memory:
    """Answers batchers and takes in what executors report. Times are monotonic seconds; a stream is any
    object that stands for it. All of it is soft state."""

    def __init__(self, index: PrefixIndex, ledger: Ledger, reports: Reports) -> None:
        self.index = index
        self.ledger = ledger
        self.reports = reports
        self.trust = Trust()
        self._batchers: dict[str, object] = {}
        self._overcommits: Mapping[str, float] = {}
        self._turn = 0

    def set_overcommits(self, factors: Mapping[str, float]) -> None:
        """Replaces the factors by which models are overcommitted; under DEFAULT, that of all others."""
        self._overcommits = dict(factors)
        for pool in {pool for report in self.reports.executors.values() for pool in report.pools}:
            self._set_overcommit(pool)

    def expire(self, now: float) -> Expired:
        """Ends the leases that are over. Cheap when there are none: call it before whatever could notice."""
        if not self.ledger.lapsing and not self.reports.lapsing:
            return _NONE_EXPIRED
        batchers = self.ledger.expire(now)
        for batcher in batchers:
            self.trust.batcher_holds(batcher, ())
        executors = self.reports.expire(now)
        for executor, report in executors:
            for pool in report.pools:
                self._forget(executor, pool)
            self.index.forget(executor)
        return Expired(batchers, [executor for executor, _report in executors])

    def batcher_connected(self, batcher: str, stream: object, claims: Sequence[Reservation]) -> None:
        """A batcher's stream begins, with all that the batcher holds; an older stream of it counts no more.

        Raises Overloaded when there are too many batchers.
        """
        if batcher not in self._batchers and len(self._batchers) >= MAX_BATCHERS:
            raise Overloaded(f"{MAX_BATCHERS} batchers have streams", retry_after_s=1.0)
        self._batchers[batcher] = stream
        self.ledger.claim(batcher, ((claim.id, Held(claim.executor, claim.pool, claim.blocks)) for claim in claims))
        self.trust.batcher_holds(batcher, (claim.id for claim in claims))

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
        executor, pool, hashes = question.executor, question.pool, question.block_hashes
        matches, match = self._matches(pool, hashes, executor)
        if not executor:
            return Answer(matches, reserved=False, free_blocks=0)
        before = self.ledger.held(batcher, question.id)
        reserved = self.ledger.reserve(batcher, question.id, executor, pool, question.blocks)
        if reserved and hashes and (before is None or before.executor != executor):
            self.trust.promise(batcher, question.id, pool, match, len(hashes))
        return Answer(matches, reserved, self.ledger.free(executor, pool))

    def release(self, batcher: str, number: int, found: int | None = None, now: float = 0.0) -> Drift | None:
        """Ends a reservation whose engine had found so many leading blocks of the prefix, or does not say.
        Returns what that says about the index, when it changes anything."""
        self.ledger.release(batcher, number)
        return self.trust.found(batcher, number, found, now)

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
            self._forget(executor, pool)
        refused = 0
        for state in states:
            pool = state.info.pool
            refused += self.index.snapshot(executor, pool, state)
            self._set_overcommit(pool)
            self.ledger.set_capacity(executor, pool, state.info.capacity)
            self.trust.renewed(executor, pool)
        return refused

    def events(self, executor: str, sequence: int, events: Sequence[tuple[str, BlockEvent]]) -> tuple[Verdict, int]:
        """Takes a batch of (pool, change) in; returns what became of it and how many blocks there was no room
        for. A change of a pool that no snapshot named counts as a gap."""
        verdict = self.reports.events(executor, sequence)
        return self.more(executor, events) if verdict is Verdict.TAKE else (verdict, 0)

    def more(self, executor: str, events: Sequence[tuple[str, BlockEvent]]) -> tuple[Verdict, int]:
        """Takes in what belongs to the snapshot or the batch before; nothing of it, if a pool is not known."""
        by_pool: dict[str, list[BlockEvent]] = {}
        for pool, event in events:
            by_pool.setdefault(pool, []).append(event)
        if not by_pool.keys() <= self.reports.executors[executor].pools.keys():
            return self.reports.missed(executor), 0
        return Verdict.TAKE, sum(self.index.apply(executor, pool, changes) for pool, changes in by_pool.items())

    @property
    def indexed(self) -> int:
        """Blocks in the index, each counted as often as it is held."""
        executors = self.reports.executors.items()
        return sum(self.index.size(executor, pool) for executor, report in executors for pool in report.pools)

    def forget_index(self) -> None:
        """Drops what is remembered of all caches: snapshots bring it back."""
        self.index = PrefixIndex()

    def caches(self) -> list[CacheView]:
        """By executor, then pool."""
        return [
            CacheView(
                executor,
                info,
                reserved=self.ledger.reserved(executor, pool),
                indexed=self.index.size(executor, pool),
                live=report.stream is not None,
                trusted=self.trust.told(executor, pool) is not Told.NOTHING,
                accuracy=self.trust.accuracy(executor, pool),
            )
            for executor, report in sorted(self.reports.executors.items())
            for pool, info in sorted(report.pools.items())
        ]

    def _matches(self, pool: str, hashes: Hashes, executor: str) -> tuple[list[PrefixMatch], PrefixMatch]:
        """What is told: the best MAX_MATCHES, and the executor asked about; and what is known of that one.

        Where the cut goes through equals, each answer tells others of them: a prefix that everybody holds must
        not make the first names the only ones that are known to hold it.
        """
        every = self.index.match(pool, hashes)
        asked = _of(executor, every) if executor else None
        some = every if len(every) <= MAX_MATCHES else islice(self._in_turn(every), MAX_LOOKED)
        if some is every and not self.trust.doubts(pool):
            return every, asked or PrefixMatch(executor, 0)
        best = sorted(islice(self.trust.tell(pool, some), MAX_MATCHES), key=_longest_first)
        if asked is not None and len(every) > MAX_MATCHES and all(match.executor != executor for match in best):
            best += self.trust.tell(pool, [asked])
        return best, asked or PrefixMatch(executor, 0)

    def _in_turn(self, matches: Sequence[PrefixMatch]) -> Iterator[PrefixMatch]:
        """The longest first. Where it is left off among equals, it goes on from there the next time."""
        for start, stop in _equals(matches):
            first, size = self._turn, stop - start
            for turn in range(first, first + size):
                self._turn = turn + 1
                yield matches[start + turn % size]
            self._turn = first

    def _forget(self, executor: str, pool: str) -> None:
        """A cache is gone, but for its place in the index."""
        self.ledger.set_capacity(executor, pool, 0)
        self.trust.forget(executor, pool)
        if not any(pool in report.pools for report in self.reports.executors.values()):
            self.ledger.set_overcommit(pool, None)

    def _set_overcommit(self, pool: str) -> None:
        factor = self._overcommits.get(model_of(pool), self._overcommits.get(DEFAULT))
        self.ledger.set_overcommit(pool, factor)


def _of(executor: str, matches: Sequence[PrefixMatch]) -> PrefixMatch | None:
    for start, stop in _equals(matches):
        place = bisect_left(matches, executor, start, stop, key=_NAME) if stop - start > 1 else start
        if place < stop and matches[place].executor == executor:
            return matches[place]
    return None


def _equals(matches: Sequence[PrefixMatch]) -> Iterator[tuple[int, int]]:
    """Where those of one length begin and end; looks at few of them."""
    start, count = 0, len(matches)
    while start < count:
        stop, blocks = start + 1, matches[start].blocks
        if stop < count and matches[stop].blocks == blocks:
            stop = bisect_right(matches, -blocks, stop, key=_longest_first)
        yield start, stop
        start = stop


def _longest_first(match: PrefixMatch) -> int:
    return -match.blocks
