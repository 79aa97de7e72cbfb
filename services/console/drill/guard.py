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
    others_refused: int = 0
    """Requests of other tenants that were refused, since the process that answers began."""


class Guard:
    """Of one drill. Counts what it is shown."""

    def __init__(self, bounds: Bounds, before: Look) -> None:
        self._bounds = bounds
        self._before = before
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
        refused = look.others_refused - self._before.others_refused
        if refused > self._bounds.others_refused:
            self._stop(f"{refused:,} requests of other tenants were refused; {self._bounds.others_refused:,} may be")

    def blind(self, why: str) -> None:
        """Nothing can be seen any more."""
        self._stop(f"the mesh could not be asked how it is: {why}")

    @property
    def why(self) -> str:
        """Why to stop; "" while there is no reason. The first reason stays."""
        return self._why

    def _stop(self, why: str) -> None:
        self._why = self._why or why
