"""Keeps the batcher's knowledge of executors and versions fresh: etcd's messages in, values out."""

from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack

from headrace.registry.v1 import registry_pb2
from libs.catalogue import ModelSpec
from libs.lane.finder import NeighborStage, StageFinder
from libs.lane.neighbours import HOLD_S
from libs.registry import keys
from libs.registry.registry import Registry
from services.batcher.executors import ExecutorInfo
from services.batcher.seat import ModelCapacity


class ExecutorSource:
    """Mirrors of the executors and the catalogue."""

    def __init__(self, registry: Registry, finder: StageFinder) -> None:
        self._executors = registry.mirror(keys.EXECUTORS, registry_pb2.Executor, hold_deletions_s=HOLD_S)
        self._models = registry.mirror(keys.MODELS, registry_pb2.Model)
        self._finder = finder
        self._stages: dict[str, NeighborStage] = {}
        self._stack = AsyncExitStack()

    async def start(
        self,
        executors: Callable[[Mapping[str, ExecutorInfo]], None],
        versions: Callable[[frozenset[str]], None],
    ) -> None:
        """Returns once everything has been read, however long etcd takes to come.

        Args:
            executors: Gets all executors, now and after each change.
            versions: Gets the pools of the catalogue as it is, now and after each change.
        """
        for mirror in (self._models, self._executors):
            await self._stack.enter_async_context(mirror)
        versions(self._pools())
        executors(self._infos())
        self._models.on_change(lambda: versions(self._pools()))
        self._executors.on_change(lambda: executors(self._infos()))

    async def close(self) -> None:
        """Stops following."""
        await self._stack.aclose()

    def _pools(self) -> frozenset[str]:
        specs = (ModelSpec.from_proto(model) for model in self._models.items.values())
        return frozenset(spec.pool for spec in specs if spec.pool)

    def _infos(self) -> dict[str, ExecutorInfo]:
        infos: dict[str, ExecutorInfo] = {}
        stages: dict[str, NeighborStage] = {}
        for name, executor in self._executors.items.items():
            stage, endpoint = self._stages.get(name), executor.endpoint
            if stage is None or stage.endpoint != endpoint:
                stage = self._finder.at(endpoint)
            stages[name], infos[name] = stage, _info(executor, stage)
        self._stages = stages
        return infos


_COMING = {
    registry_pb2.MODEL_STATE_PENDING: "waits to be loaded",
    registry_pb2.MODEL_STATE_LOADING: "is being loaded",
    registry_pb2.MODEL_STATE_FAILED: "could not be loaded",
}


def _info(executor: registry_pb2.Executor, stage: NeighborStage) -> ExecutorInfo:
    if executor.draining:
        return ExecutorInfo(stage, {}, leaving=frozenset(copy.pool for copy in executor.models))
    ready = {
        copy.pool: ModelCapacity(
            copy.slots,
            copy.blocks,
            copy.block_tokens,
            copy.adapter_slots,
            frozenset(resident.adapter for resident in copy.adapters),
            copy.step_tokens,
        )
        for copy in executor.models
        if copy.state == registry_pb2.MODEL_STATE_READY
    }
    coming = {
        copy.pool: _COMING[copy.state] + (f" ({copy.reason})" if copy.reason else "")
        for copy in executor.models
        if copy.state in _COMING
    }
    leaving = frozenset(c.pool for c in executor.models if c.state == registry_pb2.MODEL_STATE_DRAINING)
    return ExecutorInfo(stage, ready, coming, leaving)
