"""Keeps the batcher's knowledge of executors and queue limits fresh: etcd's messages in, plain values out."""

from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack

from grpc import aio

from headrace.policy.v1 import policy_pb2
from headrace.registry.v1 import registry_pb2
from libs.lane.client import RemoteStage
from libs.lane.neighbours import HOLD_S
from libs.lane.work import Tier
from libs.registry import keys
from libs.registry.registry import Registry
from libs.tasks import Tasks
from services.batcher.pool import ExecutorInfo, ModelCapacity
from services.batcher.queue import Limits


class ExecutorSource:
    """Mirrors of the executors and of the tiers' rules."""

    def __init__(self, registry: Registry, connect: Callable[[str], aio.Channel], tasks: Tasks) -> None:
        self._executors = registry.mirror(keys.EXECUTORS, registry_pb2.Executor, hold_deletions_s=HOLD_S)
        self._tiers = registry.mirror(keys.TIERS, policy_pb2.TierPolicy)
        self._connect = connect
        self._tasks = tasks
        self._stages: dict[str, RemoteStage] = {}
        self._stack = AsyncExitStack()

    async def start(self, changed: Callable[[Mapping[str, ExecutorInfo]], None]) -> None:
        """Returns once everything has been read, however long etcd takes to come.

        Args:
            changed: Gets all executors, now and after each change.
        """
        await self._stack.enter_async_context(self._tiers)
        await self._stack.enter_async_context(self._executors)
        changed(self._infos())
        self._executors.on_change(lambda: changed(self._infos()))

    async def close(self) -> None:
        """Stops following."""
        await self._stack.aclose()

    def limits(self, tier: Tier) -> Limits:
        """Bounds of a pool's queue for a tier, as the policy has them now; 0 means the default."""
        rules = self._tiers.items.get(tier.name.lower())
        if rules is None:
            return Limits()
        return Limits(rules.max_waiting or Limits().works, rules.max_waiting_tokens or Limits().tokens)

    def _infos(self) -> dict[str, ExecutorInfo]:
        infos: dict[str, ExecutorInfo] = {}
        for name, executor in self._executors.items.items():
            stage = self._stages.get(name)
            if stage is None or stage.endpoint != executor.endpoint:
                stage = RemoteStage(self._connect, executor.endpoint, self._tasks)
            ready = {
                held.model: ModelCapacity(held.slots, held.blocks, held.block_tokens)
                for held in executor.models
                if held.state == registry_pb2.MODEL_STATE_READY and not executor.draining
            }
            infos[name] = ExecutorInfo(stage, ready)
        self._stages = {name: info.stage for name, info in infos.items() if isinstance(info.stage, RemoteStage)}
        return infos
