"""Time as an argument: deciding code takes a Clock, so that tests and the simulator can own time."""

import time
from typing import Protocol


class Clock(Protocol):
    """Two views of time."""

    def now(self) -> float:
        """Unix time in seconds: for deadlines, which cross processes."""
        ...

    def monotonic(self) -> float:
        """Seconds that never go back: for durations and timers within a process."""
        ...


class SystemClock:
    """The machine's clocks."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()


class ManualClock:
    """A clock that stands still until it is moved: for tests and simulation."""

    def __init__(self, start: float = 1_700_000_000.0) -> None:
        self._now = start

    def now(self) -> float:
        return self._now

    def monotonic(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        """Moves both views forward."""
        if seconds < 0:
            raise ValueError(f"time goes forward only, not by {seconds} s")
        self._now += seconds
