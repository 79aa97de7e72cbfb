"""Whose turn is it? One adapter acts on the engine at a time; the base alone is one of them, "". Pure.

Works of the active adapter run together, and others wait. A turn ends when the adapter has no works left, or, when
others wait, after a quantum; the next one is the adapter that has had to wait longest since its own last turn. So
with n adapters in demand nobody waits longer than (n − 1) quanta and changes, and a short answer that comes while
one adapter works through long ones enters at once when that one has had its quantum.
"""

from collections.abc import Mapping

QUANTUM_S = 0.1
"""Longer ones win little throughput and cost waits: docs/engines.md has the figures."""


class Turns:
    """The order of the adapters of one engine."""

    def __init__(self, quantum_s: float = QUANTUM_S) -> None:
        self.active = ""
        self._quantum_s = quantum_s
        self._began = 0.0
        self._ended: dict[str, float] = {}

    def next(self, now: float, waiting: Mapping[str, float], running: bool) -> str | None:
        """The adapter whose turn begins now; None while the active one's goes on.

        Args:
            now: Seconds, of any clock that only goes forward.
            waiting: For each adapter with works that wait, since when the oldest does.
            running: Whether works of the active adapter run.
        """
        others = [adapter for adapter in waiting if adapter != self.active]
        if not others:
            return None
        if (running or self.active in waiting) and now - self._began < self._quantum_s:
            return None
        return min(others, key=lambda adapter: max(waiting[adapter], self._ended.get(adapter, 0.0)))

    def begin(self, adapter: str, now: float, waiting: Mapping[str, float]) -> None:
        """An adapter's turn begins."""
        self._ended[self.active] = now
        self._ended = {known: ended for known, ended in self._ended.items() if known in waiting}
        self.active, self._began = adapter, now
