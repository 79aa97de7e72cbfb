"""Leaves a pool alone that fails, and finds out when it is well again. Pure.

    CLOSED ──failures reach their share──▶ OPEN ──its time is up, or a copy has come back──▶ HALF_OPEN
       ▲                                     ▲                                                │   │
       │                                     └───────── a probe fails: twice as long ─────────┘   │
       └──────────────────────── enough probes in a row succeed ──────────────────────────────────┘

Works are counted when they end, in buckets of a tenth of the window. A probe has succeeded with its first token, so
that long answers do not keep a breaker half-open. Nygard, "Release It!", 2007, has the pattern; the counting by
share instead of by number is that of Envoy's outlier detection.
"""

from collections import deque
from collections.abc import Container, Sequence
from enum import IntEnum

from libs.errors import HeadraceError, InternalError, NoExecutor, StageUnavailable
from libs.lane.forwarder import DRAINING, NOBODY
from libs.lane.stage import BreakerState
from libs.lane.work import POOL_GONE
from services.router.policy import BreakerRule

BUCKETS = 10
"""Parts of the window: a failure is forgotten when its whole part has left it."""
MOST_TIMES = 10
"""A breaker that opens again and again stays open at most this many times `open_s`."""
IDLE_S = 600.0
"""A breaker that has seen no work for so long is forgotten."""

_FAILURES = (NoExecutor, StageUnavailable, InternalError)
_NOT_ITS_FAULT = (POOL_GONE, DRAINING, NOBODY)


class Position(IntEnum):
    """The numbers are those of lane.BreakerPosition."""

    CLOSED = 1
    OPEN = 2
    HALF_OPEN = 3


def verdict(error: HeadraceError | None) -> bool | None:
    """What a work's end says of its pool: True well, False a failure, None nothing: it was cancelled, refused by a
    full queue, out of time, or wrong in itself."""
    if error is None:
        return True
    if isinstance(error, _FAILURES) and not any(key in error.metadata for key in _NOT_ITS_FAULT):
        return False
    return None


class Breaker:
    """The breaker of one pool. Times are of one monotonic clock, in seconds. Holds BUCKETS + 1 counts."""

    def __init__(self, rule: BreakerRule) -> None:
        self.rule = rule
        """May be replaced at any time; the position stays."""
        self.touched = 0.0
        """When a work ended here last."""
        self._position = Position.CLOSED
        self._buckets: deque[list[float]] = deque()  # [when it began, works, failed]
        self._until = 0.0
        self._times = 1
        self._probing = 0
        self._succeeded = 0
        self._epoch = 0

    def position(self, now: float) -> Position:
        """Where it stands, of which time is a part."""
        if self._position is Position.OPEN and now >= self._until:
            self._enter(Position.HALF_OPEN)
        return self._position

    def refused_s(self, now: float) -> float | None:
        """None when a work may pass; else seconds after which another try makes sense."""
        position = self.position(now)
        if position is Position.OPEN:
            return self._until - now
        if position is Position.HALF_OPEN and self._probing + self._succeeded >= self.rule.probes:
            return 1.0
        return None

    def enter(self) -> int:
        """A work passes. Returns its ticket, for `leave`."""
        if self._position is Position.HALF_OPEN:
            self._probing += 1
        return self._epoch

    def probes(self, ticket: int) -> bool:
        """Whether the work with this ticket is a probe, and its success is waited for."""
        return self._position is Position.HALF_OPEN and ticket == self._epoch

    def leave(self, ticket: int, well: bool | None, now: float) -> None:
        """A work is done; see `verdict`. One from before the last change of position counts no more."""
        self.touched = now
        if ticket != self._epoch:
            return
        if self._position is Position.HALF_OPEN:
            self._probing -= 1
            if well is False:
                self._open(now, min(self._times * 2, MOST_TIMES))
            elif well:
                self._succeeded += 1
                if self._succeeded >= self.rule.probes:
                    self._enter(Position.CLOSED)
                    self._times = 1
        elif self._position is Position.CLOSED and well is not None:
            self._count(now, failed=not well)
            if not well:
                works, failed = self.counts(now)
                if works >= self.rule.min_works and failed >= self.rule.error_share * works:
                    self._open(now, 1)

    def came_back(self) -> None:
        """A copy of a pool that had none can answer: probes may pass at once."""
        if self._position is Position.OPEN:
            self._enter(Position.HALF_OPEN)

    def counts(self, now: float) -> tuple[int, int]:
        """Works that ended within the window, and those of them that failed."""
        self._forget(now)
        return int(sum(bucket[1] for bucket in self._buckets)), int(sum(bucket[2] for bucket in self._buckets))

    def probes_in_s(self, now: float) -> float:
        """Seconds until it lets probes through; 0 unless it is open."""
        return self._until - now if self.position(now) is Position.OPEN else 0.0

    def _open(self, now: float, times: int) -> None:
        self._times = times
        self._until = now + self.rule.open_s * times
        self._enter(Position.OPEN)

    def _enter(self, position: Position) -> None:
        self._position = position
        self._epoch += 1
        self._probing = self._succeeded = 0
        if position is Position.CLOSED:
            self._buckets.clear()

    def _count(self, now: float, *, failed: bool) -> None:
        part = self.rule.window_s / BUCKETS
        if not self._buckets or now - self._buckets[-1][0] >= part:
            self._buckets.append([now, 0, 0])
        self._buckets[-1][1] += 1
        self._buckets[-1][2] += failed
        self._forget(now)

    def _forget(self, now: float) -> None:
        while self._buckets and (now - self._buckets[0][0] >= self.rule.window_s or len(self._buckets) > BUCKETS + 1):
            self._buckets.popleft()


class Breakers:
    """Of one router, by pool. Bounded: pools that nobody has any more are forgotten, see `forget`."""

    def __init__(self, instance: str) -> None:
        self._instance = instance
        self._breakers: dict[str, Breaker] = {}

    def of(self, pool: str, rule: BreakerRule) -> Breaker:
        """The breaker of a pool, under the rule that holds now."""
        breaker = self._breakers.get(pool)
        if breaker is None:
            breaker = self._breakers[pool] = Breaker(rule)
        breaker.rule = rule
        return breaker

    def came_back(self, pool: str) -> None:
        """See Breaker.came_back."""
        if (breaker := self._breakers.get(pool)) is not None:
            breaker.came_back()

    def forget(self, pools: Container[str], now: float) -> None:
        """Forgets breakers of pools that are not there any more, and have been idle."""
        for pool, breaker in list(self._breakers.items()):
            if pool not in pools and now - breaker.touched > IDLE_S:
                del self._breakers[pool]

    def positions(self, now: float) -> dict[str, Position]:
        """Where each stands, by pool."""
        return {pool: breaker.position(now) for pool, breaker in self._breakers.items()}

    def states(self, now: float) -> Sequence[BreakerState]:
        """For an operator, by pool: those that have seen works within IDLE_S, or are not closed."""
        return [
            BreakerState(
                self._instance, pool, int(breaker.position(now)), *breaker.counts(now), breaker.probes_in_s(now)
            )
            for pool, breaker in sorted(self._breakers.items())
            if now - breaker.touched <= IDLE_S or breaker.position(now) is not Position.CLOSED
        ]
