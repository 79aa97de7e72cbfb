"""Reports this executor's prefix caches to the KV-cache manager."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack

from grpc import aio

from libs.kvcache.manager import ManagerChoice
from libs.kvcache.mirror import CacheMirror
from libs.kvcache.report import Reporter
from libs.kvcache.values import CacheInfo, CacheState
from libs.registry.registry import Registry
from services.executor.engine import Step
from services.executor.state import ModelStatus, State


class CacheReport:
    """Keeps a mirror of each model's prefix cache, and tells the KV-cache manager that everybody has chosen."""

    def __init__(self, registry: Registry, instance: str, connect: Callable[[str], aio.Channel]) -> None:
        self._manager = ManagerChoice(registry)
        self._instance = instance
        self._connect = connect
        self._mirrors: dict[str, CacheMirror] = {}
        self._reporter: Reporter | None = None
        self._stack = AsyncExitStack()

    def start(self) -> None:
        """Begins; the manager and etcd may come later."""
        self._reporter = Reporter(self._instance, self._snapshot, self._connect, self._manager.endpoint)
        self._stack.push_async_callback(self._reporter.close)

    async def follow(self) -> None:
        """Follows the managers in the registry."""
        self._stack.push_async_callback(self._manager.close)
        await self._manager.start()

    async def close(self) -> None:
        """Ends the report."""
        await self._stack.aclose()

    def set_models(self, statuses: Mapping[str, ModelStatus]) -> None:
        """Replaces the models whose caches are reported: those that are READY."""
        ready = {
            m: CacheInfo(m, s.blocks, s.block_tokens, s.exactness)
            for m, s in statuses.items()
            if s.state is State.READY
        }
        if {m: mirror.info for m, mirror in self._mirrors.items()} == ready:
            return
        self._mirrors = {
            model: known if (known := self._mirrors.get(model)) and known.info == info else CacheMirror(info)
            for model, info in ready.items()
        }
        if self._reporter is not None:
            self._reporter.refresh()

    def on_step(self, model: str, step: Step) -> None:
        """Passes a step's block events on."""
        if step.events and self._reporter is not None and (mirror := self._mirrors.get(model)) is not None:
            mirror.apply(step.events)
            self._reporter.push(model, step.events)

    def _snapshot(self) -> Sequence[CacheState]:
        return [mirror.state() for mirror in self._mirrors.values()]
