"""When is a request slow enough to be sent twice? Pure.

A copy goes out when no token has come within a quantile of the times to the first token that this route has lately
had (Dean and Barroso, "The Tail at Scale", 2013: hedged requests, deferred until the 95th percentile), and within a
budget: copies are at most a share of the requests, whatever the quantile does.
"""

from math import ceil, exp, log

from services.router.policy import Hedge

FIRST_S, LAST_S = 0.001, 600.0
"""What is told apart, in seconds."""
WIDTH = 0.05
"""Relative width of a bin: the error of a quantile."""
HALF_S = 60.0
"""Times are kept for one to two of these."""
MIN_TIMES = 20
"""With fewer there is no quantile, and nothing is hedged."""
BURST = 10.0
"""Copies that may be saved up while all is quick."""

_STEP = log(1 + WIDTH)
_BINS = ceil(log(LAST_S / FIRST_S) / _STEP) + 1


class FirstTokens:
    """Times to the first token, lately, in two histograms that take turns; bins grow with the time.

    Holds 2 × 274 counts, whatever comes.
    """

    def __init__(self) -> None:
        self._now, self._before = [0] * _BINS, [0] * _BINS
        self._began: float | None = None

    def add(self, seconds: float, now: float) -> None:
        """Takes in a time; `now` in monotonic seconds."""
        self._turn(now)
        bounded = min(max(seconds, FIRST_S), LAST_S)
        self._now[int(log(bounded / FIRST_S) / _STEP)] += 1

    def quantile(self, share: float, now: float) -> float | None:
        """The time that this share of them does not exceed, in seconds; None while there are too few."""
        self._turn(now)
        counts = [a + b for a, b in zip(self._now, self._before, strict=True)]
        total = sum(counts)
        if total < MIN_TIMES:
            return None
        rank, seen = share * total, 0
        for index, count in enumerate(counts):
            seen += count
            if seen >= rank and count:
                return FIRST_S * exp((index + 1) * _STEP)
        return LAST_S

    def _turn(self, now: float) -> None:
        if self._began is None:
            self._began = now
        passed = now - self._began
        if passed >= HALF_S:
            self._before = self._now if passed < 2 * HALF_S else [0] * _BINS
            self._now, self._began = [0] * _BINS, now


class Hedging:
    """Of one route."""

    def __init__(self) -> None:
        self._times = FirstTokens()
        self._credit = 0.0
        self._after: float | None = None
        self._looked: float | None = None

    def asked(self, rule: Hedge, now: float) -> float | None:
        """A request that may be hedged has come. Returns the seconds after which; None: not at all, for now."""
        self._credit = min(self._credit + rule.max_share, BURST)
        if self._looked is None or now - self._looked >= 1.0:  # a quantile costs 20 µs, and does not move faster
            self._looked, self._after = now, self._times.quantile(rule.quantile, now)
        return self._after

    def spend(self) -> bool:
        """Whether a copy may go out now; then it is paid."""
        if self._credit < 1:
            return False
        self._credit -= 1
        return True

    def answered(self, seconds: float, now: float) -> None:
        """A request had its first token after so long, from whichever of both: a copy that was quicker does not hide
        that the first one was slow, for it was sent only then."""
        self._times.add(seconds, now)
