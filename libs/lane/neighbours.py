"""The processes of one stage, followed in the registry: keeps one Stage per live endpoint."""

from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack

from headrace.registry.v1 import registry_pb2
from libs.lane.finder import NeighborStage, StageFinder
from libs.lane.stage import Stage
from libs.registry import keys
from libs.registry.registry import Registry

HOLD_S = 10.0
"""After an outage of etcd, processes that are missing get this long to announce themselves again."""


class Neighbours:
    """Follows the instances of a service.

    Args:
        service: The stage behind: "router" or "batcher".
        changed: Gets all instances, by name, after each change; a Stage stays the same object as long as
            its address does.
    """

    def __init__(
        self,
        registry: Registry,
        service: str,
        finder: StageFinder,
        changed: Callable[[Mapping[str, Stage]], None],
    ) -> None:
        self._mirror = registry.mirror(keys.services(service), registry_pb2.ServiceInstance, hold_deletions_s=HOLD_S)
        self._finder = finder
        self._changed = changed
        self._stages: dict[str, NeighborStage] = {}
        self._stack = AsyncExitStack()

    async def start(self) -> None:
        """Returns once the instances have been read, however long etcd takes to come."""
        await self._stack.enter_async_context(self._mirror)
        self._apply()
        self._mirror.on_change(self._apply)

    async def close(self) -> None:
        """Stops following."""
        await self._stack.aclose()

    def _apply(self) -> None:
        stages: dict[str, NeighborStage] = {}
        for name, instance in self._mirror.items.items():
            known, endpoint = self._stages.get(name), instance.endpoint
            if known is not None and known.endpoint == endpoint:
                stages[name] = known
            else:
                stages[name] = self._finder.at(endpoint)
        self._stages = stages
        self._changed(stages)
