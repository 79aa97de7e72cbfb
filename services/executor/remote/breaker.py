"""Leaves an endpoint alone that fails, and finds out when it is well again. Pure.

Closed: works pass, failures are counted in a sliding window. Open: nothing passes for a time. Half-open: a few
works pass as probes; enough successes close it, one failure opens it again. Defaults and states are those of
SGLang's router.
"""

from collections import deque
from enum import IntEnum

from libs.catalogue.options import Breaker as Policy


class State(IntEnum):
    """The numbers are those of the metric."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


class Breaker:
    """The breaker of one endpoint. Times are of one monotonic clock, in seconds."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._state = State.CLOSED
        self._failures: deque[float] = deque(maxlen=max(policy.failures, 1))
        self._until = 0.0
        self._probes = 0
        self._successes = 0
        self._epoch = 0

    def state(self, now: float) -> State:
        """The state, of which time is a part."""
        if self._state is State.OPEN and now >= self._until:
            self._enter(State.HALF_OPEN)
        return self._state

    def refused_s(self, now: float) -> float | None:
        """None when a work may pass; else the seconds after which trying again makes sense."""
        state = self.state(now)
        if state is State.OPEN:
            return self._until - now
        if state is State.HALF_OPEN and self._probes + self._successes >= max(self._policy.successes, 1):
            return 1.0
        return None

    def enter(self) -> int:
        """A work passes. Returns its ticket, for `leave`."""
        if self._state is State.HALF_OPEN:
            self._probes += 1
        return self._epoch

    def leave(self, ticket: int, success: bool | None, now: float) -> None:
        """A work is done. None says that it tells nothing of the endpoint: it was cancelled, or was bad itself.

        A work from before the state's last change counts no more.
        """
        if ticket != self._epoch:
            return
        if self._state is State.HALF_OPEN:
            self._probes -= 1
        if success is False:
            self._failures.append(now)
            full = len(self._failures) == self._failures.maxlen
            within = now - self._failures[0] <= self._policy.window_s
            if self._state is State.HALF_OPEN or (full and within):
                self.trip(now)
        elif success and self._state is State.HALF_OPEN:
            self._successes += 1
            if self._successes >= self._policy.successes:
                self._enter(State.CLOSED)

    def trip(self, now: float) -> None:
        """Opens it, whatever was counted."""
        self._until = now + self._policy.open_s
        self._enter(State.OPEN)

    def _enter(self, state: State) -> None:
        self._state = state
        self._epoch += 1
        self._probes = self._successes = 0
        self._failures.clear()
