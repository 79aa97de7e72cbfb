"""When a drill is to stop at once. Pure."""

from dataclasses import dataclass

from services.console.drill.values import Bounds, Sent

LEAST_ENDED = 20
"""Requests that have ended, before the share of errors among them says anything."""


@dataclass(frozen=True, slots=True)
class Look:
    """What is to be known of the mesh beside the ladder."""

    processes: frozenset[str] = frozenset()
    """That are there."""
    others_refused: int | None = None
    """Requests of other tenants that were refused, since the processes began; None when that cannot be seen."""


class Guard:
    """Of one drill. Counts what it is shown."""

    def __init__(self, bounds: Bounds, before: Look) -> None:
        self._bounds = bounds
        self._before = before
        self.others_refused: int | None = None
        """Since the drill began; None while that cannot be seen."""
        self._ended = 0
        self._failed = 0
        self._why = ""

    def sent(self, count: int, now: float) -> None:
        """So many requests were sent so far."""
        if count >= self._bounds.requests:
            self._stop(f"{count:,} requests were sent, as many as were allowed")
        if now >= self._bounds.seconds:
            self._stop(f"the load had lasted for {self._bounds.seconds:g} s, as long as was allowed")

    def ended(self, sent: Sent) -> None:
        """A request has ended."""
        self._ended += 1
        if not sent.error or sent.refused:
            return
        self._failed += 1
        if sent.error == "INTERNAL":
            self._stop(f"the mesh answered with a bug: {sent.message}")
        elif sent.error == "QUOTA_EXCEEDED":
            self._stop(f"the drill's own tenant ran into a limit, which the ladder is not for: {sent.message}")
        elif self._ended >= LEAST_ENDED and self._failed > self._bounds.error_share * self._ended:
            share = self._failed / self._ended
            self._stop(f"{share:.1%} of the requests failed; the last with {sent.error}: {sent.message}")

    def look(self, look: Look) -> None:
        """How the mesh is now."""
        if gone := self._before.processes - look.processes:
            self._stop(f"{', '.join(sorted(gone))} went away")
        before, now = self._before.others_refused, look.others_refused
        if before is None or now is None:
            return
        self.others_refused = max(now - before, 0)
        if self.others_refused > self._bounds.others_refused:
            most = self._bounds.others_refused
            self._stop(f"{self.others_refused:,} requests of other tenants were refused; {most:,} may be")

    def blind(self, why: str) -> None:
        """Nothing can be seen any more."""
        self._stop(f"the mesh could not be asked how it is: {why}")

    @property
    def why(self) -> str:
        """Why to stop; "" while there is no reason. The first reason stays."""
        return self._why

    def _stop(self, why: str) -> None:
        self._why = self._why or why
