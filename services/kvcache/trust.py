"""Whether the prefix index can be believed: what it promised of an executor, against what the engine found.

An index is fed by events, and events get lost or say what is not so (an engine that drops blocks in silence,
a chain that is hashed otherwise here than there). Nothing fails then: works go where they find nothing, and
everything is only slow. So each reservation remembers the leading blocks that the index promised on its
executor, and when the work ends, the batcher says how many the engine found.

Two mistakes are told apart, for their remedies differ:

* Fewer blocks were there than promised. Routing goes wrong. Per executor and pool, once for the device and
  once for all tiers, a share of promised blocks that were found is kept, older comparisons counting less and
  less. Below DISTRUST_BELOW the executor's matches are not told any more: works go there by load alone. If
  the device's share is well and that of all tiers is not, only its lower tiers are left out. Comparisons go on
  with what would have been promised, and from TRUST_FROM on it is believed again.
* Many more blocks were there than promised, most of the time: events of stored blocks were missed. No promise
  was broken, so nothing is left out. (Now and then it is no mistake: another work has computed the same
  prefix between the question and the engine's look.)

For both, the likeliest cause is events that were missed, and a fresh snapshot heals that.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum

from libs.kvcache.values import PrefixMatch

MAX_PROMISES = 1 << 16
"""Open promises to one batcher."""
COMPARISONS = 16
"""Before these have been made, nothing is judged."""
KEPT = 1 - 1 / 32
"""What a comparison still counts after the next one."""
DISTRUST_BELOW = 0.7
TRUST_FROM = 0.85
SURPLUS_BLOCKS = 8
"""The engine found far more than was promised: twice as much, and at least this much more."""
SURPLUS_SHARE = 0.5
"""Of the comparisons: from here on, events of stored blocks must have been missed."""
PAUSE_S = (30.0, 960.0)
"""Between two snapshots that are asked for because of drift, in seconds: the first time, and at most; each time
twice as long as before, for a snapshot that did not help will not help the next time either."""


class Told(IntEnum):
    """What of an executor's matches is told to batchers."""

    NOTHING = 0
    DEVICE = 1
    """What lies on the device."""
    ALL = 2


@dataclass(frozen=True, slots=True)
class Drift:
    """What a comparison has changed."""

    executor: str
    pool: str
    told: Told
    before: Told
    accuracy: float
    snapshot_wanted: bool


@dataclass(frozen=True, slots=True)
class _Promise:
    executor: str
    pool: str
    device: int
    blocks: int
    epoch: int


@dataclass(slots=True)
class _Share:
    """An exponentially forgetting share, and the judgement over it, with hysteresis."""

    found: float = 0.0
    of: float = 0.0
    comparisons: int = 0
    well: bool = True

    @property
    def value(self) -> float:
        return self.found / self.of if self.of else 1.0

    def compare(self, found: int, of: int) -> None:
        if of <= 0:
            return
        self.found = self.found * KEPT + min(found, of)
        self.of = self.of * KEPT + of
        self.comparisons += 1
        if self.comparisons >= COMPARISONS:
            self.well = self.value >= (DISTRUST_BELOW if self.well else TRUST_FROM)

    def again(self) -> None:
        """Judges anew, if it has judged badly; what is told stays until that is done."""
        if not self.well:
            self.found, self.of, self.comparisons = 0.0, 0.0, 0


@dataclass(slots=True)
class _Account:
    """One executor and pool."""

    device: _Share = field(default_factory=_Share)
    tiers: _Share = field(default_factory=_Share)
    expected: _Share = field(default_factory=_Share)
    """Comparisons that found about what was promised, or less, of all."""
    epoch: int = 0
    """Counts its snapshots: what was promised before the last one is not held against it."""
    pause_s: float = PAUSE_S[0]
    next_snapshot: float = 0.0

    @property
    def told(self) -> Told:
        return Told.NOTHING if not self.device.well else Told.ALL if self.tiers.well else Told.DEVICE

    @property
    def drifts(self) -> bool:
        surplus = 1 - self.expected.value
        return self.told is not Told.ALL or (self.expected.comparisons >= COMPARISONS and surplus > SURPLUS_SHARE)

    def compare(self, promise: _Promise, found: int) -> None:
        self.device.compare(found, promise.device)
        self.tiers.compare(found, promise.blocks)
        surplus = found >= max(2 * promise.blocks, promise.blocks + SURPLUS_BLOCKS)
        if promise.blocks or surplus:
            self.expected.compare(not surplus, 1)

    def wants_snapshot(self, now: float) -> bool:
        """Whether to ask for one now; counts as asked."""
        if not self.drifts:
            if self.expected.comparisons >= COMPARISONS:
                self.pause_s = PAUSE_S[0]
            return False
        if now < self.next_snapshot:
            return False
        self.next_snapshot, self.pause_s = now + self.pause_s, min(self.pause_s * 2, PAUSE_S[1])
        return True


class Trust:
    """The promises that are open, and what came of those before. Pure; times are monotonic seconds.

    Bounded: MAX_PROMISES of a batcher, those beyond are not remembered; they go with its stream, or its claims. An
    account belongs to a cache that is reported and goes with that.
    """

    def __init__(self) -> None:
        self._promises: dict[str, dict[int, _Promise]] = {}
        self._accounts: dict[tuple[str, str], _Account] = {}
        self._doubted: dict[str, set[str]] = {}  # by pool: executors of which not everything is told

    def promise(self, batcher: str, number: int, pool: str, match: PrefixMatch, asked: int) -> None:
        """Remembers what a reservation was promised on its executor.

        Args:
            asked: Blocks that were asked about. An engine computes a prompt's last token in any case, so of a
                prompt that is there to its last block, that block is not promised.
        """
        blocks = min(match.blocks, asked - 1)
        account = self._accounts.setdefault((match.executor, pool), _Account())
        promises = self._promises.setdefault(batcher, {})
        if len(promises) >= MAX_PROMISES and number not in promises:
            return
        promises[number] = _Promise(match.executor, pool, min(match.device_blocks, blocks), blocks, account.epoch)

    def promised(self, batcher: str) -> int:
        """Open promises to a batcher."""
        return len(self._promises.get(batcher, ()))

    def found(self, batcher: str, number: int, found: int | None, now: float) -> Drift | None:
        """A reservation ended, and its engine had found so many leading blocks, or does not say. What that
        changed; None when it is nothing that anybody has to know."""
        promise = self._take(batcher, number)
        account = None if promise is None else self._accounts.get((promise.executor, promise.pool))
        if promise is None or account is None or found is None or promise.epoch != account.epoch:
            return None
        before = account.told
        account.compare(promise, found)
        told, wanted = account.told, account.wants_snapshot(now)
        if told is not before:
            self._doubt(promise.executor, promise.pool, told is not Told.ALL)
        elif not wanted:
            return None
        return Drift(promise.executor, promise.pool, told, before, account.device.value, wanted)

    def batcher_holds(self, batcher: str, numbers: Iterable[int]) -> None:
        """Drops the promises of all reservations of a batcher but these."""
        open_ = self._promises.get(batcher, {})
        kept = {number: open_[number] for number in numbers if number in open_}
        if kept:
            self._promises[batcher] = kept
        else:
            self._promises.pop(batcher, None)

    def renewed(self, executor: str, pool: str) -> None:
        """A snapshot came."""
        if (account := self._accounts.get((executor, pool))) is not None:
            account.epoch += 1
            account.expected = _Share()
            account.device.again()
            account.tiers.again()

    def forget(self, executor: str, pool: str) -> None:
        """The cache is not reported any more."""
        self._accounts.pop((executor, pool), None)
        self._doubt(executor, pool, False)

    def doubts(self, pool: str) -> bool:
        """Whether there are executors of which not everything is told."""
        return pool in self._doubted

    def tell(self, pool: str, matches: Iterable[PrefixMatch]) -> Iterator[PrefixMatch]:
        """What of these matches batchers hear, in their order: but what is told of a device alone can be shorter than
        what comes behind it. Looks at no more of them than are asked for."""
        doubted = self._doubted.get(pool, ())
        for match in matches:
            if match.executor not in doubted:
                yield match
            elif match.device_blocks and self.told(match.executor, pool) is Told.DEVICE:
                yield PrefixMatch(match.executor, match.device_blocks)

    def told(self, executor: str, pool: str) -> Told:
        """What is told of an executor's matches."""
        account = self._accounts.get((executor, pool))
        return Told.ALL if account is None else account.told

    def accuracy(self, executor: str, pool: str) -> float:
        """The share of promised blocks on the device that were found lately; 1 before anything was compared."""
        account = self._accounts.get((executor, pool))
        return 1.0 if account is None else account.device.value

    def _doubt(self, executor: str, pool: str, doubted: bool) -> None:
        if doubted:
            self._doubted.setdefault(pool, set()).add(executor)
        elif pool in self._doubted:
            self._doubted[pool].discard(executor)
            if not self._doubted[pool]:
                del self._doubted[pool]

    def _take(self, batcher: str, number: int) -> _Promise | None:
        open_ = self._promises.get(batcher)
        promise = open_.pop(number, None) if open_ else None
        if open_ is not None and not open_:
            del self._promises[batcher]
        return promise
