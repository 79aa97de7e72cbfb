"""Tells placement and admission, through etcd, what is asked of the models."""

from collections.abc import Callable, Sequence
from math import inf

from headrace.registry.v1 import registry_pb2
from libs.clock import Clock
from libs.registry import keys
from libs.registry.announcement import Announcement
from libs.registry.registry import Registry
from services.batcher.asked import Demand, risen

TTL_S = 10
"""Of the lease: a batcher that has died asks for nothing."""
EVERY_S = 1.0
"""Between two reports while works come and go."""
SOON_S = 0.25
"""Between two, when there is more to say: a model without a copy is wanted, or one is more saturated than it was."""
LOOK_S = 0.1
"""How often `tick` is to be called at least, while works come and go."""


class DemandReport:
    """Keeps this batcher's Demand in etcd. Writes at most once in SOON_S.

    Args:
        look: What is asked now.
    """

    def __init__(self, registry: Registry, instance: str, look: Callable[[], Sequence[Demand]], clock: Clock) -> None:
        self._instance = instance
        self._look = look
        self._clock = clock
        self._announcement: Announcement = registry.announce(keys.demand(instance), TTL_S)
        self._told: Sequence[Demand] = ()
        self._said: registry_pb2.Demand | None = None
        self._said_at = -inf
        self._urgent = False

    async def start(self) -> None:
        """Begins; etcd may come later."""
        self._announcement.start()

    async def close(self) -> None:
        """Takes it back."""
        await self._announcement.withdraw()

    def starved(self) -> None:
        """A model without a copy is asked for: that is said at once."""
        self._urgent = True
        if self._clock.monotonic() >= self._said_at + SOON_S:
            self._say(self._look())

    def tick(self) -> None:
        """Says what is asked now, if that is news, and it is time."""
        now = self._clock.monotonic()
        if now < self._said_at + SOON_S:
            return
        demands = self._look()
        if self._urgent or now >= self._said_at + EVERY_S or risen(self._told, demands):
            self._say(demands)

    def _say(self, demands: Sequence[Demand]) -> None:
        self._urgent, self._told = False, demands
        message = registry_pb2.Demand(instance=self._instance, models=map(_message, demands))
        if message != self._said:
            self._said, self._said_at = message, self._clock.monotonic()
            self._announcement.set(message)


def _message(demand: Demand) -> registry_pb2.ModelDemand:
    return registry_pb2.ModelDemand(
        model=demand.model,
        requests=demand.requests,
        running=demand.running,
        waiting=demand.waiting,
        oldest_waiting_ms=round(demand.oldest_waiting_s * 1000),
        last_request=round(demand.last_request, 3),
        queued_s=round(demand.queued_s, 3),
        saturations=[
            registry_pb2.Saturation(
                tier=each.tier.value,  # type: ignore[arg-type]
                waiting=each.waiting,
                wait=round(each.wait, 3),
                blocks=round(each.blocks, 3),
                refused=round(each.refused, 3),
            )
            for each in demand.saturations
        ],
    )
