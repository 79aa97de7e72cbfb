"""Tells placement, through etcd, what is asked of the models."""

from collections.abc import Sequence

from headrace.registry.v1 import registry_pb2
from libs.registry import keys
from libs.registry.announcement import Announcement
from libs.registry.registry import Registry
from services.batcher.asked import Demand

TTL_S = 10
"""Of the lease: a batcher that has died asks for nothing."""
EVERY_S = 1.0
"""Between two reports while works come and go. A model without a copy is reported at once."""


class DemandReport:
    """Keeps this batcher's Demand in etcd."""

    def __init__(self, registry: Registry, instance: str) -> None:
        self._instance = instance
        self._announcement: Announcement = registry.announce(keys.demand(instance), TTL_S)
        self._said: registry_pb2.Demand | None = None

    async def start(self) -> None:
        """Begins; etcd may come later."""
        self._announcement.start()

    async def close(self) -> None:
        """Takes it back."""
        await self._announcement.withdraw()

    def say(self, demands: Sequence[Demand]) -> None:
        """Says what is asked now, if that is news."""
        message = registry_pb2.Demand(
            instance=self._instance,
            models=[
                registry_pb2.ModelDemand(
                    model=demand.model,
                    requests=demand.requests,
                    running=demand.running,
                    waiting=demand.waiting,
                    oldest_waiting_ms=round(demand.oldest_waiting_s * 1000),
                    last_request=round(demand.last_request, 3),
                    queued_s=round(demand.queued_s, 3),
                )
                for demand in demands
            ],
        )
        if message != self._said:
            self._said = message
            self._announcement.set(message)
