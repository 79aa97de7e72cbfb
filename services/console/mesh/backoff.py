"""How long to wait before a component that died is started again. Pure."""

FIRST_S = 0.2
MOST_S = 5.0
RESET_S = 30.0
"""Healthy for this long, and its past is forgotten."""


class Backoff:
    """Doubles from FIRST_S to MOST_S; starts over after a run that was healthy for RESET_S."""

    def __init__(self) -> None:
        self._next = FIRST_S

    def delay(self, healthy_s: float) -> float:
        """Seconds to wait after a run that was healthy for `healthy_s` seconds."""
        if healthy_s >= RESET_S:
            self._next = FIRST_S
        delay, self._next = self._next, min(self._next * 2, MOST_S)
        return delay
