"""Tells the ladders what the batchers say of themselves in etcd."""

from collections.abc import Iterator

from headrace.registry.v1 import registry_pb2
from libs.clock import Clock
from libs.lane.work import Tier
from libs.registry.mirror import Mirror
from services.admission.ladder import Ladders, Saturated

LOOK_S = 0.25
"""How often `tick` is to be called, beside each change: levels fall with time."""
STALE_S = 10.0
"""What a batcher said is believed for so long after etcd was heard of last: as long as its lease would keep it. Without
that, a rung that was in force when etcd went away would be in force until it is back."""


class SaturationSource:
    """The batchers' demands, as what `Ladders.observe` wants."""

    def __init__(self, demand: Mirror[registry_pb2.Demand], ladders: Ladders, clock: Clock) -> None:
        self._demand = demand
        self._ladders = ladders
        self._clock = clock

    def tick(self) -> None:
        """Has the ladders look at what is known now."""
        self._ladders.observe(self._saturations(), self._clock.monotonic())

    def _saturations(self) -> Iterator[Saturated]:
        since = self._demand.stale_since
        if since is not None and self._clock.now() > since + STALE_S:
            return
        for batcher in self._demand.items.values():
            for asked in batcher.models:
                for each in asked.saturations:
                    if each.tier in (1, 2):
                        yield Saturated(asked.model, Tier(each.tier), each.wait, each.blocks, each.refused)
