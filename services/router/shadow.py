"""Which requests have a shadow, and what becomes of it: nothing that anybody sees. Pure."""

from collections import Counter
from collections.abc import Callable, Sequence

from libs.lane.work import Asked, Note, Outcome, Tier, Tokens, Work
from services.router.attempt import Attempt
from services.router.candidate import Candidate
from services.router.fallback import Try
from services.router.policy import RouteRules
from services.router.shares import point

TENANT = "~shadow"
"""Under this name shadows queue: no tenant waits for its own shadows. No tenant can be called so."""

WEIGHT = 0.01
"""Of this tenant."""


class Shadows:
    """Copies in flight in one router, by alias; those beyond the rule's bound are not sent."""

    def __init__(self) -> None:
        self._running: Counter[str] = Counter()

    def wanted(self, work: Work, asked: Asked, route: RouteRules) -> bool:
        """Whether a copy of this request is to go out now."""
        rule = route.shadow
        return (
            rule is not None
            and not (asked.no_extras or work.resumed)
            and (not rule.tenants or work.tenant in rule.tenants)
            and point(route.alias, "shadow", work.request_id) < rule.share
            and self._running[route.alias] < rule.max_in_flight
        )

    def begin(self, alias: str) -> None:
        """A copy went out."""
        self._running[alias] += 1

    def end(self, alias: str) -> None:
        """A copy has ended."""
        self._running[alias] -= 1
        if not self._running[alias]:
            del self._running[alias]


class ShadowRun:
    """One copy; see attempt.Owner.

    Args:
        count: Told of the alias and "sent", "OK", or the reason of a failure.
    """

    def __init__(self, alias: str, shadows: Shadows, count: Callable[[str, str], None]) -> None:
        self._alias = alias
        self._shadows = shadows
        self._count = count

    def attempt(self, candidate: Candidate, traceparent: str) -> Attempt:
        """The attempt; it is to be sent. Its failures count for no breaker: it is not to be noticed."""
        self._shadows.begin(self._alias)
        self._count(self._alias, "sent")
        going = candidate.going(tier=Tier.ASYNC, tenant=TENANT, weight=WEIGHT, log_probs=False, traceparent=traceparent)
        return Attempt(self, "shadow", Try(candidate.route.model, "shadow"), going, None, Note(), 0.0)

    def tokens(self, attempt: Attempt, tokens: Tokens, log_probs: Sequence[float]) -> int | None:
        """They go nowhere."""
        return None

    def noted(self, attempt: Attempt, note: Note) -> None:
        """Nobody is told."""

    def over(self, attempt: Attempt, outcome: Outcome) -> None:
        """It makes room for another one."""
        self._shadows.end(self._alias)
        self._count(self._alias, "OK" if outcome.error is None else outcome.error.reason)

    def closed(self, attempt: Attempt) -> None:
        """So it does."""
        self._shadows.end(self._alias)
