"""A token bucket that may go into debt, and the measure of a rate. Pure. Times are monotonic seconds."""

from math import exp

SLACK = 1e-6
"""What rounding may cost: a debt this small is none."""
REMEMBERED_S = 1.0
"""The time constant of what counts as lately."""


class Bucket:
    """Fills evenly up to its capacity; who finds it not in debt may take any amount.

    So it goes below zero only by what was taken at once at a level that was not, and what is taken over time T is at
    most `rate` · T + capacity + the largest amount taken at once.

    Args:
        level: What is in it now.
    """

    __slots__ = ("_at", "_level", "capacity", "rate")

    def __init__(self, rate: float, capacity: float, level: float, now: float) -> None:
        self.rate = rate
        self.capacity = capacity
        self._level = level
        self._at = now

    def level(self, now: float) -> float:
        """What is in it; negative: the debt."""
        if now > self._at:
            self._level = min(self.capacity, self._level + self.rate * (now - self._at))
            self._at = now
        return self._level

    def set(self, rate: float, capacity: float, now: float) -> None:
        """From now on it fills at another rate. What is in it is not more by that."""
        self._level = min(self.level(now), capacity)
        self.rate, self.capacity = rate, capacity

    def take(self, amount: float, now: float) -> None:
        """Takes, or gives back what is negative; the caller has looked at `wait_s`."""
        self._level = min(self.level(now) - amount, self.capacity)

    def wait_s(self, now: float) -> float:
        """Seconds until something may be taken, if nothing is taken or given back meanwhile; 0: now."""
        debt = -self.level(now)
        if debt <= SLACK:
            return 0.0
        return debt / self.rate if self.rate > 0 else float("inf")


class Rate:
    """Units per second lately: an average weighted by age, with REMEMBERED_S as time constant. When nothing has come
    for longer than chance explains, it falls faster: what has gone elsewhere must not be counted in both places."""

    __slots__ = ("_at", "_usual", "_value")

    def __init__(self, now: float) -> None:
        self._value = 0.0
        self._usual = 0.0
        self._at = now

    def add(self, units: float, now: float) -> None:
        """So many came."""
        if now > self._at:
            self._value *= exp((self._at - now) / REMEMBERED_S)
            self._at = now
        self._value += units / REMEMBERED_S
        self._usual += (units - self._usual) * 0.1 if self._usual else units

    def at(self, now: float) -> float:
        """Units per second."""
        quiet_s = max(now - self._at, 0.0)
        lately = self._value * exp(-quiet_s / REMEMBERED_S)
        # Of random arrivals one gap in twenty is three times the usual one.
        return min(lately, 3 * self._usual / quiet_s) if quiet_s else lately
