"""How much load a drill sends: more each second, until the next rung is reached; then the same for a while. Pure.

A saturation cannot be asked for, only approached, and it follows the load some seconds late. So the load grows slowly
and by a factor: whatever the mesh can do, the same steps lead there.
"""

from math import inf

from services.console.drill.values import Order

IDLE_S = 12.0
"""The most load for so long without a further rung: there is no more to be had."""


class Ramp:
    """The rate of one drill, in requests per second. Times are seconds since it began."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._level = 0
        """The highest so far."""
        self._held_until = 0.0
        self._grown_at = 0.0
        self._most_since: float | None = None
        self.per_s = order.first_per_s

    def follow(self, level: int, now: float) -> None:
        """Takes in the level that is seen now."""
        order = self._order
        if level > self._level:
            self._level, self._held_until, self._most_since = level, now + order.hold_s, None
        if now < self._held_until:
            self._grown_at = now
            return
        self.per_s = min(self.per_s * order.growth ** (now - self._grown_at), order.bounds.per_s)
        self._grown_at = now
        if self.per_s >= order.bounds.per_s and self._most_since is None:
            self._most_since = now

    def stop(self) -> None:
        """No more is sent."""
        self.per_s, self._held_until = 0.0, inf

    def over(self, now: float) -> str | None:
        """Why no more load is needed, or of use; None while it is."""
        if self._level >= len(self._order.ladder) and now >= self._held_until:
            return "every rung was reached"
        if self._most_since is not None and now >= self._most_since + IDLE_S:
            most = self._order.bounds.per_s
            return f"no further rung was reached by {most:g} requests a second, the most that were allowed"
        return None
