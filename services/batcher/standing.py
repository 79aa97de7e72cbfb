"""How fast those are served who always have something waiting: by what was seen, whatever the reason. Pure.

What is in front of a work can be counted, and fairness says who goes before it; but not who comes later and goes
first: tenants below their share, async work that has aged, works that come back. Where a tenant has works waiting all
the time, all that is in the rate at which they leave the queue, so its next work waits for as long as its queue is
worth at that rate. (So a router in front of a link may estimate the delay of a queue without knowing its scheduler:
CoDel and PIE, RFC 8289 and RFC 8033, measure the same two.)
"""

from dataclasses import dataclass, field

from libs.lane.work import Tier
from services.batcher.drain import Flow

MEASURED_S = 1.0
"""A queue stands when something has been waiting in it for so long without a break."""


@dataclass(slots=True)
class _Queue:
    """A tenant's works of one tier, from the first that waits to the moment when none does."""

    since: float
    flow: Flow = field(default_factory=Flow)
    waiting: int = 0


class Standing:
    """The queues of one pool's tenants, by tier. Bounded by the works that wait. Every operation is O(1). Times are
    monotonic seconds, which do not go back."""

    def __init__(self) -> None:
        self._queues: dict[tuple[str, Tier], _Queue] = {}

    def came(self, tenant: str, tier: Tier, now: float) -> None:
        """A work began to wait."""
        queue = self._queues.get((tenant, tier))
        if queue is None:
            queue = self._queues[tenant, tier] = _Queue(now)
            queue.flow.observe(True, now)
        queue.waiting += 1

    def left(self, tenant: str, tier: Tier, tokens: int, now: float) -> None:
        """One of them waits no more. `tokens` of its prompt go to an engine; 0 when it was given up."""
        queue = self._queues[tenant, tier]
        queue.waiting -= 1
        queue.flow.add(tokens, now)
        if not queue.waiting:
            del self._queues[tenant, tier]

    def rate(self, tenant: str, tier: Tier, now: float) -> float | None:
        """Prompt tokens per second that leave a queue that stands; None of any other."""
        queue = self._queues.get((tenant, tier))
        if queue is None or now - queue.since < MEASURED_S:
            return None
        queue.flow.observe(True, now)
        return queue.flow.amount / queue.flow.seconds

    def waiting(self) -> dict[tuple[str, Tier], int]:
        """Works that wait."""
        return {key: queue.waiting for key, queue in self._queues.items()}
