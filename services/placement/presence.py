"""Which executors are there, or were a moment ago. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from services.placement.values import ExecutorView

UNKNOWN = ExecutorView("", 2**63, labels=None, present=False)
"""An executor that holds copies, but was away since this leader came to power."""


class Presence:
    """Remembers executors for a while after they have gone: they may only be restarting.

    Args:
        absence_s: How long.
    """

    def __init__(self, absence_s: float) -> None:
        self._absence_s = absence_s
        self._seen: dict[str, tuple[float, ExecutorView]] = {}

    def views(self, there: Mapping[str, ExecutorView], holding: Iterable[str], now: float) -> dict[str, ExecutorView]:
        """Those that are there, and those that hold copies and have not been away for too long.

        Args:
            holding: Executors with placements.
            now: Monotonic seconds.
        """
        views = dict(there)
        for name, view in there.items():
            self._seen[name] = now, view
        holding = set(holding)
        for name in holding - there.keys():
            seen, view = self._seen.setdefault(name, (now, UNKNOWN))
            if now - seen < self._absence_s:
                views[name] = replace(view, present=False)
        self._seen = {name: seen for name, seen in self._seen.items() if name in holding or name in there}
        return views
