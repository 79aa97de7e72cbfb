"""Which pool could not be loaded where, for as long as that counts. Pure."""

from collections.abc import Mapping

from services.placement.values import ExecutorView, Failure

EXPIRY_S = 900
"""A failure is forgotten this long after the last attempt (ModelMesh: 15 minutes)."""


class Failures:
    """Remembers failures, and forgets them: with time, or when the executor has started anew.

    Args:
        known: By (executor, pool): what an earlier leader left.
    """

    def __init__(self, known: Mapping[tuple[str, str], Failure]) -> None:
        self._known = dict(known)

    @property
    def known(self) -> Mapping[tuple[str, str], Failure]:
        """By (executor, pool)."""
        return self._known

    def observe(
        self, executors: Mapping[str, ExecutorView], started: Mapping[str, float], now: float
    ) -> dict[tuple[str, str], Failure | None]:
        """Takes in what the executors report; returns what changed, None for what is forgotten.

        Args:
            started: When each executor's process started.
        """
        changed: dict[tuple[str, str], Failure | None] = {}
        for key, failure in self._known.items():
            if now > failure.at + EXPIRY_S or started.get(key[0], 0.0) > failure.at:
                changed[key] = None
        for name, view in executors.items():
            for pool, resident in view.residents.items():
                if resident.state != "failed":
                    continue
                before = self._known.get((name, pool))
                if before is not None and resident.since <= before.at:
                    continue
                attempts = max(resident.attempts, 1, before.attempts + 1 if before else 0)
                changed[name, pool] = Failure(resident.since, attempts, resident.reason)
        for key, change in changed.items():
            if change is None:
                del self._known[key]
            else:
                self._known[key] = change
        return changed
